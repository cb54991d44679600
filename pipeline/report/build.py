"""Build the report of an output: one HTML file, from commits and previews alone, never from INPUT.

Every table, chart and read has a limit, so a million shards give no larger report than a thousand.
The file holds its styles, scripts and images, and loads nothing from another host.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fcn_core.errors import FcnError
from fcn_core.labels import LabelSet
from fcn_core.metrics import none_if_nan
from pipeline.manifest import OUTPUT_FORMAT, Manifest, read_manifest
from pipeline.output.shard_figures import FEWEST_SHARDS, MAX_CELLS, MAX_UNITS
from pipeline.output.summary import Summary
from pipeline.paths import REPORT, quarantine_path
from pipeline.report.gallery import Gallery, read_gallery
from pipeline.report.page import page, shown
from pipeline.report.runs import Runs, histograms_of, runs_of
from pipeline.storage.store import Store

MAX_SHARDS = 20
"""Rows in the table of the worst shards and in the table of the failed shards."""

MAX_QUARANTINED = 50
"""Rows in the table of quarantined images."""

_STAGES = "read decode forward write"

_PACKAGES = ("fcn-pipeline", "torch", "numpy", "pyarrow", "pillow")

_TILES = {
    "mean_iou": ("Mean IoU", "intersection over union, averaged over classes"),
    "pixel_accuracy": ("Pixel accuracy", "share of labeled pixels that are correct"),
    "mean_accuracy": ("Mean accuracy", "averaged over the classes in the ground truth"),
    "frequency_weighted_iou": ("Frequency-weighted IoU", "IoU weighted by share of ground truth"),
}


def write_report(output: Store, summary: Summary, failed: Mapping[str, str]) -> None:
    """Write `report.html` to OUTPUT.

    A preview or quarantine table that cannot be read is left out with a note in the report.

    Args:
        output: OUTPUT; previews, quarantine tables and the history are read from it.
        summary: merged figures of every committed shard.
        failed: reasons by name of the shards that could not be committed.

    Raises:
        StoreError: the report cannot be written.
    """
    is_scored = summary.confusion.labeled_pixels > 0
    intervals = summary.figures.intervals()
    classes = _classes(summary, intervals)
    quarantined = _Quarantined(output, summary)
    runs = runs_of(output)
    gallery = read_gallery(output, summary, runs.latest)
    identity = _identity(output)
    context = {
        "is_scored": is_scored,
        "labels": summary.labels,
        "totals": _totals(summary),
        "tiles": _tiles(summary, intervals),
        "present": none_if_nan(summary.confusion.scores("present").mean_iou),
        "interval_note": _interval_note(summary),
        "classes": classes,
        "stages": _stages(summary),
        "worst": summary.worst_of_all(MAX_SHARDS),
        "most_cells": MAX_CELLS,
        "runs": runs.rows,
        "counted": summary.stats.histograms.images,
        "failed": [(s, shown(reason)) for s, reason in islice(failed.items(), MAX_SHARDS)],
        "failed_total": len(failed),
        "quarantined": quarantined,
        "pictures": len(gallery.images),
        "from_shards": len({image["shard"] for image in gallery.images}),
        "notes": [shown(note) for note in (*quarantined.notes, *gallery.notes, *runs.notes)],
        "input": None if identity is None else shown(identity.input),
        "provenance": {} if identity is None else _provenance(identity, runs),
        "config": None if identity is None else _config(identity),
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
    output.write(REPORT, page(context, _data(summary, classes, gallery, runs)))


def _data(
    summary: Summary, classes: list[dict[str, Any]], gallery: Gallery, runs: Runs
) -> dict[str, Any]:
    """Return the data of the charts and of the gallery, JSON-able."""
    labels = summary.labels
    return {
        "classes": [shown(name, 60) for name in labels.classes],
        "colours": [_hex(colour) for colour in labels.palette],
        "firstIsBackground": labels.classes[0].lower() in ("background", "void", "unlabeled"),
        "scored": summary.confusion.labeled_pixels > 0,
        "shares": {k: [row[k] for row in classes] for k in ("truth", "predicted", "masks")},
        "confusion": summary.confusion.matrix.tolist(),
        "shards": summary.figures.cells(),
        "ious": summary.figures.histogram(),
        "histograms": histograms_of(summary.stats.histograms),
        "runs": runs.rows,
        "pictures": gallery.images,
    }


def _hex(colour: tuple[int, int, int]) -> str:
    return "#" + bytes(colour).hex()


def _totals(summary: Summary) -> dict[str, Any]:
    return {
        "shards": summary.shards,
        "images": summary.images,
        "labeled": summary.labeled_images,
        "failures": summary.failures,
        "confidence": summary.stats.confidence_sum / summary.images if summary.images else None,
    }


def _tiles(summary: Summary, intervals: Mapping[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    scores = summary.confusion.scores().to_dict()
    return [
        {"name": title, "about": about, "value": scores[name], "interval": _interval(
            intervals[name] if name in intervals else None)}
        for name, (title, about) in _TILES.items()
    ]  # fmt: skip


def _interval(bounds: NDArray[np.float64] | None) -> tuple[float, float] | None:
    if bounds is None or np.isnan(bounds).any():
        return None
    return float(bounds[0]), float(bounds[1])


def _interval_note(summary: Summary) -> str:
    shards = summary.figures.labeled
    if shards < FEWEST_SHARDS:
        return (
            f"No intervals: they are estimated from the differences between shards, which needs "
            f"at least {FEWEST_SHARDS} labeled shards; this output has {shards}. "
            "fcnseg evaluate estimates intervals over images."
        )
    units = f"{shards:,} labeled shards"
    if summary.figures.expected > MAX_UNITS:
        units = f"{MAX_UNITS:,} random groups of {units}"
    rough = " With so few shards they are rough." if shards < 30 else ""
    return (
        f"Intervals: 95 %, Poisson bootstrap over {units}, 1,000 replicates.{rough} "
        "fcnseg evaluate estimates intervals over images."
    )


def _classes(
    summary: Summary, intervals: Mapping[str, NDArray[np.float64]]
) -> list[dict[str, Any]]:
    matrix = summary.confusion
    truth, predicted = matrix.matrix.sum(axis=1), matrix.matrix.sum(axis=0)
    shares = [
        _shares(counts) for counts in (truth, predicted, np.array(summary.stats.class_pixels))
    ]
    scores = matrix.scores()
    bounds = intervals.get("iou")
    return [
        {
            "name": name,
            "colour": _hex(summary.labels.palette[k]),
            "iou": none_if_nan(scores.iou[k]),
            "interval": _interval(None if bounds is None else bounds[:, k]),
            "accuracy": float(matrix.matrix[k, k] / truth[k]) if truth[k] else None,
            **{name: column[k] for name, column in zip(
                ("truth", "predicted", "masks"), shares, strict=True)},
        }
        for k, name in enumerate(summary.labels.classes)
    ]  # fmt: skip


def _shares(counts: NDArray[np.int64]) -> list[float]:
    return [float(share) for share in counts / max(1, int(counts.sum()))]


def _stages(summary: Summary) -> list[dict[str, Any]]:
    total = sum(summary.seconds.values())
    return [
        {
            "name": stage,
            "seconds": summary.seconds[stage],
            "share": summary.seconds[stage] / total if total else None,
            "rate": summary.images / summary.seconds[stage] if summary.seconds[stage] else None,
        }
        for stage in sorted(summary.seconds, key=_STAGES.find)
    ]


class _Quarantined:
    """Quarantined images of the first shards that have any.

    Args:
        output: OUTPUT, for the quarantine tables.
        summary: merged figures of every committed shard.

    Attributes:
        rows: texts by `shard`, `key`, `error`, `reason`, `location`; at most `MAX_QUARANTINED`.
        kinds: numbers of images by class of error, the most frequent first.
        counted: number of images in `kinds`.
        notes: sentences about tables that could not be read.
    """

    def __init__(self, output: Store, summary: Summary) -> None:
        self.rows: list[dict[str, str]] = []
        self.notes: list[str] = []
        kinds: Counter[str] = Counter()
        for shard in summary.with_failures[:MAX_QUARANTINED]:
            try:
                table = pq.ParquetFile(pa.BufferReader(output.read(quarantine_path(shard))))
                errors = table.read(["error"])["error"].to_pylist()
                self._add_rows(shard, table)
                kinds.update(errors)
            except Exception as error:  # a damaged table may raise anything; the report goes on
                self.notes.append(f"{quarantine_path(shard)} is unreadable: {error}")
        self.kinds = kinds.most_common()
        self.counted = sum(kinds.values())

    def _add_rows(self, shard: str, table: pq.ParquetFile) -> None:
        room = MAX_QUARANTINED - len(self.rows)
        for batch in islice(table.iter_batches(room) if room else (), 1):
            for row in batch.to_pylist():
                texts = {name: shown(row[name]) for name in ("key", "error", "reason", "location")}
                self.rows.append({"shard": shown(shard), **texts})


def _identity(output: Store) -> Manifest | None:
    try:
        return read_manifest(output)
    except FcnError:
        return None


def _provenance(manifest: Manifest, runs: Runs) -> dict[str, str]:
    parts = manifest.parts
    preprocessing = json.dumps(parts.get("preprocessing"), sort_keys=True)
    return {
        "Input": shown(manifest.input),
        "Label set": f"{shown(manifest.labels.name)} ({_count(manifest.labels)})",
        "Variant": str(parts.get("variant", "unknown")),
        "Precision": str(parts.get("precision", "unknown")),
        "Preprocessing": shown(preprocessing),
        "Weights SHA-256": str(parts.get("weights_sha256", "unknown")),
        "Fingerprint": manifest.fingerprint,
        "Output format": str(parts.get("output_format", OUTPUT_FORMAT)),
        "Latest run with": ", ".join(runs.versions) or "unknown",
        "Report written with": ", ".join(_versions()),
    }


def _count(labels: LabelSet) -> str:
    return f"{labels.num_classes} class" + "es" * (labels.num_classes != 1)


def _versions() -> list[str]:
    versions = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _config(manifest: Manifest) -> str | None:
    if manifest.config is None:
        return None
    return shown(json.dumps(manifest.config, indent=2, ensure_ascii=False), 10_000)
