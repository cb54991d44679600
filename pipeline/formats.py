"""YAML as its specification has it: a key that stands twice is an error, not the last one's win."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float) and not key_node.tag.endswith(":merge"):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(text: str | bytes) -> Any:
    """The value of a YAML document.

    Raises:
        yaml.YAMLError: it is none, or a key stands twice; with the line.
    """
    return yaml.load(text, Loader=_Loader)


def read_parquet(data: bytes) -> pa.Table:
    """A table from the bytes of a Parquet file.

    `pq.read_table` would do, but imports pandas, which takes a second.

    Raises:
        pa.ArrowException: no whole Parquet file.
    """
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return file.read()


def parquet_bytes(table: pa.Table, row_group_size: int | None = None) -> bytes:
    """The bytes of a Parquet file, the same for equal tables."""
    buffer = io.BytesIO()
    # Pictures are compressed already; every other column is small.
    compression = {
        name: "NONE" if name.endswith(".bytes") or name in ("image", "label", "mask") else "ZSTD"
        for name in _leaves(table.schema)
    }
    pq.write_table(
        table,
        buffer,
        row_group_size=row_group_size,
        compression=compression,
        write_page_index=True,
        use_dictionary=["shard"] if "shard" in table.column_names else False,
    )
    return buffer.getvalue()


def _leaves(schema: pa.Schema) -> Iterator[str]:
    for column in schema:
        if pa.types.is_struct(column.type):
            yield from (f"{column.name}.{inner.name}" for inner in column.type)
        elif pa.types.is_list(column.type):
            yield f"{column.name}.list.element"
        else:
            yield column.name


def add_to_tar(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member that is the same every time: no time, no owner, fixed rights."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))
