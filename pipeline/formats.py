"""Bytes of the file formats that several rooms read or write: YAML, Parquet, tar, JPEG.

Equal values give equal bytes. Importing this module loads neither pyarrow nor Pillow: the functions
import them when they are called.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


class _StrictLoader(yaml.SafeLoader):
    """A safe YAML loader that refuses repeated keys, as the YAML specification demands."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float) and not key_node.tag.endswith(":merge"):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} occurs twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(text: str | bytes) -> Any:
    """Return the value of a YAML document.

    Raises:
        yaml.YAMLError: not valid YAML, or a key occurs twice; the message names the line.
    """
    return yaml.load(text, Loader=_StrictLoader)


def read_parquet(data: bytes) -> pa.Table:
    """Return the table of a Parquet file.

    `pq.read_table` is not used: it imports pandas, which takes a second.

    Raises:
        pa.ArrowException: truncated, or not a Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return file.read()


def encode_parquet(table: pa.Table, row_group_size: int | None = None) -> bytes:
    """Return a table as the bytes of a Parquet file.

    Args:
        table: columns of images hold encoded bytes and are not compressed again: the columns
            "image", "label", "mask", and every field "bytes" of a struct.
        row_group_size: rows per row group; None for pyarrow's default.
    """
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    compression = {
        name: "NONE" if name.endswith(".bytes") or name in ("image", "label", "mask") else "ZSTD"
        for name in _leaf_columns(table.schema)
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


def _leaf_columns(schema: pa.Schema) -> Iterator[str]:
    import pyarrow as pa

    for column in schema:
        if pa.types.is_struct(column.type):
            yield from (f"{column.name}.{inner.name}" for inner in column.type)
        elif pa.types.is_list(column.type):
            yield f"{column.name}.list.element"
        else:
            yield column.name


HUB_IMAGE = {"_type": "Image"}
"""Hugging Face feature of a column of encoded images."""


def hub_value(dtype: str) -> dict[str, Any]:
    """Return the Hugging Face feature of a column of numbers or strings, like "float64"."""
    return {"dtype": dtype, "_type": "Value"}


def hub_list(feature: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Hugging Face feature of a column of lists, from the feature of their items."""
    return {"feature": dict(feature), "_type": "List"}


def hub_features(schema: pa.Schema, images: Collection[str]) -> dict[str, Any]:
    """Return the Hugging Face features of a schema's columns, by name.

    Args:
        schema: columns of numbers, strings, and lists of these.
        images: names of the columns that hold encoded images.
    """
    import pyarrow as pa

    dtypes = {"double": "float64", "float": "float32"}

    def value(arrow: pa.DataType) -> dict[str, Any]:
        return hub_value(dtypes.get(str(arrow), str(arrow)))

    def feature(field: pa.Field) -> dict[str, Any]:
        if field.name in images:
            return HUB_IMAGE
        if pa.types.is_list(field.type):
            return hub_list(value(field.type.value_type))
        return value(field.type)

    return {field.name: feature(field) for field in schema}


def hub_metadata(features: Mapping[str, Any]) -> dict[str, str]:
    """Return the Parquet metadata with which `datasets.load_dataset("parquet")` yields images."""
    return {"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)}


def hub_image_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that the Hugging Face metadata of a schema declares as images."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return [name for name, kind in features.items() if kind.get("_type") == "Image"]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def encode_tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Return an uncompressed tar of (name, bytes) members, in their order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            add_to_tar(tar, name, data)
    return buffer.getvalue()


def add_to_tar(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member to a tar without time and owner, and with mode 644, so that bytes repeat."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """Return an image as JPEG.

    Args:
        image: (H, W, 3) RGB, uint8.
        quality: 1 to 95, as Pillow defines it.
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
