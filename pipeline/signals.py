"""Signals during a run: Ctrl-C finishes the work in progress, a second Ctrl-C stops at once.

SIGTERM: `ray.init` installs its own handler, which would end the process without releasing the
lease of the output. `own_sigterm_handler` keeps ours.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline import logs

_STOPPING = "stopping after the chunks in progress; Ctrl-C again stops at once"


@contextmanager
def finish_on_ctrl_c(*, wanted: bool) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C was pressed; a second Ctrl-C interrupts.

    The handler of Ctrl-C stays as it is, and the function returns False, outside the main thread,
    in background jobs of a shell, and if other code already handles Ctrl-C.

    Args:
        wanted: False to leave the handler as it is.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed twice.
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
        # Unbuffered: this handler may have interrupted a write to Python's own buffers.
        os.write(2, logs.encode_warning(_STOPPING))

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def own_sigterm_handler() -> Iterator[None]:
    """Keep this process's SIGTERM handler across a `ray.init`.

    While `ray.init` runs, Ray's handler answers SIGTERM with SystemExit(15). Such a signal is
    passed on to our handler, which ends the process with exit code 143.
    """
    if threading.current_thread() is not threading.main_thread():  # Ray sets no handler here
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
