"""Select the images of the report: the review queue of the latest run, and previews of all shards.

The page receives masks and labels as class indices, not as colors. So it can name the class under
the pointer, hide classes, and mark the pixels where a mask differs from its label.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fcn_core.images import decode_image, decode_label
from fcn_core.labels import VOID, LabelSet
from fcn_core.metrics import ConfusionMatrix, none_if_nan
from pipeline.concurrency import map_ordered
from pipeline.errors import MissingError
from pipeline.output.commits import Commit
from pipeline.output.review import rows_of
from pipeline.output.summary import Summary
from pipeline.paths import commit_path, is_preview
from pipeline.report.page import shown
from pipeline.stages.records import LEAST_CONFIDENT, LOWEST_IOU
from pipeline.storage.store import Store

IN_QUEUE = "in the review queue"
"""Reason for an image of the review queue; the other reasons are those of its preview."""

MAX_IMAGES = 96
"""Most images in the report."""

MAX_BYTES = 8_000_000
"""Most bytes of all images together, as encoded in the page."""
_MAX_SHARDS = 48

_MAX_TABLES = 12
"""Most preview tables (one per chunk) that are read from one shard."""


_MAX_PREVIEW_PIXELS = 1_000_000

_READERS = 16


@dataclass(frozen=True)
class Gallery:
    """Images of the report.

    Attributes:
        images: JSON-able dictionaries; see `_entry`.
        notes: sentences about previews that could not be read.
    """

    images: list[dict[str, Any]]
    notes: list[str]


def read_gallery(output: Store, summary: Summary, run: str) -> Gallery:
    """Return at most `MAX_IMAGES` images of an output.

    First comes the review queue of the run, then one image of every chosen shard, then more images
    of these shards while there is room. A preview that cannot be read is left out with a note.

    Args:
        output: OUTPUT, for previews and the review queue.
        summary: merged figures of every committed shard.
        run: name of the latest run; "" if there is none.
    """
    queue, notes = _queue(output, run, summary.labels)
    by_shard: list[list[dict[str, Any]]] = []
    shards = _choose_shards(summary)
    tables = max(1, min(_MAX_TABLES, MAX_IMAGES // max(1, len(shards))))

    def read(shard: str) -> tuple[list[dict[str, Any]], str | None]:
        images: list[dict[str, Any]] = []
        try:
            for row in _previews(output, shard, tables):
                images.append(_entry(row, shard, summary.labels))
        except MissingError:
            pass  # previews are optional: an output without them is complete
        except Exception as error:  # a damaged preview may raise anything; the report goes on
            return images, f"A preview of shard {shard} is unreadable: {error}"
        return images, None

    for images, note in map_ordered(read, shards, _READERS):
        by_shard.append(images)
        notes += [note] if note is not None else []
    turns = (item for turn in zip_longest(*by_shard) for item in turn if item is not None)
    return Gallery(list(_within_limits(_each_once(queue, turns))), notes)


def _each_once(
    queue: list[dict[str, Any]], previews: Iterable[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield the queue, then the other previews; an image in both gets the reasons of both."""
    in_queue = {(image["shard"], image["key"]): image for image in queue}
    others = []
    for image in previews:
        queued = in_queue.get((image["shard"], image["key"]))
        if queued is None:
            others.append(image)
        else:
            queued["why"] = list(dict.fromkeys([*queued["why"], *image["why"]]))
    return chain(queue, others)


def _queue(output: Store, run: str, labels: LabelSet) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the images of a run's review queue that have a preview, and notes on failures."""
    images: list[dict[str, Any]] = []
    try:
        for row in rows_of(output, run) if run else ():
            if row["image"] is not None and row["mask"] is not None:
                why = [IN_QUEUE, LEAST_CONFIDENT if row["mean_iou"] is None else LOWEST_IOU]
                images.append(_entry({**row, "why": why}, row["shard"], labels))
    except Exception as error:  # a damaged table may raise anything; the report goes on
        return images, [f"The review queue of run {run} is unreadable: {error}"]
    return images, []


