"""Logging of a process to stderr: as text, or as one JSON object per line for log collectors.

JSON lines carry the ids of run, shard and chunk. `monitoring.log_format` chooses the format.
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


_ids: ContextVar[dict[str, str | int]] = ContextVar("ids", default={})  # noqa: B039  not mutated

_run = ""
"""Name of the run; one per process, because threads do not inherit context variables."""


_text_last_resort = logging.lastResort


class JsonLines(logging.Formatter):
    """Formats a log record as one line of ASCII JSON, with masked credentials."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time (UTC, RFC 3339), level, logger, message, ids and traceback as JSON."""
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
    """Log JSON to stderr: our loggers from level INFO, other loggers from WARNING."""
    ours, others = _handler(logging.NOTSET), _handler(logging.WARNING)
    logger = logging.getLogger(LOGGER)
    logger.handlers = [ours]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logging.lastResort = others  # for every logger without a handler
    sys.excepthook = _log_fault


def use_text(handler: logging.Handler) -> None:
    """Log text: send our warnings to a handler, and end JSON logging if it is on.

    Args:
        handler: prints the warnings, for example on the console.
    """
    logger = logging.getLogger(LOGGER)
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.NOTSET)
    logging.lastResort = _text_last_resort
    if sys.excepthook is _log_fault:
        sys.excepthook = sys.__excepthook__


def is_json() -> bool:
    """Return whether this process logs JSON."""
    handlers = logging.getLogger(LOGGER).handlers
    return any(isinstance(handler.formatter, JsonLines) for handler in handlers)


def _log_fault(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Log an uncaught exception with its traceback as one line of JSON."""
    logging.getLogger(LOGGER).critical(
        "internal error, please report it: %r", error, exc_info=(kind, error, trace)
    )


def event(level: int, text: str, *values: object) -> None:
    """Log an event, only if logs are JSON: in text mode the console prints such events itself.

    Args:
        level: of `logging`.
        text: message with %-placeholders.
        values: for the placeholders.
    """
    if is_json():
        logging.getLogger(LOGGER).log(level, text, *values)


def encode_warning(text: str) -> bytes:
    """Return a warning as bytes for stderr, in the format of the logs, for a signal handler."""
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
    """Add the name of a run to everything that this process logs from now on."""
    global _run
    _run = run


@contextmanager
def of_run(run: str) -> Iterator[None]:
    """Add the name of a run to everything that this process logs inside the block."""
    before = _run
    set_run(run)
    try:
        yield
    finally:
        set_run(before)


@contextmanager
def about(**ids: str | int) -> Iterator[None]:
    """Add ids, such as shard and chunk, to everything that this thread logs inside the block.

    >>> with about(shard="a", chunk=0):
    ...     sorted(_ids.get())
    ['chunk', 'shard']
    """
    token = _ids.set({**_ids.get(), **ids})
    try:
        yield
    finally:
        _ids.reset(token)
