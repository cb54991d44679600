"""The table of shards, `stats/shards.parquet`: one row per commit, with scores and counts.

Users read it as a table of scores; the commit index uses it as a cache of the commits. The file
metadata holds a digest of every column of every row group. So a reader of a few columns checks only
these columns, and each batch before it is used.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fcn_core.metrics import ConfusionMatrix, margins, score_arrays
from pipeline.errors import MissingError
from pipeline.output.commits import Commit
from pipeline.paths import SHARD_TABLE
from pipeline.stages.histograms import Histograms
from pipeline.stages.records import Candidate
from pipeline.storage.store import Store

ROWS = 2048
"""Most rows of a batch and of a row group: about 10 MB with 21 classes."""


_PIECE = 16 * 2**20

_DIGESTS = b"columns_sha256"

SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("images", pa.int64()),
        ("labeled_images", pa.int64()),
        ("failures", pa.int64()),
        ("pixel_accuracy", pa.float64()),
        ("mean_accuracy", pa.float64()),
        ("mean_iou", pa.float64()),
        ("frequency_weighted_iou", pa.float64()),
        ("iou", pa.list_(pa.float64())),
        ("class_pixels", pa.list_(pa.int64())),
        ("confusion", pa.list_(pa.int64())),
        ("mean_confidence", pa.float64()),
        ("confidence_sum", pa.float64()),
        ("seconds", pa.string()),
        ("masks", pa.list_(pa.string())),
        ("input_location", pa.string()),
        ("input_etag", pa.string()),
        ("fingerprint", pa.string()),
        ("commit_etag", pa.string()),
        ("run", pa.string()),
        ("share_histogram", pa.list_(pa.int32())),
        ("confidence_histogram", pa.list_(pa.int32())),
        ("size_histogram", pa.list_(pa.int32())),
        ("aspect_histogram", pa.list_(pa.int32())),
        ("lowest_iou", pa.float64()),
        ("lowest_confidence", pa.float64()),
    ]
)


HISTOGRAMS = ("share_histogram", "confidence_histogram", "size_histogram", "aspect_histogram")
"""Columns with histograms; the first holds those of all classes in sequence. Null in format 1."""


class DamagedError(Exception):
    """The table differs from what was written. Callers then read the commits instead."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A commit as a row of the table, without its files and its candidates for review.

    Fields that are not listed here have the names and the meaning of those of `Commit`.

    Attributes:
        input_location: location of the input shard.
        input_etag: tag of the input shard.
        commit_etag: tag of the commit object.
        lowest_iou: lowest mean IoU of the candidates; None without labeled candidates.
        lowest_confidence: lowest confidence of the candidates without a label; None without any.
    """

    shard: str
    images: int
    labeled_images: int
    failures: int
    confusion: ConfusionMatrix
    class_pixels: tuple[int, ...]
    confidence_sum: float
    seconds: Mapping[str, float]
    masks: tuple[str, ...]
    input_location: str
    input_etag: str
    fingerprint: str
    commit_etag: str
    run: str = ""
    histograms: Histograms | None = None
    lowest_iou: float | None = None
    lowest_confidence: float | None = None

    @classmethod
    def of(cls, commit: Commit, commit_etag: str) -> Entry:
        """Return the row of a commit."""
        return cls(
            shard=commit.shard,
            images=commit.images,
            labeled_images=commit.labeled_images,
            failures=commit.failures,
            confusion=commit.matrix,
            class_pixels=commit.class_pixels,
            confidence_sum=commit.confidence_sum,
            seconds=commit.seconds,
            masks=commit.masks,
            input_location=str(commit.input["location"]),
            input_etag=str(commit.input["etag"]),
            fingerprint=commit.fingerprint,
            commit_etag=commit_etag,
            run=commit.run,
            histograms=commit.histograms,
            lowest_iou=_lowest(c for c in commit.candidates if c.mean_iou is not None),
            lowest_confidence=_lowest(c for c in commit.candidates if c.mean_iou is None),
        )


def _lowest(candidates: Iterable[Candidate]) -> float | None:
    return min((candidate.score for candidate in candidates), default=None)


def batch_of(entries: Sequence[Entry]) -> pa.RecordBatch:
    """Return rows of the table as a batch, with their scores.

    Args:
        entries: at least one entry; all with the same number of classes.
    """
    matrices = np.stack([entry.confusion.matrix for entry in entries])
    images = np.array([entry.images for entry in entries], np.int64)
    confidence = np.array([entry.confidence_sum for entry in entries], np.float64)
    mean = np.divide(confidence, images, out=np.full(len(images), np.nan), where=images > 0)
    scores = score_arrays(margins(matrices))
    del scores["accuracy"]  # not a column of the table
    columns: dict[str, Any] = {
        "images": images,
        "class_pixels": [entry.class_pixels for entry in entries],
        "confusion": _lists(matrices.reshape(len(entries), -1)),
        "iou": _lists(scores.pop("iou")),
        "mean_confidence": pa.array(mean, from_pandas=True),
        "confidence_sum": confidence,
        "seconds": [json.dumps(dict(entry.seconds), sort_keys=True) for entry in entries],
        **dict(zip(HISTOGRAMS, zip(*map(_flat, entries), strict=True), strict=True)),
        **{name: pa.array(values, from_pandas=True) for name, values in scores.items()},
    }
    arrays = []
    for field in SCHEMA:
        values = columns.get(field.name)
        if values is None:
            values = [getattr(entry, field.name) for entry in entries]
        arrays.append(values if isinstance(values, pa.Array) else pa.array(values, field.type))
    return pa.record_batch(arrays, SCHEMA)


def _flat(entry: Entry) -> Sequence[Sequence[int] | None]:
    return (None,) * len(HISTOGRAMS) if entry.histograms is None else entry.histograms.flat()


def entries_of(batch: pa.RecordBatch) -> Iterator[Entry]:
    """Yield the entries from rows of the table."""
    for row in batch.to_pylist():
        row["confusion"] = ConfusionMatrix(len(row["class_pixels"]), row["confusion"])
        row["class_pixels"] = tuple(row["class_pixels"])
        row["seconds"] = json.loads(row["seconds"])
        row["masks"] = tuple(row["masks"])
        flat = [row[name] for name in HISTOGRAMS]
        row["histograms"] = None if flat[0] is None else Histograms.of_flat(flat)
        yield Entry(**{name: row[name] for name in Entry.__dataclass_fields__})


class Table:
    """An open table of shards. Its rows do not change, even if the object is replaced."""

    def __init__(self, handle: IO[bytes]) -> None:
        weakref.finalize(self, handle.close)
        self._file = pq.ParquetFile(handle)
        metadata = self._file.metadata
        self._digests = json.loads((metadata.metadata or {}).get(_DIGESTS, b"null"))
        is_ours = isinstance(self._digests, dict) and set(self._digests) == set(SCHEMA.names)
        if not is_ours or not self._file.schema_arrow.equals(SCHEMA):
            raise DamagedError
        if any(len(of) != metadata.num_row_groups for of in self._digests.values()):
            raise DamagedError
        self.rows: int = metadata.num_rows

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield all rows with the given columns (None: all). Each batch is checked first.

        Raises:
            DamagedError: the next batch differs from what was written.
        """
        names = list(columns or SCHEMA.names)
        for group in range(self._file.metadata.num_row_groups):
            try:
                table = self._file.read_row_group(group, columns=names).select(names)
                (batch,) = table.combine_chunks().to_batches()
                digests = [_digest(column) for column in batch.columns]
            except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
                raise DamagedError from error
            if digests != [self._digests[name][group] for name in names]:
                raise DamagedError
            yield batch


