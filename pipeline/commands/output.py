"""The commands that look after an output: status, report, history, verify, failed, gc."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands import console
from pipeline.commands.options import (
    AsJson,
    ConfigFile,
    Output,
    Sets,
    Weights,
    output_store,
    read_text,
)
from pipeline.store import Store
from pipeline.words import plural

if TYPE_CHECKING:
    from pipeline.failed import Quarantined
    from pipeline.gc import Garbage


def status(
    output: Output,
    watch: Annotated[bool, typer.Option("--watch", help="Follow a run until it ends.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Say how an output stands. From its commits alone: works while a run is on."""
    from pipeline.bookkeeping.history import read_history
    from pipeline.commands.console_history import drift_line
    from pipeline.status import read_status

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
    from pipeline.bookkeeping.identity import read_identity
    from pipeline.progress import watch

    read_identity(store)  # a wrong address is no run that has ended
    with console.watch_display(as_json=as_json) as show:
        for look in watch(store, interval):
            show(look)


def report(
    output: Output, config: ConfigFile = None, sets: Sets = None, as_json: AsJson = False
) -> None:
    """Print scores and worst shards. Rewrites report.html."""
    from pipeline.bookkeeping.history import read_history
    from pipeline.commands.console_history import print_drift
    from pipeline.report import REPORT_PATH, write_report
    from pipeline.status import read_status

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
    console.out.print(store.location(REPORT_PATH), markup=False)


def history(
    output: Output,
    last: Annotated[int, typer.Option(min=1, help="At most so many runs, the latest.")] = 30,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """List what each run did and scored, and how it drifted."""
    from pipeline.bookkeeping.history import read_history
    from pipeline.bookkeeping.identity import read_identity
    from pipeline.commands.console_history import print_history

    store = output_store(output, config, sets)
    read_identity(store)  # a wrong address is no output without runs
    found = read_history(store, last)
    if as_json:
        console.print_json([record.to_dict() for record in found])
    elif not found:
        console.err.print("no run has finished here", markup=False)
    else:
        print_history(found)


def verify(
    output: Output,
    deep: Annotated[bool, typer.Option(help="Decode every mask too.")] = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Re-read every object against its commit. Exits 1 if one differs."""
    from pipeline.lease import read_lease
    from pipeline.verify import verify as verify_output

    store = output_store(output, config, sets)
    found = verify_output(store, deep=deep, listen=console.VerifyLines(quiet=as_json))
    if as_json:
        console.print_json(vars(found))
    else:
        console.out.print(console.describe_verification(found), markup=False)
    if not found.problem_count:
        return
    holder = read_lease(store)
    if holder is not None and holder.is_in_force():
        console.err.print(
            f"a driver is at work ({holder.describe()}): verify again when it is done",
            markup=False,
        )
    console.err.print(
        "to label a shard again, delete its _commits/<shard>.json and run again", markup=False
    )
    raise typer.Exit(1)


def failed(
    output: Output,
    retry: Annotated[bool, typer.Option("--retry", help="Label their shards again.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="List at most this many images.")] = 100,
    weights: Weights = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """List what was quarantined and why. Or label it again."""
    from pipeline.failed import find_redo, quarantined, retry_config
    from pipeline.run import run
    from pipeline.status import read_status

    store = output_store(output, config, sets)
    found = read_status(store)
    if retry:
        flags = {"model.weights": weights}
        loaded = retry_config(store, found.identity, read_text(config), sets or [], flags)
        with console.progress_display() as progress:
            result = run(loaded, progress, find_redo(found), finish_on_interrupt=True)
        console.print_result(result, as_json=as_json)
        raise typer.Exit(result.exit_code)
    shards = found.marker_document.get("failed_shards", {})
    count = found.scores["failures"]
    images = list(islice(quarantined(store, found), limit))
    if as_json:
        rows = [vars(image) for image in images]
        console.print_json({"quarantined": count, "failed_shards": shards, "images": rows})
        return
    _print_failures(images, shards)
    console.err.print(
        f"{plural(count, 'image')} quarantined, {plural(len(shards), 'shard')} failed"
        + (", whose bad images are listed too" if shards and images else "")
        + (f"; the first {limit} are listed (--limit)" if len(images) == limit else ""),
        markup=False,
    )


def _print_failures(images: Sequence[Quarantined], shards: Mapping[str, str]) -> None:
    """For people tables and sentences; for programs a line each, of as many fields."""
    columns = ("shard", "key", "error", "reason", "location")
    rows = [tuple(str(getattr(image, name)) for name in columns) for image in images]
    if not console.out.is_terminal:
        rows += [(shard, "", "", reason, "") for shard, reason in shards.items()]
    if rows:
        console.print_rows(columns, rows)
    if console.out.is_terminal:
        for reason in shards.values():
            console.out.print(f"failed: {reason}", markup=False)


def gc(
    output: Output,
    older_than: Annotated[
        str, typer.Option(help="Leave younger ones alone: 24h, 90m, 7d.")
    ] = "24h",
    delete: Annotated[bool, typer.Option("--delete", help="Remove them, not only list.")] = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """List what no commit names. With --delete, remove it; also what killed writers left."""
    from pipeline.gc import collect_garbage, find_garbage, parse_age

    store, age = output_store(output, config, sets), parse_age(older_than)
    lines = GarbageLines("deleted" if delete else "would delete", quiet=as_json)
    if delete:
        collect_garbage(store, age, lines)
    else:
        for garbage in find_garbage(store, age):
            lines(garbage)
    if as_json:
        console.print_json({"deleted": delete, "objects": lines.rows, "bytes": lines.bytes})
        return
    console.err.print(
        f"{plural(lines.count, 'object')}, {console.size(lines.bytes)}"
        + ("" if delete or not lines.count else "; nothing was deleted: add --delete"),
        markup=False,
    )


class GarbageLines:
    """What gc finds, a line each; rows for --json."""

    def __init__(self, verb: str, *, quiet: bool) -> None:
        self.verb, self.quiet = verb, quiet
        self.count = self.bytes = 0
        self.rows: list[dict[str, Any]] = []

    def __call__(self, garbage: Garbage) -> None:
        """For each."""
        self.count += 1
        self.bytes += garbage.size
        if self.quiet:
            row = {"path": garbage.path, "bytes": garbage.size, "seconds_old": round(garbage.age)}
            self.rows.append(row | {"unfinished": garbage.leftover is not None})
            return
        what = "an unfinished write" if garbage.leftover else console.size(garbage.size)
        hours = garbage.age / 3600
        console.out.print(f"{self.verb} {garbage.path} ({what}, {hours:.1f} h old)", markup=False)
