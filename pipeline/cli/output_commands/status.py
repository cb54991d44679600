"""`fcnseg status`: print how far an output is, or follow its run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, GivenOptions, takes
from pipeline.cli.results import describe_drift
from pipeline.text import plural

if TYPE_CHECKING:
    from pipeline.monitoring.progress import ProgressReading
    from pipeline.storage.store import Store


@takes("output watch interval config sets as_json")
def status(
    given: GivenOptions,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the run until it ends.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, help="With --watch: seconds between two updates.")
    ] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Print how far an output is. Reads its commits only, so it also works during a run."""
    from pipeline.output.history import read_history
    from pipeline.output.status import read_status

    store = given.open_output()
    if watch:
        _watch(store, interval, as_json)
    status = read_status(store)
    if as_json:
        console.print_json(status.to_dict())
        return
    driver = "no driver" if status.holder is None else f"driver {status.holder.describe()}"
    count, last = status.summary.shards, status.marker_document
    total = f" of {last['shards']}" if last else ""
    if last and last["committed"] != count:  # shards left the input, or were removed from OUTPUT
        total = f" (when the last run ended, {last['committed']} of {last['shards']} of the input)"
    console.out.print(
        f"{plural(count, 'shard')} committed{total}, "
        f"{plural(status.scores['images'], 'image')}, {status.scores['failures']} quarantined, "
        f"mean IoU {console.format_score(status.scores['mean_iou'])}\n"
        f"{driver}; {status.marker or 'no marker'}"
    )
    for shard_id, reason in last.get("failed_shards", {}).items():
        console.out.print(f"failed {shard_id}: {reason}")
    for record in read_history(store, 1):
        console.out.print(f"latest run {record.run}: {describe_drift(record)}")


def _watch(store: Store, interval: float, as_json: bool) -> None:
    from pipeline.manifest import read_manifest
    from pipeline.monitoring.progress import watch

    read_manifest(store)  # a wrong address must not look like a run that has ended
    with watch_display(as_json=as_json) as show:
        for reading in watch(store, interval):
            show(reading)


@contextmanager
def watch_display(*, as_json: bool) -> Iterator[Callable[[ProgressReading], None]]:
    """Give a listener that shows readings: a live bar on a terminal, elsewhere one line each.

    Args:
        as_json: whether each reading is printed as one line of JSON instead.
    """
    if as_json:
        yield lambda reading: print(json.dumps(asdict(reading)), flush=True)
        return
    if not console.out.is_terminal:
        yield lambda reading: console.out.print(describe_reading(reading))
        return
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    with Live(console=console.out.rich, transient=True) as live:

        def show(reading: ProgressReading) -> None:
            done = reading.progress
            total, completed = (done.shards_pending, done.shards_done) if done else (None, 0)
            lines = Table.grid()
            lines.add_row(ProgressBar(total=total, completed=completed, pulse=done is None))
            lines.add_row(Text(describe_reading(reading)))
            live.update(lines, refresh=True)

        yield show


def describe_reading(reading: ProgressReading) -> str:
    """Return how far a run is, and who drives it, in one line."""
    holder = reading.holder.describe()
    done, left = reading.progress, reading.seconds_left
    if done is None:
        return f"no image segmented yet; {holder}"
    bad = f", {done.failures} quarantined" if done.failures else ""
    ends = f", {timedelta(seconds=round(left))} left" if left is not None else ""
    return (
        f"{done.shards_done}/{done.shards_pending} shards, {plural(done.images, 'image')}{bad}, "
        f"{reading.images_per_second:.1f}/s{ends}; {holder}"
    )