def open_table(output: Store) -> Table | None:
    """Open the table of an output; return None if it is missing, damaged or of another version.

    Raises:
        StoreError: the store fails.
    """
    try:
        handle = output.open(SHARD_TABLE) if output.is_local else _copied(output)
    except MissingError:
        return None
    try:
        return Table(handle)
    except (DamagedError, pa.ArrowException, OSError, ValueError, TypeError, KeyError):
        handle.close()
        return None


def _copied(output: Store) -> IO[bytes]:
    """Copy a remote table to a temporary file: it is read twice, and replaced in between.

    If the table is replaced during the copy, the digests of its columns no longer match.
    """
    size = output.stat(SHARD_TABLE).size
    copy = cast(IO[bytes], tempfile.TemporaryFile(prefix="fcnseg-"))
    for start in range(0, size, _PIECE):
        copy.write(output.read(SHARD_TABLE, start, min(start + _PIECE, size)))
    copy.seek(0)
    return copy


class TableWriter:
    """Writes a table batch by batch to a local file, which `put` uploads to the output."""

    def __init__(self, output: Store) -> None:
        self._output = output
        self._folder = tempfile.TemporaryDirectory(prefix="fcnseg-")
        self._path = Path(self._folder.name, "shards.parquet")
        self._digests: dict[str, list[str]] = {name: [] for name in SCHEMA.names}
        self._writer = pq.ParquetWriter(
            self._path, SCHEMA, compression="zstd", use_dictionary=["fingerprint", "run"]
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows as a row group. Across all calls, rows must be sorted by shard."""
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            self._digests[name].append(_digest(column))
        self._writer.write_batch(batch, row_group_size=len(batch))

    def put(self) -> None:
        """Finish the table, and upload it to the output."""
        self._writer.add_key_value_metadata({_DIGESTS: json.dumps(self._digests).encode()})
        self._writer.close()
        self._output.upload(SHARD_TABLE, self._path)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()
        self._folder.cleanup()


def _digest(column: pa.Array) -> str:
    """Return 128 bits of the SHA-256 of a column's values.

    Parquet's own checksums would not do: they do not cover the headers of pages.
    """
    digest = hashlib.sha256()
    _feed(digest, column)
    return digest.hexdigest()[:32]


def _feed(digest: Any, column: pa.Array) -> None:
    digest.update(f"{len(column)} {column.null_count} ".encode())
    if column.null_count:
        digest.update(column.is_null().to_numpy(zero_copy_only=False))
    if pa.types.is_list(column.type):
        digest.update(_plain(pc.list_value_length(column)))
        _feed(digest, column.flatten())
    elif pa.types.is_string(column.type):
        digest.update(_plain(pc.binary_length(column)))
        digest.update("".join(text or "" for text in column.to_pylist()).encode())
    else:
        digest.update(_plain(column))


def _plain(column: pa.Array) -> NDArray[Any]:
    """Return the values as an array, with zero for null."""
    values: NDArray[Any] = column.fill_null(0).to_numpy()
    return np.ascontiguousarray(values)


def _lists(values: NDArray[Any]) -> pa.Array:
    """Return (N, M) values as N lists of M values; NaN becomes null."""
    count, length = values.shape
    offsets = np.arange(0, count * length + 1, length, dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel(), from_pandas=True))
