"""Standard streams that outlive their readers: `fcnseg report OUT | head -1` is no error."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class _Stream(io.FileIO):
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
        raw = _Stream(stream.fileno(), "wb", closefd=False)
        wrapped = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
        )
        setattr(sys, name, wrapped)
