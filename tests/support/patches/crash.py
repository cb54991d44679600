"""Kills a process at its n-th store write.

FCNSEG_CRASH names a folder. `<role>.at` in it holds n; `<role>.count` grows by one byte per write.
A role is "worker" (a Ray worker process) or "driver" (any other). The process that makes the n-th
write removes `<role>.at` and dies by SIGKILL: on a local store between writing the temporary file
and giving it its name, else before the request is sent.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

VERBS = ("write", "create", "replace", "upload", "delete")
FOLDER = os.environ.get("FCNSEG_CRASH", "")


def _role() -> str:
    return "worker" if "default_worker.py" in sys.argv[0] else "driver"


def _is_the_one() -> bool:
    """Count a write; whether it is the one that was asked for."""
    base = os.path.join(FOLDER, _role())
    counter = os.open(f"{base}.count", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(counter, b".")
    count = os.lseek(counter, 0, os.SEEK_CUR)  # exact under O_APPEND: each writer has its own byte
    os.close(counter)
    try:
        with open(f"{base}.at") as handle:
            wanted = int(handle.read())
    except FileNotFoundError:
        return False
    return count == wanted


def _die() -> None:
    os.unlink(os.path.join(FOLDER, f"{_role()}.at"))
    os.kill(os.getpid(), signal.SIGKILL)


def _fatal(verb: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(store: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_the_one():
            return verb(store, *args, **kwargs)
        if not store.is_local or verb.__name__ == "delete":
            _die()
        os.replace = os.link = lambda *_args, **_kwargs: _die()
        return verb(store, *args, **kwargs)

    return wrapped


def patch(store: ModuleType) -> None:
    """Of `pipeline.storage.store`, where a folder to be told by is named."""
    for verb in VERBS if FOLDER else ():
        setattr(store.Store, verb, _fatal(getattr(store.Store, verb)))
