"""The table of mask formats: one entry per format with its paths, encoder and decoder.

A new format is one entry in `MASK_FORMATS` and one name in `pipeline.config.MaskFormatName`.
Writing, planning, `fcnseg verify`, `gc` and `export` read the table.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fcn_core.images import encode_image
from fcn_core.labels import LabelSet
from fcn_core.metrics import none_if_nan
from pipeline.formats import encode_parquet, encode_tar, hub_features, hub_metadata, read_parquet
from pipeline.paths import chunk_name
from pipeline.stages.records import ImageResult, SegmentedChunk

_ROW_GROUP_BYTES = 64 * 2**20
"""Most bytes of masks in a row group: Hugging Face viewers refuse groups over 300 MB."""

_ROWS_AT_ONCE = 64
"""Rows of a table of masks that are in memory as Python objects while it is read."""

MASK_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("mask", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("class_pixels", pa.list_(pa.int64())),
        ("mean_confidence", pa.float64()),
        ("correct_pixels", pa.int64()),
        ("labeled_pixels", pa.int64()),
        ("iou", pa.list_(pa.float32())),
    ]
)
"""Columns of a table of masks, without its metadata."""


@dataclass(frozen=True)
class StoredMask:
    """A mask as it is stored in an object of OUTPUT.

    Attributes:
        key: key of the image within its shard; the path of an object that holds one image.
        png: bytes of the PNG.
        row: the other columns of a table of masks; None in formats without a table.
    """

    key: str
    png: bytes
    row: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class MaskFormat:
    """One way to store the masks of a shard.

    Attributes:
        name: name of the format in `output.masks` and in commits.
        folder: top folder of its objects below OUTPUT.
        suffix: ending of its objects.
        is_per_image: whether every image is an object of its own, `folder/shard/key.suffix`; else
            every chunk is one, `folder/chunk.suffix`.
        encode: contents of a chunk's objects, in the order of `paths`. Arguments: the chunk, its
            masks as PNG bytes, the label set.
        decode: masks in an object, from its path and its bytes. Raises the errors of pyarrow and
            tarfile, and OS errors.
        has_classes: whether the PNGs hold class indices. Others accompany masks and are no
            substitute for them.
    """

    name: str
    folder: str
    suffix: str
    is_per_image: bool
    encode: Callable[[SegmentedChunk, Sequence[bytes], LabelSet], Iterator[bytes]]
    decode: Callable[[str, bytes], Iterator[StoredMask]]
    has_classes: bool = True

    def image_path(self, shard: str, key: str) -> str:
        """Return the path of one image's object, of a format with an object for every image."""
        return f"{self.folder}/{shard}/{key}{self.suffix}"

    def chunk_path(self, shard: str, seq: int, count: int) -> str:
        """Return the path of one chunk's object, of a format with an object for every chunk."""
        return f"{self.folder}/{chunk_name(shard, seq, count)}{self.suffix}"

    def objects(
        self, chunk: SegmentedChunk, pngs: Sequence[bytes], labels: LabelSet
    ) -> Iterator[tuple[str, bytes]]:
        """Yield path and bytes of the objects of a chunk, each encoded when it is needed."""
        if self.is_per_image:
            paths = [self.image_path(chunk.shard, result.key) for result in chunk.images]
        else:
            paths = [self.chunk_path(chunk.shard, chunk.seq, chunk.count)]
        yield from zip(paths, self.encode(chunk, pngs, labels), strict=True)

    def has_path(self, path: str) -> bool:
        """Return whether a path below OUTPUT belongs to this format."""
        start, end = f"{self.folder}/", self.suffix
        return path.startswith(start) and path.endswith(end) and len(path) > len(start + end)

    def keys(self, shard: str, paths: Sequence[str]) -> list[str]:
        """Return the keys of a shard's images from paths, of a format with an object for each."""
        start = f"{self.folder}/{shard}/"
        return [path[len(start) : -len(self.suffix)] for path in paths if path.startswith(start)]


def format_of(path: str) -> MaskFormat | None:
    """Return the format that a path below OUTPUT belongs to; None for other objects."""
    return next((one for one in MASK_FORMATS.values() if one.has_path(path)), None)


def image_figures(result: ImageResult) -> dict[str, object]:
    """Return the columns about an image that tables of masks and of previews share."""
    return {
        "key": result.key,
        "height": result.mask.shape[0],
        "width": result.mask.shape[1],
        "class_pixels": result.class_pixels,
        "mean_confidence": result.mean_confidence,
        "correct_pixels": result.correct_pixels,
        "labeled_pixels": result.labeled_pixels,
        "iou": None if result.iou is None else [none_if_nan(value) for value in result.iou],
    }


def _encode_table(
    chunk: SegmentedChunk, pngs: Sequence[bytes], labels: LabelSet
) -> Iterator[bytes]:
    rows = [
        {
            **image_figures(result),
            "shard": chunk.shard,
            "mask": {"bytes": png, "path": f"{result.key}.png"},
        }
        for result, png in zip(chunk.images, pngs, strict=True)
    ]
    table = pa.Table.from_pylist(rows, schema=MASK_SCHEMA)
    classes = json.dumps(list(labels.classes))
    table = table.replace_schema_metadata({**_HUB_METADATA, "classes": classes})
    total = sum(len(png) for png in pngs)
    per_group = max(1, len(rows) * _ROW_GROUP_BYTES // max(total, _ROW_GROUP_BYTES))
    yield encode_parquet(table, per_group)


def _decode_table(_path: str, data: bytes) -> Iterator[StoredMask]:
    columns = ["key", "mask", "height", "width", "class_pixels", "mean_confidence"]
    table = read_parquet(data).select(columns)
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            yield StoredMask(row["key"], row["mask"]["bytes"], row)


def _encode_tar(chunk: SegmentedChunk, pngs: Sequence[bytes], _: LabelSet) -> Iterator[bytes]:
    pairs = zip(chunk.images, pngs, strict=True)
    yield encode_tar((f"{result.key}.png", png) for result, png in pairs)


def _decode_tar(_path: str, data: bytes) -> Iterator[StoredMask]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            handle = tar.extractfile(member)
            yield StoredMask(member.name.removesuffix(".png"), handle.read() if handle else b"")


def _encode_pngs(_chunk: SegmentedChunk, pngs: Sequence[bytes], _: LabelSet) -> Iterator[bytes]:
    yield from pngs


def _encode_confidence(
    chunk: SegmentedChunk, _pngs: Sequence[bytes], _: LabelSet
) -> Iterator[bytes]:
    for result in chunk.images:
        assert result.confidence is not None
        yield encode_image(result.confidence)


def _decode_png(path: str, data: bytes) -> Iterator[StoredMask]:
    yield StoredMask(path, data)


_HUB_METADATA = hub_metadata(hub_features(MASK_SCHEMA, images=("mask",)))

MASK_FORMATS = {
    one.name: one
    for one in (
        MaskFormat("parquet", "masks", ".parquet", False, _encode_table, _decode_table),
        MaskFormat("png", "png", ".png", True, _encode_pngs, _decode_png),
        MaskFormat("tar", "tar", ".tar", False, _encode_tar, _decode_tar),
        MaskFormat(
            "confidence", "confidence", ".png", True, _encode_confidence, _decode_png,
            has_classes=False,
        ),
    )
}  # fmt: skip
"""All formats by name, in the order in which a chunk's objects are written."""
