"""Logs for machines: one JSON object per line on stderr, with the ids of run, shard and chunk.

Text is for people and stays as it is; which of the two it is to be says `monitoring.log_format`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from pipeline.redact import masked

LOGGER = "fcnseg"


_ids: ContextVar[dict[str, str | int]] = ContextVar("ids", default={})  # noqa: B039  never changed

_run = ""
"""Of the process, not of a context: the threads of a run do not inherit contexts."""


_text_last_resort = logging.lastResort


class JsonLines(logging.Formatter):
    """A record as one line of JSON, ASCII alone, without the credentials of URLs."""

    def format(self, record: logging.LogRecord) -> str:
        """Time in UTC (RFC 3339), level, logger, message; ids and traceback where there are any."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": masked(record.getMessage()),
            **({"run": _run} if _run else {}),
            **_ids.get(),
        }
        if record.exc_info:
            line["traceback"] = masked(self.formatException(record.exc_info))
        return json.dumps(line)


def use_json() -> None:
    """From now on this process logs JSON to stderr: our loggers from INFO on, others WARNING."""
    ours, others = _handler(logging.NOTSET), _handler(logging.WARNING)
    logger = logging.getLogger(LOGGER)
    logger.handlers = [ours]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logging.lastResort = others  # of all loggers that nobody has set up
    sys.excepthook = _log_fault


def use_text(handler: logging.Handler) -> None:
    """Our warnings to this handler, as text."""
    logger = logging.getLogger(LOGGER)
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.NOTSET)
    logging.lastResort = _text_last_resort
    if sys.excepthook is _log_fault:
        sys.excepthook = sys.__excepthook__


def is_json() -> bool:
    """Whether this process logs JSON."""
    handlers = logging.getLogger(LOGGER).handlers
    return any(isinstance(handler.formatter, JsonLines) for handler in handlers)


def _log_fault(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A traceback is one line, too."""
    logging.getLogger(LOGGER).critical(
        "a fault of the program, please report it: %r", error, exc_info=(kind, error, trace)
    )


def event(level: int, text: str, *values: object) -> None:
    """What only machines are told: where logs are text, people hear of it in other words."""
    if is_json():
        logging.getLogger(LOGGER).log(level, text, *values)


def words(text: str) -> bytes:
    """What a signal handler may write to stderr at once: a text, or a warning as JSON."""
    if not is_json():
        return f"\n{text}\n".encode()
    record = logging.LogRecord(LOGGER, logging.WARNING, "", 0, text, None, None)
    return f"{JsonLines().format(record)}\n".encode()


def _handler(level: int) -> logging.StreamHandler[Any]:
    handler = logging.StreamHandler()
    handler.setLevel(level)
    handler.setFormatter(JsonLines())
    return handler


def set_run(run: str) -> None:
    """All that this process logs from now on belongs to a run."""
    global _run
    _run = run


@contextmanager
def of_run(run: str) -> Iterator[None]:
    """All that this process logs meanwhile belongs to a run."""
    before = _run
    set_run(run)
    try:
        yield
    finally:
        set_run(before)


@contextmanager
def about(**ids: str | int) -> Iterator[None]:
    """What this thread logs meanwhile is about a shard, or a chunk of one.

    >>> with about(shard="a", chunk=0):
    ...     sorted(_ids.get())
    ['chunk', 'shard']
    """
    token = _ids.set({**_ids.get(), **ids})
    try:
        yield
    finally:
        _ids.reset(token)
