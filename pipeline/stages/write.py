"""The write stage: masks to objects at keys that follow from the input alone.

Equal results give equal bytes: no times, no random names, fixed compression levels. What is
written, and nothing else, is named in the receipt.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence

import pyarrow as pa

from fcn_core.images import encode_image, encode_mask
from fcn_core.labels import LabelSet
from pipeline.concurrency import map_ordered
from pipeline.formats import (
    encode_jpeg,
    encode_parquet,
    encode_tar,
    hub_features,
    hub_metadata,
)
from pipeline.inputs.sample import Failure
from pipeline.paths import chunk_name, preview_path
from pipeline.stages.histograms import Histograms
from pipeline.stages.records import (
    LOWEST,
    UNSURE,
    Candidate,
    FileRecord,
    ImageResult,
    Receipt,
    SegmentedChunk,
    record,
)
from pipeline.stages.spec import RunSpec
from pipeline.storage import retry as retries

# At most this many bytes of masks per row group: Hugging Face viewers refuse groups over 300 MB.
_ROW_GROUP_BYTES = 64 * 2**20


_STREAMS = 8
"""Objects of a chunk that are written at once to a store far away: a PNG per picture, for one."""


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

_HUB_METADATA = hub_metadata(hub_features(MASK_SCHEMA, images=("mask",)))

QUARANTINE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "reason", "error", "location")]
)

_PREVIEW_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        *((name, pa.binary()) for name in ("image", "label", "mask")),
        ("why", pa.list_(pa.string())),
        # As in the table of masks: what was found at full size.
        *((name, MASK_SCHEMA.field(name).type) for name in (
            "height", "width", "class_pixels", "mean_confidence", "correct_pixels",
            "labeled_pixels", "iou")),
    ]
)  # fmt: skip


def write_chunk(segmented: SegmentedChunk, spec: RunSpec) -> Receipt:
    """Put the chunk's objects and say what they are.

    Raises:
        StoreError: the store refuses.
    """
    started = time.perf_counter()
    pngs = [encode_mask(result.mask, spec.labels.palette) for result in segmented.images]

    def put(item: tuple[str, bytes]) -> FileRecord:
        spec.output.write(*item)
        return record(*item)

    objects = _objects(segmented, pngs, spec)
    # A disk gains nothing by threads; they cost a tenth of a millisecond each time.
    done = map(put, objects) if spec.output.is_local else map_ordered(put, objects, _STREAMS)
    files = tuple(done)
    images = segmented.images
    return Receipt(
        shard=segmented.shard,
        seq=segmented.seq,
        count=segmented.count,
        files=files,
        images=len(images),
        labeled_images=sum(result.labeled_pixels is not None for result in images),
        failures=segmented.failures,
        confusion=tuple(tuple(row) for row in segmented.confusion.matrix.tolist()),
        class_pixels=tuple(
            sum(result.class_pixels[k] for result in images) for k in range(spec.labels.num_classes)
        ),
        confidence_sum=math.fsum(result.mean_confidence for result in images),
        histograms=Histograms.count(
            [result.class_pixels for result in images],
            [result.mean_confidence for result in images],
            [result.mask.shape for result in images],
            spec.labels.num_classes,
        ),
        candidates=_candidates(segmented),
        seconds={**segmented.seconds, "write": time.perf_counter() - started},
        store_retries=segmented.store_retries + retries.drain(),
    )


def quarantine_table(failures: Sequence[Failure]) -> bytes:
    """The Parquet bytes of a quarantine table."""
    return encode_parquet(
        pa.Table.from_pylist([vars(f) for f in failures], schema=QUARANTINE_SCHEMA)
    )


def _objects(
    segmented: SegmentedChunk, pngs: Sequence[bytes], spec: RunSpec
) -> Iterator[tuple[str, bytes]]:
    name = chunk_name(segmented.shard, segmented.seq, segmented.count)
    if "parquet" in spec.masks:
        yield f"masks/{name}.parquet", _mask_table(segmented, pngs, spec.labels)
    if "png" in spec.masks:
        for result, png in zip(segmented.images, pngs, strict=True):
            yield f"png/{segmented.shard}/{result.key}.png", png
    if "tar" in spec.masks:
        yield f"tar/{name}.tar", _tar(segmented.images, pngs)
    if "confidence" in spec.masks:
        for result in segmented.images:
            assert result.confidence is not None
            path = f"confidence/{segmented.shard}/{result.key}.png"
            yield path, encode_image(result.confidence)
    if segmented.previews:
        yield preview_path(name), _preview_table(segmented, spec.labels)


def _candidates(segmented: SegmentedChunk) -> tuple[Candidate, ...]:
    """The worst images of a chunk, with labels and without: they have previews."""
    path = preview_path(chunk_name(segmented.shard, segmented.seq, segmented.count))
    results = {result.key: result for result in segmented.images}
    worst = [
        results[preview.key]
        for preview in segmented.previews
        if (UNSURE if results[preview.key].mean_iou is None else LOWEST) in preview.why
    ]
    return tuple(
        Candidate(image.key, _null_if_nan(image.mean_confidence), image.mean_iou, path)
        for image in worst
    )


def _mask_table(segmented: SegmentedChunk, pngs: Sequence[bytes], labels: LabelSet) -> bytes:
    rows = [
        {
            **_figures(result),
            "shard": segmented.shard,
            "mask": {"bytes": png, "path": f"{result.key}.png"},
        }
        for result, png in zip(segmented.images, pngs, strict=True)
    ]
    table = pa.Table.from_pylist(rows, schema=MASK_SCHEMA)
    table = table.replace_schema_metadata({**_HUB_METADATA, "classes": _names(labels)})
    total = sum(len(png) for png in pngs)
    per_group = max(1, len(rows) * _ROW_GROUP_BYTES // max(total, _ROW_GROUP_BYTES))
    return encode_parquet(table, per_group)


def _figures(result: ImageResult) -> dict[str, object]:
    """What tables tell of an image besides its mask."""
    return {
        "key": result.key,
        "height": result.mask.shape[0],
        "width": result.mask.shape[1],
        "class_pixels": result.class_pixels,
        "mean_confidence": result.mean_confidence,
        "correct_pixels": result.correct_pixels,
        "labeled_pixels": result.labeled_pixels,
        "iou": None if result.iou is None else [_null_if_nan(v) for v in result.iou],
    }


def _names(labels: LabelSet) -> str:
    return json.dumps(list(labels.classes))


def _null_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _tar(images: Sequence[ImageResult], pngs: Sequence[bytes]) -> bytes:
    pairs = zip(images, pngs, strict=True)
    return encode_tar((f"{result.key}.png", png) for result, png in pairs)


def _preview_table(segmented: SegmentedChunk, labels: LabelSet) -> bytes:
    results = {result.key: result for result in segmented.images}
    rows = []
    for preview in segmented.previews:
        label = preview.label
        pictures = {
            "image": encode_jpeg(preview.image, quality=80),
            "label": None if label is None else encode_mask(label, labels.palette),
            "mask": encode_mask(preview.mask, labels.palette),
        }
        rows.append({**_figures(results[preview.key]), "why": preview.why, **pictures})
    return encode_parquet(pa.Table.from_pylist(rows, schema=_PREVIEW_SCHEMA))
