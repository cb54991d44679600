"""What people see: progress on stderr, results on stdout. Machines ask for --json.

What people see of the history of an output, and of drift.
Standard streams that outlive their readers: `fcnseg report OUT | head -1` is no error.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.progress_bar import ProgressBar as ProgressBarLine
from rich.table import Table
from rich.text import Text

from fcn_core.labels import LabelSet
from pipeline import logs
from pipeline.concurrency import Throttle
from pipeline.monitoring.progress import Progress
from pipeline.output.history import RunRecord
from pipeline.output.run_result import RunResult
from pipeline.text import list_names, plural

if TYPE_CHECKING:
    from pipeline.monitoring.progress import ProgressReading
    from pipeline.output.verify import Verification


LINE_SECONDS = 10.0
"""Where stderr is no terminal: one line per interval."""


out = Console(soft_wrap=True, highlight=False)

err = Console(stderr=True, soft_wrap=True, highlight=False)


def set_up_logging(log_format: str = "text") -> None:
    """Warnings of this project to stderr, one line each; or all that goes there, as JSON."""
    if log_format == "json":
        logs.use_json()
    elif err.is_terminal:
        logs.use_text(RichHandler(console=err, show_path=False, show_time=False))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        logs.use_text(handler)


def use_log_format(log_format: str) -> None:
    """Log like that from now on."""
    if (log_format == "json") != logs.is_json():
        set_up_logging(log_format)


def say(text: str, level: int = logging.INFO) -> None:
    """A line to stderr: for people, or a record where logs are JSON."""
    if logs.is_json():
        logging.getLogger(logs.LOGGER).log(level, "%s", text)
    else:
        err.print(text, markup=False)


def relay(line: str) -> None:
    """A line of somebody else's log: an object stays the object that it is."""
    if logs.is_json() and line.startswith("{") and line.endswith("}"):
        sys.stderr.write(f"{line}\n")
    else:
        say(line)


def is_watched() -> bool:
    """Whether stderr is a terminal, and text goes there: then progress is a live bar."""
    return err.is_terminal and not logs.is_json()


def print_json(document: Mapping[str, Any] | Sequence[Any]) -> None:
    """A document for machines."""
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


class ProgressLines:
    """Progress where nobody watches: a line at the start, per interval, and at the end."""

    def __init__(self, doing: str) -> None:
        self.doing = doing
        self._throttle = Throttle(LINE_SECONDS)

    def __call__(self, progress: Progress) -> None:
        """Print a line if it is time."""
        is_end = progress.shards_done == progress.shards_pending
        if progress.shards_pending and (is_end or self._throttle.is_due()):
            self._throttle.restart()
            say(describe(progress, self.doing))


class ProgressBar:
    """Progress where somebody watches."""

    def __init__(self, bar: Bar, doing: str) -> None:
        self.bar = bar
        self.task = bar.add_task(doing, total=None, detail="")

    def __call__(self, progress: Progress) -> None:
        """Move the bar."""
        self.bar.update(
            self.task,
            total=progress.shards_pending,
            completed=progress.shards_done,
            detail=_images(progress),
        )


@contextmanager
def progress_display(doing: str = "labelling") -> Iterator[ProgressLines | ProgressBar]:
    """A live bar on a terminal, plain lines elsewhere."""
    if not is_watched():
        yield ProgressLines(doing)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shards"),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=err, transient=True) as bar:
        yield ProgressBar(bar, doing)


@contextmanager
def watch_display(*, as_json: bool) -> Iterator[Callable[[ProgressReading], None]]:
    """A live bar on a terminal; elsewhere a line each time, of JSON if that is wanted."""
    if as_json:
        yield lambda look: print(json.dumps(asdict(look)), flush=True)
    elif not out.is_terminal:
        yield lambda look: out.print(describe_look(look), markup=False)
    else:
        with Live(console=out, transient=True) as live:

            def show(look: ProgressReading) -> None:
                done = look.progress
                total, completed = (done.shards_pending, done.shards_done) if done else (None, 0)
                bar = ProgressBarLine(total=total, completed=completed, pulse=done is None)
                lines = Table.grid()
                lines.add_row(bar)
                lines.add_row(Text(describe_look(look)))
                live.update(lines, refresh=True)

            yield show


def describe_look(look: ProgressReading) -> str:
    """One line."""
    if look.progress is None:
        return f"not labelling yet; {look.holder.describe()}"
    done = look.progress
    bad = f", {done.failures} quarantined" if done.failures else ""
    left = look.seconds_left
    ends = f", {timedelta(seconds=round(left))} left" if left is not None else ""
    return (
        f"{done.shards_done}/{done.shards_pending} shards, {plural(done.images, 'image')}{bad}, "
        f"{look.images_per_second:.1f}/s{ends}; {look.holder.describe()}"
    )


