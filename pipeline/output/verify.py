"""Verify an output (`fcnseg verify`): compare every object with the commit that names it."""

from __future__ import annotations

import hashlib
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fcn_core.errors import FcnError
from fcn_core.images import decode_label
from fcn_core.labels import VOID
from pipeline.concurrency import map_ordered
from pipeline.errors import MissingError, OutputError, StoreError
from pipeline.formats import read_parquet
from pipeline.manifest import Manifest, read_manifest
from pipeline.output.commits import Commit
from pipeline.output.history import run_problems
from pipeline.output.quarantine import QUARANTINE_SCHEMA
from pipeline.paths import COMMITS, commit_path, is_commit, is_quarantine, quarantine_path
from pipeline.stages.mask_formats import MASK_FORMATS, StoredMask, format_of
from pipeline.stages.records import FileRecord
from pipeline.storage.store import Store

MAX_PROBLEMS = 10_000
"""Most problems to keep. All problems are counted, and reported to the listener."""


_THREADS = 32

BLOCK_BYTES = 8 * 2**20

MAX_STORE_FAILURES = 3 * _THREADS
"""Read failures in a row after which the store, not an object, is reported as the cause."""


Problem = tuple[str, str]
"""Path of an object, and a text about the problem."""


@dataclass(frozen=True)
class Verification:
    """The result of a verification, or of a part of it.

    Attributes:
        shards: number of verified commits.
        files: number of objects that these commits name.
        bytes: size of these objects.
        problem_count: number of all problems.
        problems: the first `MAX_PROBLEMS` problems.
    """

    shards: int = 0
    files: int = 0
    bytes: int = 0
    problem_count: int = 0
    problems: tuple[Problem, ...] = ()


Listener = Callable[[Verification, list[Problem]], None]


def verify(output: Store, *, deep: bool = False, listen: Listener | None = None) -> Verification:
    """Read every object that a commit names, and return the problems. Writes nothing.

    Run records are checked as well, and their review tables as far as they still exist.

    Args:
        output: store of OUTPUT.
        deep: also decode every mask; compare masks with their rows, counts with the commit, and
            the quarantine table with the number of failures.
        listen: called after every shard with the result so far and the problems of that shard.

    Raises:
        OutputError: the store does not hold an output.
        StoreError: many objects in a row cannot be read.
    """
    shards = _read_shards(output, read_manifest(output), deep)
    tasks = ((shard, file) for shard in shards for file in (*shard.files, None))
    result = Verification()
    kept: list[Problem] = []
    wrong: list[Problem] = []
    failing = 0
    for shard, file, checked in map_ordered(_check, tasks, _THREADS):
        if file is not None:
            wrong.extend((file.path, problem) for problem in checked.problems)
            failing = failing + 1 if checked.failure else 0
            if checked.failure and failing == MAX_STORE_FAILURES:
                raise checked.failure
            shard.add(checked)
            continue
        wrong = shard.problems(wrong)
        kept.extend(wrong[: MAX_PROBLEMS - len(kept)])
        result = Verification(
            result.shards + 1,
            result.files + len(shard.files),
            result.bytes + sum(named.size for named in shard.files),
            result.problem_count + len(wrong),
            tuple(kept) if wrong else result.problems,
        )
        if listen is not None:
            listen(result, wrong)
        wrong = []
    of_runs = run_problems(output)
    if of_runs and listen is not None:
        listen(result, of_runs)
    problems = (*result.problems, *of_runs)[:MAX_PROBLEMS]
    return replace(result, problem_count=result.problem_count + len(of_runs), problems=problems)


@dataclass(frozen=True)
class _Checked:
    """The result for one object: problems, and by format the number of masks and class counts."""

    problems: tuple[str, ...] = ()
    counts: Mapping[str, tuple[int, NDArray[np.int64]]] = field(default_factory=dict)
    failure: StoreError | None = None


def _read_shards(output: Store, identity: Manifest, deep: bool) -> Iterator[_Shard]:
    paths = (info.path for info in output.listing(COMMITS) if is_commit(info.path))
    for path, commit in map_ordered(partial(_read_commit, output), paths, _THREADS):
        if commit is not None:
            yield _Shard(output, identity, deep, path, commit)


def _read_commit(output: Store, path: str) -> tuple[str, Commit | str | None]:
    """Return the path with its commit, its problem, or None if it was just deleted."""
    try:
        return path, Commit.from_json(output.read(path), output.location(path))
    except MissingError:
        return path, None
    except OutputError as error:
        return path, error.reason
    except StoreError as error:
        return path, f"cannot be read: {error.reason}"


def _check(
    task: tuple[_Shard, FileRecord | None],
) -> tuple[_Shard, FileRecord | None, _Checked]:
    shard, file = task
    return shard, file, _Checked() if file is None else shard.check(file)


