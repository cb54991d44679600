"""Verification: every object of an output against the commit that names it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fcn_core.errors import FcnError
from fcn_core.images import decode_label
from fcn_core.labels import VOID, LabelSet
from pipeline.commits import Commit, commit_path
from pipeline.errors import MissingError
from pipeline.identity import read_identity
from pipeline.ledger import read_commits
from pipeline.store import Store
from pipeline.writers import FileRecord, read_parquet, record

_READERS = 8


@dataclass(frozen=True)
class Verification:
    """What was checked, and what is wrong: (object, problem) each."""

    shards: int
    files: int
    bytes: int
    problems: tuple[tuple[str, str], ...]


def verify(output: Store, *, deep: bool = False) -> Verification:
    """Re-read every object that a commit names.

    Args:
        output: of a run.
        deep: also decode every mask, compare it with its row and all counts with the commit.

    Raises:
        OutputError: no output of this project, or an unreadable commit.
    """
    identity = read_identity(output)
    shards = files = size = 0
    problems: list[tuple[str, str]] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for commit in read_commits(output):
            shards += 1
            if commit.fingerprint != identity.fingerprint:
                problem = f"fingerprint {commit.fingerprint}, the output has {identity.fingerprint}"
                problems.append((commit_path(commit.shard), problem))
            check = _Check(output, identity.labels, commit, deep)
            checked = zip(commit.files, pool.map(check.file, commit.files), strict=True)
            found = [(file.path, problem) for file, wrong in checked for problem in wrong]
            files += len(commit.files)
            size += sum(file.size for file in commit.files)
            # Without an object the counts differ for sure: that is no second problem.
            problems.extend(found or [(commit_path(commit.shard), p) for p in check.totals()])
    return Verification(shards, files, size, tuple(problems))


class _Check:
    """The checks of one shard's objects."""

    def __init__(self, output: Store, labels: LabelSet, commit: Commit, deep: bool) -> None:
        self.output = output
        self.labels = labels
        self.commit = commit
        self.deep = deep
        self._counts: list[tuple[str, NDArray[np.int64]]] = []

    def file(self, file: FileRecord) -> list[str]:
        try:
            data = self.output.read(file.path)
        except MissingError:
            return ["missing"]
        found = record(file.path, data)
        if found.size != file.size:
            return [f"{found.size} bytes, its commit says {file.size}"]
        if found.sha256 != file.sha256:
            return [f"sha256 {found.sha256}, its commit says {file.sha256}"]
        if not self.deep:
            return []
        try:
            return list(self._masks(file.path, data))
        except (FcnError, pa.ArrowException, tarfile.TarError, OSError) as error:
            return [f"does not decode: {error}"]

    def totals(self) -> Iterator[str]:
        """Where the commit counts otherwise than the masks that were decoded, form by form."""
        for form in sorted({form for form, _ in self._counts}):
            masks = [counts for name, counts in self._counts if name == form]
            if len(masks) != self.commit.images:
                yield f"{self.commit.images} images, {form}/ has {len(masks)}"
            if np.sum(masks, axis=0).tolist() != list(self.commit.class_pixels):
                yield f"class counts differ from those of {form}/"

    def _masks(self, path: str, data: bytes) -> Iterator[str]:
        form = path.split("/")[0]
        if form == "png":
            yield from self._mask(form, path, data)
        elif form == "tar":
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for member in tar:
                    handle = tar.extractfile(member)
                    yield from self._mask(form, member.name, handle.read() if handle else b"")
        elif form == "masks":
            for row in read_parquet(data).to_pylist():
                yield from self._mask(form, row["key"], row["mask"]["bytes"], row)

    def _mask(
        self, form: str, name: str, png: bytes, row: Mapping[str, Any] | None = None
    ) -> Iterator[str]:
        mask = decode_label(png, name)
        counts = np.bincount(mask.ravel(), minlength=VOID + 1)
        classes = counts[: self.labels.num_classes]
        self._counts.append((form, classes))
        for value in np.flatnonzero(counts):
            if value >= self.labels.num_classes and value != VOID:
                yield f"{name}: value {value} is no class"
        if row is not None and mask.shape != (row["height"], row["width"]):
            yield f"{name}: mask is {mask.shape}, its row says otherwise"
        if row is not None and classes.tolist() != row["class_pixels"]:
            yield f"{name}: class counts differ from its row"