class VerifyLines:
    """Problems on stdout as they are found, and how far it is on stderr, a line per interval."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._is_due = Throttle(LINE_SECONDS, is_due_at_once=False)

    def __call__(self, found: Verification, problems: Sequence[tuple[str, str]]) -> None:
        """After every shard."""
        if not self.quiet:
            for path, problem in problems:
                out.print(f"{path}: {problem}", markup=False)
        if self._is_due():
            err.print(f"verifying: {describe_verification(found)}", markup=False)


def describe_verification(found: Verification) -> str:
    """One line."""
    return (
        f"{plural(found.shards, 'shard')}, {plural(found.files, 'object')}, {size(found.bytes)}: "
        f"{plural(found.problem_count, 'problem')}"
    )


def describe(progress: Progress, doing: str = "labelling") -> str:
    """One line of progress."""
    shards = f"{progress.shards_done}/{progress.shards_pending} shards"
    return f"{doing}: {shards}, {_images(progress)}, {progress.seconds:.0f} s"


def _images(progress: Progress) -> str:
    rate = progress.images / progress.seconds if progress.seconds else 0.0
    bad = f", {progress.failures} bad" if progress.failures else ""
    return f"{plural(progress.images, 'image')}{bad}, {rate:.1f}/s"


def score_table(scores: Mapping[str, Any], labels: LabelSet) -> Table:
    """The per-class table of a scores document, ending in mean IU."""
    table = Table("class", "IU", "predicted pixels", title_justify="left")
    table.columns[1].justify = table.columns[2].justify = "right"
    for name, iou, pixels in zip(
        labels.classes, scores["iou"], scores["class_pixels"], strict=True
    ):
        table.add_row(name, number(iou), f"{pixels:,}")
    table.add_section()
    table.add_row("mean IU", number(scores["mean_iou"]), f"{sum(scores['class_pixels']):,}")
    return table


def print_scores(scores: Mapping[str, Any], labels: LabelSet) -> None:
    """The table, and the other three scores of the paper."""
    out.print(score_table(scores, labels))
    out.print(
        f"pixel accuracy {number(scores['pixel_accuracy'])}, "
        f"mean accuracy {number(scores['mean_accuracy'])}, "
        f"frequency weighted IU {number(scores['frequency_weighted_iou'])} "
        f"({scores['labeled_images']} labelled of {plural(scores['images'], 'image')})",
        markup=False,
    )


def print_result(result: RunResult, *, as_json: bool = False) -> None:
    """What a run did, and what it could not do."""
    from pipeline.paths import REPORT

    if as_json:
        print_json(result.to_dict())
        return
    _print_outcome(result)
    if result.images:
        print_scores(result.scores, result.labels)
    if result.record is not None:
        print_drift(result.record)
    out.print(f"report: {result.output}/{REPORT}", markup=False)


def _print_outcome(result: RunResult) -> None:
    if not result.done_now and not result.failed:
        every = "the shard is" if result.shards == 1 else f"all {result.shards} shards are"
        line = f"nothing pending: {every} done"
        if result.committed < result.shards:
            line = f"nothing done: {result.committed} of {result.shards} shards are done"
    else:
        line = (
            f"{plural(result.done_now, 'shard')} done now, "
            f"{result.committed} of {result.shards} in all, {plural(result.images, 'image')}, "
            f"{result.failures} quarantined, {result.seconds:.1f} s"
        )
    out.print(line, markup=False)
    print_passed_over(result.passed_over)
    if result.empty:
        say(f"warning: no images in {named(result.empty)}", logging.WARNING)
    print_vanished(result.vanished, result.vanished_names)
    if result.store_retries:
        say(f"{result.store_retries} requests to stores were tried again")
    for failure in result.failed:
        say(f"failed: {failure.reason}", logging.ERROR)
    if result.interrupted:
        say("interrupted: run the same command again to resume", logging.WARNING)
    if result.over_limit:
        say(
            f"limits exceeded: {result.bad} of {result.seen} images could not be labelled "
            "(limits.max_bad_fraction); fcnseg failed lists them",
            logging.ERROR,
        )


def print_vanished(count: int, names: Sequence[str]) -> None:
    """Say what the input no longer holds."""
    if count:
        more = ", …" if count > len(names) else ""
        what = "shard or image" if count == 1 else "shards or images"
        say(
            f"{count} {what} vanished from the input ({', '.join(names)}{more}); what "
            "is committed of them stays until their shard is labelled again",
            logging.WARNING,
        )


def print_passed_over(passed_over: Sequence[str]) -> None:
    """Say which files and columns of the input nobody looks at."""
    if passed_over:
        say(f"passed over: {', '.join(passed_over)}", logging.WARNING)


def named(names: Sequence[str], most: int = 10) -> str:
    """Names in a line, however many there are.

    >>> named(["a", "b", "c"], most=2)
    '3: a, b, …'
    """
    return f"{len(names)}: {list_names(names, most)}"


_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)

_ESCAPES = {code: ascii(chr(code))[1:-1] for code in (*_CONTROLS, ord("\\"))}
"""What would end a field or a line, for whatever program, as Python writes it."""


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table where somebody looks; elsewhere a line per row, with a tab between two fields."""
    if not out.is_terminal:
        for row in (columns, *rows):
            sys.stdout.write("\t".join(field.translate(_ESCAPES) for field in row) + "\n")
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*(escape(field) for field in row))
    out.print(table)


def number(value: float | None) -> str:
    """A score, or a dash where it is undefined."""
    return "-" if value is None else f"{value:.4f}"


def size(num_bytes: int) -> str:
    """Bytes for people.

    >>> size(3 * 2**20)
    '3.0 MiB'
    """
    amount = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


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


class _PipeSafeStream(io.FileIO):
    """A descriptor whose reader may leave; what nobody reads is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """Let a closed pipe neither stop a command nor change its exit code.

    Below all that prints (rich and typer exit 1 on a closed pipe, and the interpreter 120), so that
    it holds for every command, `--help` and the last flush at exit. For the process, not for tests.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed from the start: `>&-`
            continue
        stream.flush()
        raw = _PipeSafeStream(stream.fileno(), "wb", closefd=False)
        wrapped = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
        )
        setattr(sys, name, wrapped)