class _Shard:
    """The checks of one commit and of the objects that it names."""

    def __init__(
        self, output: Store, identity: Manifest, deep: bool, path: str, commit: Commit | str
    ) -> None:
        self.output = output
        self.identity = identity
        self.deep = deep
        self.path = path
        self.commit = commit if isinstance(commit, Commit) else None
        self.unreadable = commit if isinstance(commit, str) else None
        self.files = self.commit.files if self.commit else ()
        self._counts: dict[str, tuple[int, NDArray[np.int64]]] = {}

    def check(self, file: FileRecord) -> _Checked:
        """Compare one object with its record. Runs in any thread."""
        try:
            wrong, data = self._compare(file)
            if wrong or not self.deep:
                return _Checked((wrong,) if wrong else ())
            return self._decode(file.path, data)
        except MissingError:
            return _Checked(("missing",))
        except StoreError as error:
            return _Checked((f"cannot be read: {error.reason}",), failure=error)

    def add(self, checked: _Checked) -> None:
        """Add the counts of one object."""
        for form, (images, classes) in checked.counts.items():
            before = self._counts.get(form, (0, np.zeros_like(classes)))
            self._counts[form] = (before[0] + images, before[1] + classes)

    def problems(self, of_objects: list[Problem]) -> list[Problem]:
        """Return all problems of the shard, after all of its objects were checked."""
        if self.commit is None:
            return [(self.path, self.unreadable or "unreadable")]
        problems = [
            *((self.path, problem) for problem in self._of_commit(self.commit)),
            *of_objects,
        ]
        # If an object is damaged, the counts differ anyway: this is not a second problem.
        if not of_objects:
            problems.extend((self.path, problem) for problem in self._of_counts(self.commit))
        return problems

    def _of_commit(self, commit: Commit) -> Iterator[str]:
        if commit_path(commit.shard) != self.path:
            yield f"it is the commit of shard {commit.shard!r}"
        if commit.fingerprint != self.identity.fingerprint:
            expected = self.identity.fingerprint
            yield f"fingerprint {commit.fingerprint}, the output has {expected}"
        has_table = any(file.path == quarantine_path(commit.shard) for file in commit.files)
        if has_table != bool(commit.failures):
            names = "a" if has_table else "no"
            yield f"{commit.failures} failures, and it names {names} quarantine table"
        for mask_format in MASK_FORMATS.values():
            if mask_format.has_classes or mask_format.name not in commit.masks:
                continue
            maps = sum(mask_format.has_path(file.path) for file in commit.files)
            if maps != commit.images:
                yield f"{commit.images} images, and it names {maps} {mask_format.name} maps"

    def _of_counts(self, commit: Commit) -> Iterator[str]:
        """Yield where the counts of the commit differ from the decoded masks of a format."""
        for form, (images, classes) in sorted(self._counts.items()):
            if images != commit.images:
                yield f"{commit.images} images, {form}/ has {images}"
            if classes.tolist() != list(commit.class_pixels):
                yield f"class counts differ from those of {form}/"

    def _compare(self, file: FileRecord) -> tuple[str, bytes]:
        """Return the problem ("" without one), and the bytes for `deep` checks."""
        if self.deep or file.size <= BLOCK_BYTES:
            data = self.output.read(file.path)
            size, digest = len(data), hashlib.sha256(data)
        else:  # in blocks: whole objects in many threads would fill the memory
            data = b""
            size, digest = self.output.stat(file.path).size, hashlib.sha256()
            for start in range(0, size if size == file.size else 0, BLOCK_BYTES):
                digest.update(self.output.read(file.path, start, min(start + BLOCK_BYTES, size)))
        if size != file.size:
            return f"{size} bytes, its commit says {file.size}", data
        if digest.hexdigest() != file.sha256:
            return f"sha256 {digest.hexdigest()}, its commit says {file.sha256}", data
        return "", data

    def _decode(self, path: str, data: bytes) -> _Checked:
        masks = _MaskChecks(self.identity.labels.num_classes)
        try:
            masks.look(path, data)
            if is_quarantine(path) and self.commit is not None:
                table = read_parquet(data)
                if table.schema.names != QUARANTINE_SCHEMA.names:
                    masks.problems.append(f"columns {', '.join(table.schema.names)}")
                elif table.num_rows != self.commit.failures:
                    rows, failures = table.num_rows, self.commit.failures
                    masks.problems.append(f"{rows} rows, its commit says {failures} failures")
        except (FcnError, pa.ArrowException, tarfile.TarError, OSError, ValueError) as error:
            masks.problems.append(f"does not decode: {error}")
        return _Checked(tuple(masks.problems), masks.counts)


class _MaskChecks:
    """Checks the masks in one object: problems, and by format their number and class counts."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.problems: list[str] = []
        self.counts: dict[str, tuple[int, NDArray[np.int64]]] = defaultdict(
            lambda: (0, np.zeros(num_classes, np.int64))
        )

    def look(self, path: str, data: bytes) -> None:
        """Decode every mask of an object."""
        mask_format = format_of(path)
        if mask_format is None:
            return
        for stored in mask_format.decode(path, data):
            if mask_format.has_classes:
                self._mask(mask_format.folder, stored)
            else:
                decode_label(stored.png, stored.key)

    def _mask(self, form: str, stored: StoredMask) -> None:
        name, row = stored.key, stored.row
        mask = decode_label(stored.png, name)
        counts = np.bincount(mask.ravel(), minlength=VOID + 1)
        classes = counts[: self.num_classes]
        images, before = self.counts[form]
        self.counts[form] = (images + 1, before + classes)
        for value in np.flatnonzero(counts):
            if value >= self.num_classes and value != VOID:
                self.problems.append(f"{name}: value {value} is not a class")
        if row is not None and mask.shape != (row["height"], row["width"]):
            self.problems.append(f"{name}: mask is {mask.shape}, its row says otherwise")
        if row is not None and classes.tolist() != row["class_pixels"]:
            self.problems.append(f"{name}: class counts differ from its row")
