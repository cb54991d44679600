"""`fcnseg gc`: objects of an output that no commit names, and what killed writers left.

They come from chunks of shards that were never committed, and from commits that were replaced by
ones with other objects. Nothing reads them; they only take room.
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
"""Names of objects, besides masks, that a run may leave behind."""


_UNFINISHED = 60.0
"""Seconds: what is younger may be a put that is under way (the lease is renewed meanwhile)."""


@dataclass(frozen=True)
class Garbage:
    """Something that nobody needs.

    Attributes:
        path: below OUTPUT.
        size: bytes; 0 where the store does not tell.
        age: seconds since it was last written.
        tag: of an object.
        leftover: what a writer left unfinished; None for an object.
    """

    path: str
    size: int
    age: float
    tag: str | None = None
    leftover: Leftover | None = None


def find_garbage(output: Store, min_age: float) -> Iterator[Garbage]:
    """Everything that no commit names and that is old enough. Writes nothing.

    Memory: 8 bytes per object that the commits name. Quarantine tables of shards that failed are
    kept, because nothing but them says why; review queues, as long as their run has its record.

    Args:
        output: of a run.
        min_age: seconds; younger things are left alone.

    Raises:
        OutputError: no output of this project, or a commit that cannot be read: what it names is
            not known then.
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
        # Where the store does not tell times, nothing is old.
        age = 0.0 if info.modified is None else now - info.modified
        if age >= min_age and is_garbage(info):
            yield Garbage(info.path, info.size, age, info.etag)
    for left in output.leftovers():
        if now - left.modified >= max(min_age, _UNFINISHED):
            yield Garbage(left.path, left.size, now - left.modified, leftover=left)


def collect_garbage(
    output: Store, min_age: float, listen: Callable[[Garbage], None] | None = None
) -> int:
    """Remove what `find_garbage` finds, while no driver can work on the output.

    Args:
        output: of a run.
        min_age: seconds; younger things are left alone.
        listen: called for everything that was removed.

    Returns:
        How many things were removed.

    Raises:
        LeaseError: a driver works on this output.
        OutputError: see `find_garbage`.
        StoreError: the store refuses.
    """
    read_manifest(output)
    with Lease(output) as lease:
        count = 0

        def remove(garbage: Garbage) -> Garbage:
            lease.check()
            if garbage.leftover is not None:
                output.discard(garbage.leftover)
            else:  # unless it was written again just now
                output.delete(garbage.path, garbage.tag)
            return garbage

        # All of it is found first: who deletes while he lists may be told either.
        found = list(find_garbage(output, min_age))
        for garbage in map_ordered(remove, found, _THREADS):
            count += 1
            if listen is not None:
                listen(garbage)
    return count


def parse_age(text: str) -> float:
    """Seconds of what `--older-than` says.

    Raises:
        ConfigError: something else.
    """
    seconds = 0.0 if text.strip() == "0" else seconds_of(text)
    if seconds is None:
        raise ConfigError(
            where=f"--older-than {text}", found="no duration", expected="for example 24h, 90m or 7d"
        )
    return seconds


def _read_commits(output: Store) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Hashes of all paths that commits name, and of all committed shards; both sorted."""
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
            expected="commits that say which objects are needed",
            remedy="Run `fcnseg verify`, and do what it says. Nothing was removed.",
        ) from error


def _may_remove(path: str) -> bool:
    """Return whether an object has a name that a run gives. Nothing else is ever removed."""
    return format_of(path) is not None or _TABLES.fullmatch(path) is not None


def _sorted(hashes: Iterable[int]) -> NDArray[np.uint64]:
    return np.sort(np.fromiter(hashes, np.uint64))


def _is_in(name: str, hashes: NDArray[np.uint64]) -> bool:
    """Two names of one hash would keep an object that could go; none would go that must stay."""
    value = np.uint64(_hash(name))
    place = np.searchsorted(hashes, value)
    return bool(place < len(hashes) and hashes[place] == value)


def _hash(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
