"""Verification: every object of an output against the commit that names it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fcn_core.errors import FcnError
from fcn_core.images import decode_label
from fcn_core.labels import VOID, LabelSet
from pipeline.commits import Commit
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
        deep: also decode every mask, compare it with its row and its class counts with the commit.

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
                found = f"fingerprint {commit.fingerprint}, the output has {identity.fingerprint}"
                problems.append((f"_commits/{commit.shard}.json", found))
            check = _Check(output, identity.labels, commit, deep)
            for file, found_problems in zip(
                commit.files, pool.map(check.file, commit.files), strict=True
            ):
                files += 1
                size += file.size
                problems.extend((file.path, problem) for problem in found_problems)
    return Verification(shards, files, size, tuple(problems))


class _Check:
    """The checks of one shard's objects."""

    def __init__(self, output: Store, labels: LabelSet, commit: Commit, deep: bool) -> None:
        self.output = output
        self.labels = labels
        self.commit = commit
        self.deep = deep

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

    def _masks(self, path: str, data: bytes) -> Iterator[str]:
        if path.startswith("png/"):
            yield from self._mask(path, data)
        elif path.startswith("tar/"):
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for member in tar:
                    handle = tar.extractfile(member)
                    yield from self._mask(member.name, handle.read() if handle else b"")
        elif path.startswith("masks/"):
            for row in read_parquet(data).to_pylist():
                png = row["mask"]["bytes"]
                yield from self._mask(row["key"], png)
                mask = decode_label(png)
                counts = np.bincount(mask.ravel(), minlength=self.labels.num_classes)
                if mask.shape != (row["height"], row["width"]):
                    yield f"{row['key']}: mask is {mask.shape}, its row says otherwise"
                if counts[: self.labels.num_classes].tolist() != row["class_pixels"]:
                    yield f"{row['key']}: class counts differ from its row"

    def _mask(self, name: str, png: bytes) -> Iterator[str]:
        values = np.unique(decode_label(png, name))
        bad = [int(v) for v in values if v >= self.labels.num_classes and v != VOID]
        if bad:
            yield f"{name}: value {bad[0]} is no class"
