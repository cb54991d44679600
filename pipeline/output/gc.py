"""Find and delete garbage (`fcnseg gc`): objects that no commit names, and unfinished writes.

Such objects come from shards that were never committed, and from commits that were replaced.
Nothing reads them; they only take space. Unfinished writes come from processes that were killed.
"""

from __future__ import annotations

import hashlib
import re
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeline.concurrency import map_ordered
from pipeline.errors import ConfigError, MissingError, OutputError
from pipeline.inputs.selection import seconds_of
from pipeline.manifest import read_manifest
from pipeline.output.commits import Commit
from pipeline.output.history import list_runs
from pipeline.output.lease import Lease
from pipeline.output.markers import read_marker
from pipeline.paths import (
    COMMITS,
    PREVIEWS,
    PROBE,
    QUARANTINE,
    REVIEWS,
    is_commit,
    is_quarantine,
    quarantined_shard,
    review_path,
)
from pipeline.stages.mask_formats import format_of
from pipeline.storage.backend import Leftover, ObjectInfo
from pipeline.storage.store import Store

_THREADS = 32


_TABLES = re.compile(
    rf"({PREVIEWS}|{QUARANTINE}|{REVIEWS})/.+\.parquet|{PROBE}[0-9a-f]{{32}}", re.DOTALL
)
"""Names of objects, besides masks, that may become garbage."""


_UNFINISHED = 60.0
"""Age in seconds below which an unfinished write may still be in progress."""


@dataclass(frozen=True)
class Garbage:
    """An object or an unfinished write that is no longer needed.

    Attributes:
        path: path below OUTPUT.
        size: bytes; 0 if the store does not report the size.
        age: seconds since the last write.
        tag: tag of an object; None for an unfinished write.
        leftover: the unfinished write; None for an object.
    """

    path: str
    size: int
    age: float
    tag: str | None = None
    leftover: Leftover | None = None


def find_garbage(output: Store, min_age: float) -> Iterator[Garbage]:
    """Yield all garbage of a minimum age. Writes nothing.

    Takes 8 bytes of memory per object that the commits name. Quarantine tables of failed shards are
    kept, because only they hold the reasons; review tables are kept while their run has a record.

    Args:
        output: store of OUTPUT.
        min_age: seconds; younger garbage is ignored.

    Raises:
        OutputError: the store does not hold an output, or a commit cannot be read, so that the
            objects it names are unknown.
    """
    read_manifest(output)
    named, committed = _read_commits(output)
    failed = set(read_marker(output)[1].get("failed_shards", {}))
    reviews = {review_path(run) for run in list_runs(output)}

    def is_garbage(info: ObjectInfo) -> bool:
        if not _may_remove(info.path) or _is_in(info.path, named):
            return False
        if info.path in reviews:
            return False
        if not is_quarantine(info.path):
            return True
        shard = quarantined_shard(info.path)
        return _is_in(shard, committed) and shard not in failed

    now = time.time()
    for info in output.listing():
        # Without a modification time an object never counts as old.
        age = 0.0 if info.modified is None else now - info.modified
        if age >= min_age and is_garbage(info):
            yield Garbage(info.path, info.size, age, info.etag)
    for left in output.leftovers():
        if now - left.modified >= max(min_age, _UNFINISHED):
            yield Garbage(left.path, left.size, now - left.modified, leftover=left)


def collect_garbage(
    output: Store, min_age: float, listen: Callable[[Garbage], None] | None = None
) -> int:
    """Delete the garbage that `find_garbage` lists, and return how many entries were deleted.

    Holds the lease, so that no run can work on the output at the same time.

    Args:
        output: store of OUTPUT.
        min_age: seconds; younger garbage is ignored.
        listen: called after every deletion.

    Raises:
        LeaseError: a driver works on this output.
        OutputError: as `find_garbage`.
        StoreError: the store fails.
    """
    read_manifest(output)
    with Lease(output) as lease:
        count = 0

        def remove(garbage: Garbage) -> Garbage:
            lease.check()
            if garbage.leftover is not None:
                output.discard(garbage.leftover)
            else:  # the tag protects an object that was just written again
                output.delete(garbage.path, garbage.tag)
            return garbage

        # List completely before the first deletion: a listing may skip or repeat objects otherwise.
        listed = list(find_garbage(output, min_age))
        for garbage in map_ordered(remove, listed, _THREADS):
            count += 1
            if listen is not None:
                listen(garbage)
    return count


def parse_age(text: str) -> float:
    """Return the seconds of a value of `--older-than`.

    Raises:
        ConfigError: the text is not a duration.
    """
    seconds = 0.0 if text.strip() == "0" else seconds_of(text)
    if seconds is None:
        raise ConfigError(
            where=f"--older-than {text}", found="no duration", expected="for example 24h, 90m or 7d"
        )
    return seconds


def _read_commits(output: Store) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return hashes of all paths that commits name, and of all committed shards; both sorted."""
    paths = (info.path for info in output.listing(COMMITS) if is_commit(info.path))
    named, committed = array("Q"), array("Q")
    for commit in map_ordered(partial(_read_commit, output), paths, _THREADS):
        named.extend(_hash(file.path) for file in commit.files)
        committed.append(_hash(commit.shard))
    return _sorted(named), _sorted(committed)


def _read_commit(output: Store, path: str) -> Commit:
    try:
        return Commit.from_json(output.read(path), output.location(path))
    except (OutputError, MissingError) as error:
        raise OutputError(
            where=output.location(path),
            found=error.found,
            expected="readable commits: they name the objects that are needed",
            remedy="Run `fcnseg verify`, and follow its advice. Nothing was removed.",
        ) from error


def _may_remove(path: str) -> bool:
    """Return whether an object has a name that runs use. Nothing else is ever deleted."""
    return format_of(path) is not None or _TABLES.fullmatch(path) is not None


def _sorted(hashes: Iterable[int]) -> NDArray[np.uint64]:
    return np.sort(np.fromiter(hashes, np.uint64))


def _is_in(name: str, hashes: NDArray[np.uint64]) -> bool:
    """Return whether a name is in the set. A hash collision can only keep an object too long."""
    value = np.uint64(_hash(name))
    place = np.searchsorted(hashes, value)
    return bool(place < len(hashes) and hashes[place] == value)


def _hash(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
