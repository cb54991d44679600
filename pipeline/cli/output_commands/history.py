"""`fcnseg history`: list the runs of an output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, GivenOptions, takes
from pipeline.cli.results import describe_drift

if TYPE_CHECKING:
    from pipeline.output.history import RunRecord


@takes("output last config sets as_json")
def history(
    given: GivenOptions,
    last: Annotated[
        int, typer.Option(min=1, help="List at most this many runs, the latest ones.")
    ] = 30,
    as_json: AsJson = False,
) -> None:
    """List the runs: what each did, how it scored, how it drifted."""
    from pipeline.manifest import read_manifest
    from pipeline.output.history import read_history

    store = given.open_output()
    read_manifest(store)  # a wrong address must not look like an output without runs
    records = read_history(store, last)
    if as_json:
        console.print_json([record.to_dict() for record in records])
    elif not records:
        console.err.print("no run of this output has finished yet")
    else:
        _print_records(records)


def _print_records(records: Sequence[RunRecord]) -> None:
    columns = ("began", "shards", "images", "quarantined", "mean IoU", "confidence", "drift")
    rows = []
    for record in records:
        failed = f", {record.failed} failed" if record.failed else ""
        rows.append(
            (
                record.started,
                f"{record.shards}{failed}",
                str(record.images),
                str(record.failures),
                console.format_score(record.scores["mean_iou"] if record.labeled_images else None),
                console.format_score(record.mean_confidence),
                describe_drift(record),
            )
        )
    console.print_rows(columns, rows)
