"""The commands that look after an output: status, report, history, verify, failed, gc."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, ConfigFile, Output, Sets, output_store
from pipeline.storage.store import Store
from pipeline.text import plural

if TYPE_CHECKING:
    pass


def status(
    output: Output,
    watch: Annotated[bool, typer.Option("--watch", help="Follow a run until it ends.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Say how an output stands. From its commits alone: works while a run is on."""
    from pipeline.cli.console import drift_line
    from pipeline.output.history import read_history
    from pipeline.output.status import read_status

    store = output_store(output, config, sets)
    if watch:
        _watch(store, interval, as_json)
    found = read_status(store)
    if as_json:
        console.print_json(found.to_dict())
        return
    running = "no driver" if found.holder is None else f"driver {found.holder.describe()}"
    count, last = found.summary.shards, found.marker_document
    of = f" of {last['shards']}" if last else ""
    if last and last["committed"] != count:  # others vanished from the input, or were removed here
        of = f" (when the last run ended, {last['committed']} of {last['shards']} of the input)"
    console.out.print(
        f"{plural(count, 'shard')} committed{of}, "
        f"{plural(found.scores['images'], 'image')}, {found.scores['failures']} quarantined, "
        f"mean IU {console.number(found.scores['mean_iou'])}\n"
        f"{running}; {found.marker or 'no marker'}",
        markup=False,
    )
    for shard_id, reason in found.marker_document.get("failed_shards", {}).items():
        console.out.print(f"failed {shard_id}: {reason}", markup=False)
    for record in read_history(store, 1):
        console.out.print(f"latest run {record.run}: {drift_line(record)}", markup=False)


def _watch(store: Store, interval: float, as_json: bool) -> None:
    from pipeline.manifest import read_manifest
    from pipeline.monitoring.progress import watch

    read_manifest(store)  # a wrong address is no run that has ended
    with console.watch_display(as_json=as_json) as show:
        for look in watch(store, interval):
            show(look)
