"""Print results to stdout, and progress, warnings and errors to stderr.

Nothing here imports rich before it is needed: rich takes a tenth of a second, and `--help` and
most errors do without it. Tables and sentences about runs are in `pipeline.cli.results`.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline import logs
from pipeline.concurrency import Throttle
from pipeline.text import list_names, plural

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as RichProgress

    from pipeline.monitoring.progress import Progress


LINE_SECONDS = 10.0
"""Seconds between two lines of progress where stderr is not a terminal."""


class Terminal:
    """A standard stream of this process that prints text and tables.

    Args:
        stderr: whether this is stderr; otherwise it is stdout.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        self.stderr = stderr

    @cached_property
    def rich(self) -> Console:
        """The console of rich behind this stream, made at first use."""
        from rich.console import Console

        return Console(stderr=self.stderr, soft_wrap=True, highlight=False)

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads this stream in a terminal."""
        return self.rich.is_terminal

    def print(self, content: RenderableType) -> None:
        """Print a text as it is, or a table; brackets in a text are not markup."""
        # In a table, cells may have markup.
        self.rich.print(content, markup=not isinstance(content, str))


out = Terminal()

err = Terminal(stderr=True)


def set_up_logging(log_format: str = "text") -> None:
    """Send the log records of this project to stderr.

    Args:
        log_format: "text" for one line per warning, "json" for one object per record.
    """
    if log_format == "json":
        logs.use_json()
    else:
        logs.use_text(_TextHandler())


class _TextHandler(logging.Handler):
    """One line per record: in color on a terminal, plain elsewhere."""

    @cached_property
    def target(self) -> logging.Handler:
        """The handler that writes, made for the first record."""
        if err.is_terminal:
            from rich.logging import RichHandler

            return RichHandler(console=err.rich, show_path=False, show_time=False)
        plain = logging.StreamHandler()
        plain.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        return plain

    def emit(self, record: logging.LogRecord) -> None:
        self.target.handle(record)


def use_log_format(log_format: str) -> None:
    """Switch logging to a format, "text" or "json", unless it is in use already."""
    if (log_format == "json") != logs.is_json():
        set_up_logging(log_format)


def say(text: str, level: int = logging.INFO) -> None:
    """Print a line to stderr, or log it as a record where logs are JSON."""
    if logs.is_json():
        logging.getLogger(logs.LOGGER).log(level, "%s", text)
    else:
        err.print(text)


def relay(line: str) -> None:
    """Print a line of another process's log; where logs are JSON, a JSON line stays as it is."""
    if logs.is_json() and line.startswith("{") and line.endswith("}"):
        sys.stderr.write(f"{line}\n")
    else:
        say(line)


def is_watched() -> bool:
    """Whether stderr is a terminal and logs are text: then progress is a live bar."""
    return err.is_terminal and not logs.is_json()


def print_json(document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print a JSON document to stdout."""
    sys.stdout.write(json.dumps(document, indent=1) + "\n")


_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)

_ESCAPES = {code: ascii(chr(code))[1:-1] for code in (*_CONTROLS, ord("\\"))}
"""Python's escapes of the characters that would end a field or a line in some program."""


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on a terminal; elsewhere one line per row, with tabs between the fields."""
    if not out.is_terminal:
        for row in (columns, *rows):
            sys.stdout.write("\t".join(field.translate(_ESCAPES) for field in row) + "\n")
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*(escape(field) for field in row))
    out.print(table)


def format_score(value: float | None) -> str:
    """Return a score with four digits, or a dash where it is undefined."""
    return "-" if value is None else f"{value:.4f}"


def format_size(num_bytes: int) -> str:
    """Return a number of bytes in the largest unit that fits.

    >>> format_size(3 * 2**20)
    '3.0 MiB'
    """
    amount = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def summarize_names(names: Sequence[str], most: int = 10) -> str:
    """Return the number of names and the first `most` of them, in one line.

    >>> summarize_names(["a", "b", "c"], most=2)
    '3: a, b, …'
    """
    return f"{len(names)}: {list_names(names, most)}"


@contextmanager
def progress_display(activity: str = "segmenting") -> Iterator[ProgressLines | ProgressBar]:
    """Give a listener that shows progress: a live bar on a terminal, plain lines elsewhere.

    Args:
        activity: what is done to the images, as a verb in -ing, at the start of each line.
    """
    if not is_watched():
        yield ProgressLines(activity)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shards"),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=err.rich, transient=True) as bar:
        yield ProgressBar(bar, activity)


class ProgressLines:
    """Progress as lines: one at the start, one every `LINE_SECONDS`, one at the end."""

    def __init__(self, activity: str) -> None:
        self.activity = activity
        self._throttle = Throttle(LINE_SECONDS)

    def __call__(self, progress: Progress) -> None:
        """Print a line if one is due."""
        is_end = progress.shards_done == progress.shards_pending
        if progress.shards_pending and (is_end or self._throttle.is_due()):
            self._throttle.restart()
            shards = f"{progress.shards_done}/{progress.shards_pending} shards"
            say(
                f"{self.activity}: {shards}, {_describe_images(progress)}, {progress.seconds:.0f} s"
            )


class ProgressBar:
    """Progress as a live bar in a terminal."""

    def __init__(self, bar: RichProgress, activity: str) -> None:
        self.bar = bar
        self.task = bar.add_task(activity, total=None, detail="")

    def __call__(self, progress: Progress) -> None:
        """Move the bar."""
        self.bar.update(
            self.task,
            total=progress.shards_pending,
            completed=progress.shards_done,
            detail=_describe_images(progress),
        )


def _describe_images(progress: Progress) -> str:
    rate = progress.images / progress.seconds if progress.seconds else 0.0
    bad = f", {progress.failures} bad" if progress.failures else ""
    return f"{plural(progress.images, 'image')}{bad}, {rate:.1f}/s"


class PipeSafeStream(io.FileIO):
    """A file descriptor that drops what is written after its reader has closed the pipe."""

    def write(self, data: Any, /) -> int:
        """Write bytes, or drop them if the reader has gone; return the number of bytes."""
        try:
            return super().write(data)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """Keep a closed pipe from stopping a command or changing its exit code.

    `fcnseg report OUTPUT | head -1` is not an error. The standard streams are replaced for the
    whole process, because rich and typer exit 1 on a closed pipe and the interpreter exits 120 at
    the last flush. Not for tests.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed from the start: `>&-`
            continue
        stream.flush()
        raw = PipeSafeStream(stream.fileno(), "wb", closefd=False)
        wrapped = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
        )
        setattr(sys, name, wrapped)