def _within_limits(images: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    room = MAX_BYTES
    for image in islice(images, MAX_IMAGES):
        room -= sum(len(image[name] or "") for name in ("image", "label", "mask"))
        if room < 0:
            return
        yield image


def _choose_shards(summary: Summary) -> list[str]:
    """Return shards with the worst images or lowest scores, and others spread over the rest."""
    worst = [score.shard for score in summary.worst_of_all(_MAX_SHARDS // 2)]
    bad = list(dict.fromkeys([*summary.shortlist.shards(), *worst]))[: 2 * _MAX_SHARDS // 3]
    rest = [shard for shard in summary.spread if shard not in set(bad)]
    wanted = min(_MAX_SHARDS - len(bad), len(rest))
    return bad + [rest[(2 * i + 1) * len(rest) // (2 * wanted)] for i in range(wanted)]


def _previews(output: Store, shard: str, limit: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of at most `limit` preview tables of a shard, one row of each in turn."""
    where = commit_path(shard)
    commit = Commit.from_json(output.read(where), output.location(where))
    # Read the commit: the commit index does not hold the number of chunks of a shard.
    paths = [file.path for file in commit.files if is_preview(file.path)]
    chosen = paths[:: -(-len(paths) // limit) or 1]
    tables = (pq.ParquetFile(pa.BufferReader(output.read(path))) for path in chosen)
    rows = [table.read().to_pylist() for table in tables]
    for turn in zip_longest(*rows):
        yield from (row for row in turn if row is not None)


def _entry(row: Mapping[str, Any], shard: str, labels: LabelSet) -> dict[str, Any]:
    """Return the dictionary that the page's scripts read for one image.

    Its keys: `key`, `shard`, `why` (list of reasons); `size` of the image, `small` of the preview
    (width, height); `image` (data URI), `label` and `mask` (see `_packed`); `confidence`,
    `accuracy`, `iou` (mean IoU), each a share or None; `classes`: (class index, share of the mask,
    IoU or None) of each class that occurs, the largest first.
    """
    image = decode_image(row["image"], max_pixels=_MAX_PREVIEW_PIXELS)
    mask = _classes(row["mask"], labels)
    label = None if row["label"] is None else _classes(row["label"], labels)
    figures = _figures(row, mask, label, labels)
    height, width = mask.shape
    return {
        "key": shown(str(row["key"])),
        "shard": shown(shard),
        "why": row.get("why") or [],
        "size": [figures.pop("width"), figures.pop("height")],
        "small": [width, height],
        "image": f"data:image/jpeg;base64,{base64.b64encode(row['image']).decode()}"
        if image.shape[:2] == mask.shape
        else None,
        "label": None if label is None else _packed(label),
        "mask": _packed(mask),
        **figures,
    }


def _classes(png: bytes, labels: LabelSet) -> NDArray[np.uint8]:
    values = decode_label(png, max_pixels=_MAX_PREVIEW_PIXELS)
    if ((values >= labels.num_classes) & (values != VOID)).any():
        raise ValueError(f"values of no class, up to {values[values != VOID].max()}")
    return values.astype(np.uint8)


def _packed(classes: NDArray[np.uint8]) -> str:
    """Return class indices, one byte each in row order, compressed with zlib, as base64."""
    return base64.b64encode(zlib.compress(classes.tobytes(), 9)).decode()


def _figures(
    row: Mapping[str, Any],
    mask: NDArray[np.uint8],
    label: NDArray[np.uint8] | None,
    labels: LabelSet,
) -> dict[str, Any]:
    """Return the figures of the image at full size; for an older output, of its preview."""
    if row.get("class_pixels") is not None:
        correct, known, iou = row["correct_pixels"], row["labeled_pixels"], row["iou"]
        pixels, confidence = row["class_pixels"], row["mean_confidence"]
        size = {"width": row["width"], "height": row["height"]}
    else:
        matrix = ConfusionMatrix(labels.num_classes)
        if label is not None:
            matrix.update(label, mask)
        correct, known = matrix.correct_pixels, matrix.labeled_pixels
        iou = matrix.scores().to_dict()["iou"]
        pixels = np.bincount(mask[mask != VOID], minlength=labels.num_classes).tolist()
        confidence, size = None, {"width": mask.shape[1], "height": mask.shape[0]}
    ious = iou or [None] * len(pixels)
    scored = [value for value in ious if value is not None]
    total = max(1, sum(pixels))
    classes = [
        [k, round(pixels[k] / total, 5), None if ious[k] is None else round(ious[k], 4)]
        for k in sorted(range(len(pixels)), key=lambda k: (-pixels[k], k))
        if pixels[k] or ious[k] is not None
    ]
    return {
        **size,
        "confidence": None if confidence is None else none_if_nan(round(confidence, 5)),
        "accuracy": round(correct / known, 5) if known else None,
        "iou": round(sum(scored) / len(scored), 5) if scored else None,
        "classes": classes,
    }
