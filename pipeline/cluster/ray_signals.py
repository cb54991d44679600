"""SIGTERM beside Ray: `ray.init` installs a handler of its own, which knows of no lease."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


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
