"""Ctrl-C while a run labels: once finishes what is under way, twice stops at once.

SIGTERM beside Ray: `ray.init` installs a handler of its own, which knows of no lease.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline import logs

_WORDS = "stopping: what is being labelled is finished first; Ctrl-C again stops at once"


@contextmanager
def finish_on_ctrl_c(*, wanted: bool) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, as a question; pressed again, it raises KeyboardInterrupt.

    Where nobody can press it (in other threads than the main one, in background jobs of shells), or
    where somebody else handles it, nothing is changed and the answer is no.

    Args:
        wanted: False to leave Ctrl-C as it is.
    """
    pressed = threading.Event()
    in_main = threading.current_thread() is threading.main_thread()
    if not (wanted and in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield pressed.is_set
        return

    def press(signum: int, frame: object) -> None:
        del frame
        pressed.set()
        signal.signal(signum, signal.default_int_handler)
        # Not through Python's buffers, which this may have interrupted.
        os.write(2, logs.words(_WORDS))

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def own_sigterm_handler() -> Iterator[None]:
    """Keep this process's SIGTERM handler across a `ray.init`.

    Ray's handler, in force until it returns, ends the process with 15; one that strikes in between
    is passed on to ours, which ends it with 143.
    """
    if threading.current_thread() is not threading.main_thread():  # Ray does nothing there either
        yield
        return
    previous = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        signal.signal(signal.SIGTERM, previous)
        if error.code == signal.SIGTERM and callable(previous):
            previous(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)
