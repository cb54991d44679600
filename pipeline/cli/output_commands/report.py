"""TODO docstring."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.cli import console
from pipeline.cli.options import AsJson, ConfigFile, Output, Sets, output_store
from pipeline.text import plural

if TYPE_CHECKING:
    pass


def report(
    output: Output, config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False
) -> None:
    """Print scores and worst shards. Rewrites report.html."""
    from pipeline.cli.console import print_drift
    from pipeline.output.history import read_history
    from pipeline.output.status import read_status
    from pipeline.paths import REPORT
    from pipeline.report.build import write_report

    store = output_store(output, config, sets)
    found = read_status(store)
    failed = found.marker_document.get("failed_shards", {})
    write_report(store, found.summary, failed)
    if as_json:
        console.print_json(found.to_dict())
        return
    console.print_scores(found.scores, found.identity.labels)
    for entry in found.summary.worst_of_all(5):
        iou = console.number(entry.score if entry.has_labels else None)
        console.out.print(
            f"{entry.shard}: mean IU {iou}, {plural(entry.images, 'image')}", markup=False
        )
    for record in read_history(store, 1):
        print_drift(record)
    console.out.print(store.location(REPORT), markup=False)
