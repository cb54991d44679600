"""`fcnseg report`: print the scores of an output and rebuild its report.html."""

from __future__ import annotations

from pipeline.cli import console
from pipeline.cli.options import AsJson, GivenOptions, takes
from pipeline.cli.results import print_drift, print_scores
from pipeline.text import plural


@takes("output config sets as_json")
def report(given: GivenOptions, as_json: AsJson = False) -> None:
    """Print the scores and the worst shards. Writes report.html again."""
    from pipeline.output.history import read_history
    from pipeline.output.status import read_status
    from pipeline.paths import REPORT
    from pipeline.report.build import write_report

    store = given.open_output()
    status = read_status(store)
    write_report(store, status.summary, status.marker_document.get("failed_shards", {}))
    if as_json:
        console.print_json(status.to_dict())
        return
    print_scores(status.scores, status.identity.labels)
    for entry in status.summary.worst_of_all(5):
        iou = console.format_score(entry.score if entry.has_labels else None)
        console.out.print(f"{entry.shard}: mean IoU {iou}, {plural(entry.images, 'image')}")
    for record in read_history(store, 1):
        print_drift(record)
    console.out.print(store.location(REPORT))
