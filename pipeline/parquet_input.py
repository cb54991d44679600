"""Samples of a Parquet file with a Hugging Face image column, or one of plain bytes."""

from __future__ import annotations

import json
import posixpath
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SampleError, ShardError
from pipeline.samples import Entry
from pipeline.shards import Shard
from pipeline.store import Store

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "mask", "annotation", "segmentation", "segmentation_mask")
KEY_COLUMNS = ("key", "__key__", "id", "image_id", "file_name", "filename")


def parquet_entries(shard: Shard, source: Store, files: ExitStack) -> list[Entry]:
    """The rows of a Parquet file, in order.

    The image column is the one of `IMAGE_COLUMNS` that holds bytes or struct<bytes, path>; else the
    only such column. The label column is found by name likewise, and is optional. The key is the
    string column of `KEY_COLUMNS`, else the image's path without extension, else the row number.

    Args:
        shard: of kind "parquet".
        source: INPUT.
        files: closes what is opened here, when the last sample is fetched.

    Raises:
        ShardError: no Parquet file, or no image column in it.
    """
    where = source.location(shard.path)
    handle = files.enter_context(source.open(shard.path))
    with _explained(where):
        rows = _Rows(pq.ParquetFile(handle), where)
        keys = rows.keys()
    mean = shard.size // max(1, len(keys))
    return [
        Entry(key, mean, f"{where}#row={index}", rows.loader(index))
        for index, key in enumerate(keys)
    ]


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn what pyarrow raises for damaged files into our error."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: text that is no UTF-8
        raise ShardError(
            where,
            f"not a whole Parquet file ({str(error).strip()})",
            "a Parquet file with an image column",
            "Copy or write it again; the other shards go on.",
        ) from error


class _Rows:
    """Random access to the rows of a file, one row group in memory at a time."""

    def __init__(self, file: pq.ParquetFile, where: str) -> None:
        self.file = file
        self.where = where
        schema = file.schema_arrow
        pictures = [f.name for f in schema if _holds_bytes(f.type)]
        image = _choose(pictures, IMAGE_COLUMNS, hf_images(schema))
        if image is None:
            raise ShardError(
                where,
                f"columns {', '.join(schema.names)}",
                f"an image column (bytes, or struct<bytes, path>) named like {IMAGE_COLUMNS[0]}",
                "Rename the column.",
            )
        self.image: str = image
        labels = [name for name in pictures if name != self.image and name in LABEL_COLUMNS]
        self.label = labels[0] if labels else None
        self.groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        self.starts = [0, *accumulate(self.groups)]
        self._loaded: tuple[int, list[dict[str, Any]]] = (-1, [])

    def keys(self) -> list[str]:
        schema = self.file.schema_arrow
        numbers = [f"{index:08d}" for index in range(self.starts[-1])]
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

    def loader(self, index: int) -> Callable[[], tuple[bytes, bytes | None]]:
        def load() -> tuple[bytes, bytes | None]:
            row = self._row(index)
            image = _bytes(row[self.image])
            if image is None:
                raise SampleError(
                    f"{self.where}#row={index}",
                    "a null image, or a path without bytes",
                    "the image's bytes in the row",
                    "Embed the images in the Parquet file.",
                )
            return image, _bytes(row[self.label]) if self.label else None

        return load

    def _row(self, index: int) -> dict[str, Any]:
        group = bisect_right(self.starts, index) - 1
        if self._loaded[0] != group:
            columns = [name for name in (self.image, self.label) if name]
            with _explained(self.where):
                rows = self.file.read_row_group(group, columns=columns).to_pylist()
                if len(rows) != self.groups[group]:
                    raise ValueError(f"row group {group} has {len(rows)} rows")
            self._loaded = (group, rows)
        row: dict[str, Any] = self._loaded[1][index - self.starts[group]]
        return row


def hf_images(schema: pa.Schema) -> list[str]:
    """Columns that the Hugging Face metadata of a schema calls images."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return [name for name, kind in features.items() if kind.get("_type") == "Image"]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _choose(pictures: list[str], names: tuple[str, ...], declared: list[str]) -> str | None:
    for name in (*names, *(d for d in declared if d not in LABEL_COLUMNS)):
        if name in pictures:
            return name
    others = [name for name in pictures if name not in LABEL_COLUMNS]
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
