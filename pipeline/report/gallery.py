"""The report's pictures: the latest run's review queue, and a bounded number from all over.

Masks and labels travel as class indices, not as colours: the page can then tell the class under the
pointer, hide classes, and paint where a mask differs from its label.
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
from pipeline.stages.records import LOWEST, UNSURE
from pipeline.storage.store import Store

IN_QUEUE = "in the review queue"
"""Why a picture is here."""


MAX_PICTURES = 96

MAX_BYTES = 8_000_000
"""Of all pictures, as they stand in the page."""


_MAX_SHARDS = 48

_MAX_TABLES = 12
"""Preview tables (chunks) that are read of one shard."""


_MAX_PREVIEW_PIXELS = 1_000_000

_READERS = 16


@dataclass(frozen=True)
class Gallery:
    """Pictures, JSON-able, and what kept others out.

    Attributes:
        pictures: see `_picture`.
        notes: what could not be read.
    """

    pictures: list[dict[str, Any]]
    notes: list[str]


def read_gallery(output: Store, summary: Summary, run: str) -> Gallery:
    """At most `MAX_PICTURES`: first the review queue of a run.

    Then one of every chosen shard, then, while there is room, others of these shards. What cannot
    be read is left out with a note: the masks are done.

    Args:
        output: where.
        summary: of every committed shard.
        run: the latest one; "" if there is none.
    """
    queue, notes = _queue(output, run, summary.labels)
    by_shard: list[list[dict[str, Any]]] = []
    shards = _choose(summary)
    tables = max(1, min(_MAX_TABLES, MAX_PICTURES // max(1, len(shards))))

    def read(shard: str) -> tuple[list[dict[str, Any]], str | None]:
        found: list[dict[str, Any]] = []
        try:
            for row in _previews(output, shard, tables):
                found.append(_picture(row, shard, summary.labels))
        except MissingError:
            pass  # previews are a courtesy: an output without them is whole
        except Exception as error:  # whatever a damaged preview raises, the masks are done
            return found, f"A preview of shard {shard} is unreadable: {error}"
        return found, None

    for found, note in map_ordered(read, shards, _READERS):
        by_shard.append(found)
        notes += [note] if note is not None else []
    turns = (item for turn in zip_longest(*by_shard) for item in turn if item is not None)
    return Gallery(list(_within(_each_once(queue, turns))), notes)


def _each_once(
    queue: list[dict[str, Any]], previews: Iterable[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The queue, then the previews that are not in it; who is in both has all its reasons."""
    held = {(picture["shard"], picture["key"]): picture for picture in queue}
    others = []
    for picture in previews:
        queued = held.get((picture["shard"], picture["key"]))
        if queued is None:
            others.append(picture)
        else:
            queued["why"] = list(dict.fromkeys([*queued["why"], *picture["why"]]))
    return chain(queue, others)


def _queue(output: Store, run: str, labels: LabelSet) -> tuple[list[dict[str, Any]], list[str]]:
    """Pictures of a run's review queue, as far as they are there; and what could not be read."""
    found: list[dict[str, Any]] = []
    try:
        for row in rows_of(output, run) if run else ():
            if row["image"] is not None and row["mask"] is not None:
                why = [IN_QUEUE, UNSURE if row["mean_iou"] is None else LOWEST]
                found.append(_picture({**row, "why": why}, row["shard"], labels))
    except Exception as error:  # whatever it raises, the masks are done
        return found, [f"The review queue of run {run} is unreadable: {error}"]
    return found, []


def _within(pictures: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    room = MAX_BYTES
    for picture in islice(pictures, MAX_PICTURES):
        room -= sum(len(picture[name] or "") for name in ("image", "label", "mask"))
        if room < 0:
            return
        yield picture


def _choose(summary: Summary) -> list[str]:
    """Those with the worst images and with the lowest scores, the rest spread over all others."""
    worst = [score.shard for score in summary.worst_of_all(_MAX_SHARDS // 2)]
    bad = list(dict.fromkeys([*summary.shortlist.shards(), *worst]))[: 2 * _MAX_SHARDS // 3]
    rest = [shard for shard in summary.spread if shard not in set(bad)]
    wanted = min(_MAX_SHARDS - len(bad), len(rest))
    return bad + [rest[(2 * i + 1) * len(rest) // (2 * wanted)] for i in range(wanted)]


def _previews(output: Store, shard: str, limit: int) -> Iterator[dict[str, Any]]:
    """Rows of a shard's preview tables, of at most `limit` tables, taken in turn."""
    where = commit_path(shard)
    commit = Commit.from_json(output.read(where), output.location(where))
    # The commit names them: how many chunks a shard had is not in the ledger.
    paths = [file.path for file in commit.files if is_preview(file.path)]
    chosen = paths[:: -(-len(paths) // limit) or 1]
    tables = (pq.ParquetFile(pa.BufferReader(output.read(path))) for path in chosen)
    rows = [table.read().to_pylist() for table in tables]
    for turn in zip_longest(*rows):
        yield from (row for row in turn if row is not None)


def _picture(row: Mapping[str, Any], shard: str, labels: LabelSet) -> dict[str, Any]:
    """A preview as the page takes it.

    `key`, `shard`, `why` (reasons); `size` of the picture and `small` of the preview (width,
    height); `image` (data URI), `label` and `mask` (see `_packed`); `confidence`, `accuracy`,
    `iou` (mean) or None; `classes`: (class, share of the mask, IU or None) of each class that
    occurs, the largest first.
    """
    image = decode_image(row["image"], max_pixels=_MAX_PREVIEW_PIXELS)
    mask = _classes(row["mask"], labels)
    label = None if row["label"] is None else _classes(row["label"], labels)
    found = _figures(row, mask, label, labels)
    height, width = mask.shape
    return {
        "key": shown(str(row["key"])),
        "shard": shown(shard),
        "why": row.get("why") or [],
        "size": [found.pop("width"), found.pop("height")],
        "small": [width, height],
        "image": f"data:image/jpeg;base64,{base64.b64encode(row['image']).decode()}"
        if image.shape[:2] == mask.shape
        else None,
        "label": None if label is None else _packed(label),
        "mask": _packed(mask),
        **found,
    }


def _classes(png: bytes, labels: LabelSet) -> NDArray[np.uint8]:
    values = decode_label(png, max_pixels=_MAX_PREVIEW_PIXELS)
    if ((values >= labels.num_classes) & (values != VOID)).any():
        raise ValueError(f"values of no class, up to {values[values != VOID].max()}")
    return values.astype(np.uint8)


def _packed(classes: NDArray[np.uint8]) -> str:
    """Class indices, row by row, one byte each: zlib, then base64."""
    return base64.b64encode(zlib.compress(classes.tobytes(), 9)).decode()


def _figures(
    row: Mapping[str, Any],
    mask: NDArray[np.uint8],
    label: NDArray[np.uint8] | None,
    labels: LabelSet,
) -> dict[str, Any]:
    """What is known of the image at full size; of an older output, what the preview tells."""
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
