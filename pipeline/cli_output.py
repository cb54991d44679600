"""The commands that look after an output: status, report, verify."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline import console
from pipeline.cli_options import AsJson, Output
from pipeline.store import Store


def status(output: Output, as_json: AsJson = False) -> None:
    """Say how an output stands, from its commits alone; works while a run is on."""
    from pipeline.status import read_status

    found = read_status(Store(output))
    if as_json:
        console.print_json(found.to_dict())
        return
    running = "no driver" if found.holder is None else f"driver {found.holder.describe()}"
    of = found.marker_document.get("shards")
    console.out.print(
        f"{len(found.ledger)} shards committed{f' of {of}' if of is not None else ''}, "
        f"{found.scores['images']} images, {found.scores['failures']} quarantined, "
        f"mean IU {console.number(found.scores['mean_iou'])}\n"
        f"{running}; {found.marker or 'no marker'}",
        markup=False,
    )
    for shard_id, reason in found.marker_document.get("failed_shards", {}).items():
        console.out.print(f"failed {shard_id}: {reason}", markup=False)


def report(output: Output, as_json: AsJson = False) -> None:
    """Print merged scores, the per-class table and the worst shards; rewrite report.html."""
    from pipeline.ledger import worst_shards
    from pipeline.report import REPORT_PATH, write_report
    from pipeline.status import read_status

    store = Store(output)
    found = read_status(store)
    failed = found.marker_document.get("failed_shards", {})
    write_report(store, found.ledger, found.identity.labels, failed)
    if as_json:
        console.print_json(found.to_dict())
        return
    console.print_scores(found.scores, found.identity.labels)
    for entry in worst_shards(found.ledger)[:5]:
        iou = console.number(entry.confusion.scores().to_dict()["mean_iou"])
        console.out.print(f"{entry.shard}: mean IU {iou}, {entry.images} images", markup=False)
    console.out.print(store.location(REPORT_PATH), markup=False)


def verify(
    output: Output,
    deep: Annotated[bool, typer.Option(help="Decode every mask too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Re-read every object against its commit; exit 1 if anything differs."""
    from pipeline.verify import verify as verify_output

    found = verify_output(Store(output), deep=deep)
    if as_json:
        console.print_json(vars(found))
    else:
        for path, problem in found.problems:
            console.out.print(f"{path}: {problem}", markup=False)
        console.out.print(
            f"{found.shards} shards, {found.files} objects, {console.size(found.bytes)}: "
            f"{len(found.problems)} problems",
            markup=False,
        )
        if found.problems:
            console.err.print(
                "to label a shard again, delete its _commits/<shard>.json and run again",
                markup=False,
            )
    if found.problems:
        raise typer.Exit(1)
