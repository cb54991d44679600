"""Prepare the report's data on the latest runs and on the distributions of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from fcn_core.errors import FcnError
from fcn_core.metrics import none_if_nan
from pipeline.output.history import RunRecord, read_history
from pipeline.report.page import shown
from pipeline.stages.histograms import CONFIDENCE_EDGES, SHARE_EDGES, SIDE_EDGES, Histograms
from pipeline.storage.store import Store

MAX_RUNS = 60
"""Number of latest runs in the report."""


_MAX_DRIFTS = 5


@dataclass(frozen=True)
class Runs:
    """Latest runs of an output, JSON-able.

    Attributes:
        rows: one dictionary per run, oldest first: `started`, `seconds`, `shards`, `images`,
            `failures`, `failed`, `iou` (over the shards of the run), `total_iou` (over the output
            after the run), `confidence`, `drifted` (reasons).
        versions: names and versions of the packages in the latest run.
        notes: sentences about records that could not be read.
        latest: name of the latest run; "" if there is none.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    versions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    latest: str = ""


def runs_of(output: Store) -> Runs:
    """Return the latest `MAX_RUNS` runs; none for output format 1 or if a record is unreadable."""
    try:
        records = read_history(output, MAX_RUNS)
    except FcnError as error:  # the report is written without a history
        return Runs(notes=(f"The history is unreadable: {error}",))
    versions = records[-1].versions if records else {}
    return Runs(
        [_row(record) for record in records],
        tuple(f"{name} {version}" for name, version in versions.items()),
        latest=records[-1].run if records else "",
    )


def _row(record: RunRecord) -> dict[str, Any]:
    confidence = record.mean_confidence
    return {
        "started": record.started.replace("T", " ").removesuffix("Z"),
        "seconds": round(record.seconds, 1),
        "shards": record.shards,
        "images": record.images,
        "failures": record.failures,
        "failed": record.failed,
        "iou": record.scores["mean_iou"],
        "total_iou": record.totals["mean_iou"],
        "confidence": None if confidence is None else none_if_nan(confidence),
        "drifted": [shown(drift.reason, 120) for drift in record.drifted[:_MAX_DRIFTS]],
    }


def histograms_of(histograms: Histograms) -> dict[str, Any]:
    """Return the histograms of confidence, size and class share, with names of their bins.

    `images` is 0 for output format 1, whose commits hold no histograms.
    """
    shares = [f"{100 * edge:g} %" for edge in SHARE_EDGES]
    confidences = [f"{100 * edge:g} %" for edge in CONFIDENCE_EDGES]
    return {
        "images": histograms.images,
        "confidence": {"bins": _between(confidences), "counts": list(histograms.confidence)},
        "size": {
            "bins": _between([str(side) for side in SIDE_EDGES]),
            "counts": list(histograms.size),
        },
        "share": {
            "bins": ["none", *_between(shares)],
            "counts": [list(counts) for counts in histograms.shares],
        },
    }


def _between(edges: Sequence[str]) -> list[str]:
    """Return the names of the bins below, between and above some edges.

    >>> _between(["1", "2"])
    ['below 1', '1 to 2', 'from 2']
    """
    inner = [f"{low} to {high}" for low, high in pairwise(edges)]
    return [f"below {edges[0]}", *inner, f"from {edges[-1]}"]
