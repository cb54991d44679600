"""What the report tells of distributions and of earlier runs, from commits and from the history."""

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
"""The latest are told of."""


_MAX_DRIFTS = 5


@dataclass(frozen=True)
class Runs:
    """Runs of the output, the oldest first, JSON-able.

    Attributes:
        rows: `started`, `seconds`, `shards`, `images`, `failures`, `failed`, `iou` (of its own
            shards), `total_iou` (of the output after it), `confidence`, `drifted` (reasons).
        versions: of packages, in the latest one.
        notes: what could not be read.
        latest: the name of the latest one; "" if there is none.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    versions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    latest: str = ""


def runs_of(output: Store) -> Runs:
    """The latest `MAX_RUNS`; none of an output of format 1, or if a record cannot be read."""
    try:
        records = read_history(output, MAX_RUNS)
    except FcnError as error:  # the masks are done
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


def histograms_of(found: Histograms) -> dict[str, Any]:
    """Numbers of images by confidence, size and share of each class, with the names of the bins.

    `images` is 0 for an output of format 1: its commits have none.
    """
    shares = [f"{100 * edge:g} %" for edge in SHARE_EDGES]
    confidences = [f"{100 * edge:g} %" for edge in CONFIDENCE_EDGES]
    return {
        "images": found.images,
        "confidence": {"bins": _between(confidences), "counts": list(found.confidence)},
        "size": {"bins": _between([str(side) for side in SIDE_EDGES]), "counts": list(found.size)},
        "share": {
            "bins": ["none", *_between(shares)],
            "counts": [list(counts) for counts in found.shares],
        },
    }


def _between(edges: Sequence[str]) -> list[str]:
    """Names of the bins before, between and behind some edges.

    >>> _between(["1", "2"])
    ['below 1', '1 to 2', 'from 2']
    """
    inner = [f"{low} to {high}" for low, high in pairwise(edges)]
    return [f"below {edges[0]}", *inner, f"from {edges[-1]}"]
