"""What people see of the history of an output, and of drift."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.bookkeeping.history import RunRecord
from pipeline.commands.console import named, number, out, print_rows
from pipeline.words import plural


def print_history(records: Sequence[RunRecord]) -> None:
    """A row per run."""
    columns = ("began", "shards", "images", "quarantined", "mean IU", "confidence", "drift")
    rows = []
    for record in records:
        failed = f", {record.failed} failed" if record.failed else ""
        rows.append(
            (
                record.started,
                f"{record.shards}{failed}",
                str(record.images),
                str(record.failures),
                number(record.scores["mean_iou"] if record.labeled_images else None),
                number(record.mean_confidence),
                drift_line(record),
            )
        )
    print_rows(columns, rows)


def print_drift(record: RunRecord) -> None:
    """What a run labelled otherwise than was labelled before, a line each."""
    out.print(f"drift: {drift_line(record)}", markup=False)
    for drift in record.drifted:
        out.print(f"  {drift.reason}", markup=False)


def drift_line(record: RunRecord) -> str:
    """A run's drift in a few words."""
    if record.comparison.note:
        return record.comparison.note
    images = plural(record.comparison.reference_images, "image")
    against = f"against {record.comparison.reference}, {images}"
    if not record.drifted:
        return f"none {against}"
    return f"{named([drift.quantity for drift in record.drifted], 3)} {against}"
