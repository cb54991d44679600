"""The write stage: write the masks of a chunk as objects, and return the receipt.

The paths follow from the input alone. Equal results give equal bytes: no times, no random names,
fixed compression levels. The receipt names exactly the objects that were written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import pyarrow as pa

from fcn_core.images import encode_mask
from fcn_core.labels import LabelSet
from fcn_core.metrics import none_if_nan
from pipeline.concurrency import map_ordered
from pipeline.formats import (
    encode_jpeg,
    encode_parquet,
)
from pipeline.paths import chunk_name, preview_path
from pipeline.stages.histograms import Histograms
from pipeline.stages.mask_formats import MASK_FORMATS, MASK_SCHEMA, image_figures
from pipeline.stages.records import (
    LEAST_CONFIDENT,
    LOWEST_IOU,
    Candidate,
    FileRecord,
    Receipt,
    SegmentedChunk,
    record,
)
from pipeline.stages.shard_stats import ShardStats
from pipeline.stages.spec import RunSpec
from pipeline.storage import retry

_STREAMS = 8
"""Objects of a chunk that are written in parallel to a remote store, such as one PNG per image."""


_PREVIEW_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        *((name, pa.binary()) for name in ("image", "label", "mask")),
        ("why", pa.list_(pa.string())),
        # As in the table of masks: figures of the full-size image.
        *((name, MASK_SCHEMA.field(name).type) for name in (
            "height", "width", "class_pixels", "mean_confidence", "correct_pixels",
            "labeled_pixels", "iou")),
    ]
)  # fmt: skip


def write_chunk(segmented: SegmentedChunk, spec: RunSpec) -> Receipt:
    """Write the objects of a chunk, and return its receipt.

    Raises:
        StoreError: an object cannot be written.
    """
    started = time.perf_counter()
    pngs = [encode_mask(result.mask, spec.labels.palette) for result in segmented.images]

    def put(item: tuple[str, bytes]) -> FileRecord:
        spec.output.write(*item)
        return record(*item)

    objects = _objects(segmented, pngs, spec)
    # Threads do not make a local disk faster, but each costs 0.1 ms to start.
    done = map(put, objects) if spec.output.is_local else map_ordered(put, objects, _STREAMS)
    return Receipt(
        shard=segmented.shard,
        seq=segmented.seq,
        count=segmented.count,
        files=tuple(done),
        stats=_stats(segmented, spec.labels.num_classes),
        failures=segmented.failures,
        candidates=_candidates(segmented),
        seconds={**segmented.seconds, "write": time.perf_counter() - started},
        store_retries=segmented.store_retries + retry.drain(),
    )


def _stats(segmented: SegmentedChunk, num_classes: int) -> ShardStats:
    images = segmented.images
    return ShardStats(
        images=len(images),
        labeled_images=sum(result.labeled_pixels is not None for result in images),
        failures=len(segmented.failures),
        confusion=segmented.confusion,
        class_pixels=tuple(
            sum(result.class_pixels[k] for result in images) for k in range(num_classes)
        ),
        confidence_sum=math.fsum(result.mean_confidence for result in images),
        histograms=Histograms.count(
            [result.class_pixels for result in images],
            [result.mean_confidence for result in images],
            [result.mask.shape for result in images],
            num_classes,
        ),
    )


def _objects(
    segmented: SegmentedChunk, pngs: Sequence[bytes], spec: RunSpec
) -> Iterator[tuple[str, bytes]]:
    for mask_format in MASK_FORMATS.values():
        if mask_format.name in spec.masks:
            yield from mask_format.objects(segmented, pngs, spec.labels)
    if segmented.previews:
        name = chunk_name(segmented.shard, segmented.seq, segmented.count)
        yield preview_path(name), encode_previews(segmented, spec.labels)


def _candidates(segmented: SegmentedChunk) -> tuple[Candidate, ...]:
    """Return the worst images of a chunk, with and without labels. All of them have previews."""
    path = preview_path(chunk_name(segmented.shard, segmented.seq, segmented.count))
    results = {result.key: result for result in segmented.images}
    worst = [
        results[preview.key]
        for preview in segmented.previews
        if (LEAST_CONFIDENT if results[preview.key].mean_iou is None else LOWEST_IOU) in preview.why
    ]
    return tuple(
        Candidate(image.key, none_if_nan(image.mean_confidence), image.mean_iou, path)
        for image in worst
    )


def encode_previews(segmented: SegmentedChunk, labels: LabelSet) -> bytes:
    """Return the bytes of the table of previews of a chunk."""
    results = {result.key: result for result in segmented.images}
    rows = []
    for preview in segmented.previews:
        label = preview.label
        encoded = {
            "image": encode_jpeg(preview.image, quality=80),
            "label": None if label is None else encode_mask(label, labels.palette),
            "mask": encode_mask(preview.mask, labels.palette),
        }
        rows.append({**image_figures(results[preview.key]), "why": preview.why, **encoded})
    return encode_parquet(pa.Table.from_pylist(rows, schema=_PREVIEW_SCHEMA))
