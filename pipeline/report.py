"""The report: one HTML file made from commits and previews alone. It never reads an image of INPUT.

It is as small for a million shards as for twenty: every table, and every read, has a limit. It
holds all it needs (style, pictures) and asks no other host for anything.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice, zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from fcn_core.errors import FcnError
from fcn_core.images import decode_image, decode_label, overlay
from fcn_core.labels import VOID, LabelSet
from fcn_core.metrics import ConfusionMatrix, none_if_nan
from pipeline.commits import Commit, commit_path, quarantine_path
from pipeline.errors import MissingError
from pipeline.identity import read_identity
from pipeline.store import Store
from pipeline.summary import ShardScore, Summary

REPORT_PATH = "report.html"
MAX_SHARDS = 20
"""Rows in the tables of the worst and of the failed shards."""
MAX_QUARANTINED = 50
MAX_PICTURES = 12
MAX_MATRIX = 30
"""Classes of the largest confusion matrix that is drawn."""

_MAX_TEXT = 400
_MAX_PREVIEW_PIXELS = 1_000_000
_LEGEND = 6
_STAGES = "read decode forward write"
_USER_INFO = re.compile(r"(?<=://)[^/\s@]*@")


def write_report(output: Store, summary: Summary, failed: Mapping[str, str]) -> None:
    """Write `report.html`.

    What cannot be read (a preview, a quarantine table) is left out with a note: the masks are done.

    Args:
        output: where; previews and quarantine tables are read from there.
        summary: of every committed shard.
        failed: reasons by shard that is not committed.

    Raises:
        StoreError: the report cannot be written.
    """
    matrix, labels = summary.confusion, summary.labels
    by_iou = matrix.labeled_pixels > 0
    totals = _totals(summary)
    worst = _worst(summary, by_iou)
    rows, notes = _quarantined(output, summary)
    pictures, picture_notes = _pictures(output, _choose(summary, worst), labels)
    context = {
        "by_iou": by_iou,
        "labels": labels,
        "totals": totals,
        "scores": {p: matrix.scores(p).to_dict() for p in ("reference", "present")},
        "classes": _class_rows(matrix, totals["class_pixels"], labels),
        "confusion": [_shares(row) if row.any() else None for row in matrix.matrix],
        "matrix_fits": labels.num_classes <= MAX_MATRIX,
        "worst": worst,
        "failed": [(s, shown(reason)) for s, reason in islice(failed.items(), MAX_SHARDS)],
        "failed_total": len(failed),
        "quarantined": rows,
        "pictures": pictures,
        "notes": [shown(note) for note in (*notes, *picture_notes)],
        "provenance": _provenance(output),
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
    html = _environment().get_template("report.html").render(context)
    # A file name that is no UTF-8 must not cost the report.
    output.write(REPORT_PATH, html.encode("utf-8", "replace"))


def shown(text: str, limit: int = _MAX_TEXT) -> str:
    """A text from data as it may appear: of bounded length, and no credentials in its URLs.

    >>> shown("s3://key:secret@bucket/a.tar: nothing there", 22)
    's3://bucket/a.tar: no…'
    """
    text = _USER_INFO.sub("", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def percent(value: float | None, digits: int = 1) -> str:
    """A share for people.

    >>> percent(0.52349), percent(0.00001), percent(None)
    ('52.3%', '<0.1%', '—')
    """
    if value is None:
        return "—"
    least: float = 10**-digits
    return f"<{least}%" if 0 < value * 100 < least / 2 else f"{value * 100:.{digits}f}%"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"percent": percent, "shown": shown}
    return environment


def _totals(summary: Summary) -> dict[str, Any]:
    seconds = summary.seconds
    return {
        "shards": summary.shards,
        "images": summary.images,
        "labeled": summary.labeled_images,
        "failures": summary.failures,
        "class_pixels": summary.class_pixels,
        "confidence": summary.confidence_sum / summary.images if summary.images else None,
        "seconds": {s: seconds[s] for s in sorted(seconds, key=_STAGES.find)},
    }


def _class_rows(
    matrix: ConfusionMatrix, pixels: NDArray[np.int64], labels: LabelSet
) -> list[dict[str, Any]]:
    counts = {"truth": matrix.matrix.sum(axis=1), "predicted": matrix.matrix.sum(axis=0)}
    shares = {name: _shares(values) for name, values in {**counts, "masks": pixels}.items()}
    iou = matrix.scores().iou
    return [
        {
            "name": name,
            "colour": labels.palette[k],
            "iou": none_if_nan(iou[k]),
            **{column: values[k] for column, values in shares.items()},
        }
        for k, name in enumerate(labels.classes)
    ]


def _shares(counts: NDArray[np.int64]) -> list[float]:
    return [float(share) for share in counts / max(1, int(counts.sum()))]


def _worst(summary: Summary, by_iou: bool) -> list[ShardScore]:
    """The lowest scores: mean IU, or mean confidence where nothing has labels."""
    worst = summary.worst(MAX_SHARDS, has_labels=by_iou)
    return [score for score in worst if by_iou or score.images]


def _quarantined(output: Store, summary: Summary) -> tuple[list[dict[str, str]], list[str]]:
    rows: list[dict[str, str]] = []
    notes = []
    for shard in summary.with_failures[:MAX_QUARANTINED]:
        room = MAX_QUARANTINED - len(rows)
        try:
            found = _rows(output, quarantine_path(shard), room)
            rows += [{k: shown(row[k]) for k in ("key", "reason", "location")} for row in found]
        except Exception as error:
            notes.append(f"{quarantine_path(shard)} is unreadable: {error}")
        if len(rows) >= MAX_QUARANTINED:
            break
    return rows, notes


def _rows(output: Store, path: str, limit: int) -> list[dict[str, Any]]:
    batches = pq.ParquetFile(pa.BufferReader(output.read(path))).iter_batches(limit)
    return [row for batch in islice(batches, 1) for row in batch.to_pylist()]


def _choose(summary: Summary, worst: Sequence[ShardScore]) -> list[tuple[str, bool]]:
    """Shards to show and whether for their score: half the worst, half spread over the others."""
    bad = [score.shard for score in worst[: min(MAX_PICTURES, summary.shards + 1) // 2]]
    rest = [shard for shard in summary.spread if shard not in bad]
    wanted = min(MAX_PICTURES - len(bad), len(rest))
    spread = [rest[(2 * i + 1) * len(rest) // (2 * wanted)] for i in range(wanted)]
    return [(shard, True) for shard in bad] + [(shard, False) for shard in spread]


def _pictures(
    output: Store, chosen: Sequence[tuple[str, bool]], labels: LabelSet
) -> tuple[list[dict[str, Any]], list[str]]:
    """At most `MAX_PICTURES`: one of every shard, then, while there is room, its others."""
    notes: list[str] = []
    by_shard: list[list[dict[str, Any]]] = []
    for shard, is_worst in chosen:
        figures = []
        try:
            for row in _previews(output, shard, -(-MAX_PICTURES // len(chosen))):
                figures.append({"shard": shard, "is_worst": is_worst, **_figure(row, labels)})
        except MissingError:
            pass  # previews are a courtesy: an output without them is whole
        except Exception as error:  # whatever a damaged preview raises, the masks are done
            notes.append(f"A preview of shard {shard} is unreadable: {error}")
        by_shard.append(figures if is_worst else figures[::-1])
    turns = (figure for turn in zip_longest(*by_shard) for figure in turn if figure is not None)
    return sorted(islice(turns, MAX_PICTURES), key=lambda figure: not figure["is_worst"]), notes


def _previews(output: Store, shard: str, limit: int) -> Iterator[dict[str, Any]]:
    """Rows of the shard's preview tables, at most `limit` tables of two; the worst comes first."""
    where = commit_path(shard)
    commit = Commit.from_json(output.read(where), output.location(where))
    # The commit names them: how many chunks a shard had is not in the ledger.
    paths = [file.path for file in commit.files if file.path.startswith("_previews/")]
    for path in paths[:: -(-len(paths) // limit) or 1]:
        yield from _rows(output, path, 2)


def _figure(row: Mapping[str, Any], labels: LabelSet) -> dict[str, Any]:
    """The pictures of a preview as data URIs, each with a text that says what it shows."""
    image = decode_image(row["image"], max_pixels=_MAX_PREVIEW_PIXELS)
    mask = decode_label(row["mask"], max_pixels=_MAX_PREVIEW_PIXELS)
    buffer = io.BytesIO()
    painted = overlay(image, mask.astype(np.uint8), labels.palette)
    Image.fromarray(painted).save(buffer, "JPEG", quality=80)
    panels = [("image", "jpeg", row["image"], "the input image")]
    accuracy = None
    if row["label"] is not None:
        label = decode_label(row["label"], max_pixels=_MAX_PREVIEW_PIXELS)
        known = label != VOID
        accuracy = float((label == mask)[known].mean()) if known.any() else None
        panels.append(("label", "png", row["label"], _described(label, labels)))
    panels.append(("mask", "png", row["mask"], _described(mask, labels)))
    panels.append(("overlay", "jpeg", buffer.getvalue(), "the mask laid over the image"))
    return {
        "key": str(row["key"]),
        "accuracy": accuracy,
        "size": image.shape[1::-1],
        "legend": _largest(mask, labels),
        "panels": [
            (name, f"data:image/{kind};base64,{base64.b64encode(data).decode()}", text)
            for name, kind, data, text in panels
        ],
    }


def _largest(values: NDArray[np.uint16], labels: LabelSet) -> list[tuple[int, float]]:
    """Classes and their shares of the pixels that are not void, largest first."""
    pixels = np.bincount(values[values != VOID], minlength=labels.num_classes)
    order = np.argsort(-pixels, kind="stable")[:_LEGEND]
    return [(int(k), float(pixels[k] / pixels.sum())) for k in order if pixels[k]]


def _described(values: NDArray[np.uint16], labels: LabelSet) -> str:
    parts = [f"{labels.classes[k]} {percent(share, 0)}" for k, share in _largest(values, labels)]
    return ", ".join(parts) or "all void"


def _provenance(output: Store) -> dict[str, str]:
    try:
        found = read_identity(output)
    except FcnError:
        return {}
    parts = {
        "Input": shown(found.input),
        "Label set": f"{found.labels.name} ({found.labels.num_classes} classes)",
        "Variant": str(found.parts.get("variant", "unknown")),
        "Precision": str(found.parts.get("precision", "unknown")),
        "Weights SHA-256": str(found.parts.get("weights_sha256", "unknown")),
        "Fingerprint": found.fingerprint,
    }
    for package in ("fcn-pipeline", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            parts[f"{package} of this report"] = importlib.metadata.version(package)
    return parts
