"""Samples of a Parquet file with an image column: of Hugging Face, or of plain bytes."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fcn_core.errors import FcnError
from pipeline.errors import MissingError, SampleError, ShardError
from pipeline.formats import hub_image_columns
from pipeline.inputs.sample import EncodedSample
from pipeline.inputs.shard import Shard
from pipeline.storage.store import Store

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")

LABEL_COLUMNS = ("label", "mask", "annotation", "segmentation", "segmentation_mask")

KEY_COLUMNS = ("key", "__key__", "id", "image_id", "file_name", "filename")


BUFFER_BYTES = 8 * 2**20
"""Bytes per request, and bytes of the rows of a batch."""


_BATCH_ROWS = 256


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn errors of pyarrow about damaged files inside the block into `ShardError`."""
    try:
        yield
    except (
        pa.ArrowException,
        OSError,
        ValueError,
    ) as error:  # ValueError: a string that is not UTF-8
        raise ShardError(
            where=where,
            found=f"not a complete Parquet file ({str(error).strip()})",
            expected="a Parquet file with an image column",
            remedy="Copy or write it again; the run continues with the other shards.",
        ) from error


class ParquetIndex:
    """Index of the rows of a Parquet file, which are fetched in order, one batch at a time.

    The image column is the first of `IMAGE_COLUMNS` that holds bytes or struct<bytes, path>, or
    else the only column of such a type. The optional label column is the first of `LABEL_COLUMNS`
    of such a type. The key is the first string column of `KEY_COLUMNS`, or else the path of the
    image without extension, or else the row number.

    Pages are read on demand, so a row group may be larger than the memory.

    Args:
        shard: a shard of kind "parquet".
        source: INPUT.
        files: exit stack that closes the file.
        in_memory: fetch the whole file at once instead of ranges.

    Raises:
        ShardError: not a complete Parquet file, or no image column.
        StoreError: the store failed.
    """

    def __init__(self, shard: Shard, source: Store, files: ExitStack, *, in_memory: bool) -> None:
        self.where = source.location(shard.path)
        handle: Any = (
            pa.BufferReader(source.read(shard.path))
            if in_memory
            else files.enter_context(source.open(shard.path))
        )
        with _explained(self.where):
            self.file = pq.ParquetFile(handle, buffer_size=BUFFER_BYTES, pre_buffer=False)
            schema = self.file.schema_arrow
            self.image, self.label = _columns(schema, self.where)
            self.groups = [
                _Group(self.file.metadata.row_group(g), self._used())
                for g in range(self.file.num_row_groups)
            ]
            self.keys = self._keys(schema)
        self.sizes = [group.mean for group in self.groups for _ in range(group.rows)]
        self._next = 0
        self._rows = self._read()

    def location(self, number: int) -> str:
        """Return the address of the file and the number of the row."""
        return f"{self.where}#row={number}"

    def fetch(self, numbers: Sequence[int]) -> Iterator[EncodedSample | FcnError]:
        """Yield the images and labels of some rows; see `SampleIndex`.

        Rows are read in order. A row before the last one restarts from the first row.
        """
        for number in numbers:
            if number < self._next:
                self._next, self._rows = 0, self._read()
            with _explained(self.where):
                row = next(islice(self._rows, number - self._next, None), None)
                if row is None:
                    raise ValueError(f"{len(self.keys)} rows announced, row {number} is missing")
            self._next = number + 1
            image = _bytes(row[self.image])
            if image is None:
                yield SampleError(
                    where=self.location(number),
                    found="a null image, or a path without bytes",
                    expected="the bytes of the image in the row",
                    remedy="Embed the images in the Parquet file.",
                )
            else:
                yield image, _bytes(row[self.label]) if self.label else None

    def _read(self) -> Iterator[dict[str, Any]]:
        for number, group in enumerate(self.groups):
            batches = self.file.iter_batches(
                batch_size=max(1, min(_BATCH_ROWS, BUFFER_BYTES // max(1, group.mean))),
                row_groups=[number],
                columns=self._used(),
                use_threads=False,
            )
            count = 0
            for batch in batches:
                count += batch.num_rows
                yield from batch.to_pylist()
            if count != group.rows:
                raise ValueError(f"row group {number} has {count} rows")

    def _used(self) -> list[str]:
        return [name for name in (self.image, self.label) if name]

    def _keys(self, schema: pa.Schema) -> list[str]:
        numbers = [f"{index:08d}" for index in range(self.file.metadata.num_rows)]
        for name in KEY_COLUMNS:
            if name in schema.names and _is_text(schema.field(name).type):
                values = self.file.read(columns=[name]).column(0).to_pylist()
                return [value or n for value, n in zip(values, numbers, strict=True)]
        image = schema.field(self.image).type
        if pa.types.is_struct(image) and image.get_field_index("path") >= 0:
            paths = self.file.read(columns=[f"{self.image}.path"]).column(0).to_pylist()
            stems = [posixpath.splitext((p or {}).get("path") or "")[0] for p in paths]
            if all(stems) and len(set(stems)) == len(numbers):
                return stems
        return numbers


class _Group:
    """A row group.

    Attributes:
        rows: number of rows.
        mean: mean encoded bytes of a row in the columns that are used.
    """

    def __init__(self, metadata: Any, columns: Sequence[str]) -> None:
        self.rows: int = metadata.num_rows
        chunks = [metadata.column(number) for number in range(metadata.num_columns)]
        used = [c for c in chunks if c.path_in_schema.split(".")[0] in columns]
        self.mean: int = sum(c.total_uncompressed_size for c in used) // max(1, self.rows)


def _columns(schema: pa.Schema, where: str) -> tuple[str, str | None]:
    """Return the names of the image column and of the label column."""
    candidates = [f.name for f in schema if _holds_bytes(f.type)]
    image = _choose(candidates, IMAGE_COLUMNS, hub_image_columns(schema))
    if image is None:
        raise ShardError(
            where=where,
            found=f"columns {', '.join(schema.names)}",
            expected=f"a column of images named {IMAGE_COLUMNS[0]}: bytes, or struct<bytes, path>",
            remedy="Rename the column of images.",
        )
    labels = [name for name in candidates if name != image and name in LABEL_COLUMNS]
    return image, labels[0] if labels else None


def list_ignored_columns(shard: Shard, source: Store) -> list[str]:
    """Return the columns that have the name of a label or key column, but the wrong type.

    Each is described like "column label (int64)". The list is empty for a damaged file: the run
    reports it when it reads the shard.

    Raises:
        StoreError: the store failed.
    """
    try:
        with source.open(shard.path) as handle, _explained(shard.path):
            schema = pq.ParquetFile(handle).schema_arrow
            _, label = _columns(schema, shard.path)
    except (ShardError, MissingError):
        return []
    has_keys = any(field.name in KEY_COLUMNS and _is_text(field.type) for field in schema)
    return [
        f"column {field.name} ({field.type})"
        for field in schema
        if (field.name in LABEL_COLUMNS and not _holds_bytes(field.type) and label is None)
        or (field.name in KEY_COLUMNS and not has_keys)
    ]


def _choose(candidates: list[str], names: tuple[str, ...], declared: list[str]) -> str | None:
    for name in (*names, *(d for d in declared if d not in LABEL_COLUMNS)):
        if name in candidates:
            return name
    others = [name for name in candidates if name not in LABEL_COLUMNS]
    return others[0] if len(others) == 1 else None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(f.name == "bytes" and _holds_bytes(f.type) for f in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _bytes(value: Any) -> bytes | None:
    inner = value.get("bytes") if isinstance(value, dict) else value
    return bytes(inner) if inner is not None else None
