"""The process that worker processes are forked from, from the outside: one per driver or actor."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import tempfile
import threading
from typing import IO

from pipeline.workers.messages import FORK, REAP, REQUEST, STATUS, UNKNOWN

_LAST_WORDS_BYTES = 4000


class ForkServer:
    """A process that forks worker processes on request. Threads share it."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair()
        self.path = list(sys.path)
        self.lock = threading.Lock()
        self.log = tempfile.TemporaryFile("a+b")
        environment = {
            **_wait_policy(),
            **os.environ,
            # The search path of this process, whatever set it up; with -P, nothing before it.
            "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from pipeline.workers.worker_main import main; main()",
             str(theirs.fileno())],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            env=environment,
        )  # fmt: skip
        theirs.close()
        self.control = mine
        self.owner = os.getpid()

    def is_usable(self) -> bool:
        """Whether it lives, is ours, and finds the modules that this process would."""
        mine = self.owner == os.getpid()
        return mine and self.path == sys.path and self.process.poll() is None

    def fork(self, connection: int, log: int, weights: int) -> None:
        """Ask for a worker process on these descriptors; it speaks up itself when it is there."""
        with self.lock:
            socket.send_fds(self.control, [REQUEST.pack(FORK, 0)], [connection, log, weights])

    def reap(self, pid: int) -> int | None:
        """End a worker process if it has not ended; its wait status, None if nobody knows it."""
        with self.lock:
            try:
                self.control.sendall(REQUEST.pack(REAP, pid))
                status = self.control.recv(STATUS.size, socket.MSG_WAITALL)
            except OSError:
                return None
        if len(status) < STATUS.size:
            return None
        (found,) = STATUS.unpack(status)
        return None if found == UNKNOWN else int(found)

    def last_words(self) -> str:
        """What it wrote to stderr, which is nothing unless it cannot start."""
        return "" if self.log.closed else last_words(self.log)

    def close(self) -> None:
        """End it, and with it every worker process."""
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
        self.control.close()
        self.log.close()


def _wait_policy() -> dict[str, str]:
    """How threads of a layer wait for the slowest: turning for a while, as torch's do anyhow.

    Alone, a network in bf16 was up to 1.5 times as quick with that on idle cores, and half as quick
    where other work wants the core that the slowest waits for (docs/tuning.md, with what is left of
    it in a run): there, they sleep. OMP_WAIT_POLICY in the environment decides otherwise.
    """
    is_idle = _others_at_work() < (os.cpu_count() or 1) / 2
    return {} if is_idle else {"OMP_WAIT_POLICY": "passive"}


def _others_at_work() -> float:
    """How many threads of this machine want a core at this moment, without this one."""
    try:
        with open("/proc/loadavg") as file:
            return int(file.read().split()[3].partition("/")[0]) - 1
    except (OSError, ValueError, IndexError):  # no Linux: the mean over the last minute
        return os.getloadavg()[0]


_template: ForkServer | None = None

_template_lock = threading.Lock()


def start_fork_server() -> ForkServer:
    """The template of this process, started if need be. Starting takes seconds, this call none."""
    global _template
    with _template_lock:
        if _template is None or not _template.is_usable():
            if _template is not None:
                _template.close()
            else:
                atexit.register(close_fork_server)
            _template = ForkServer()
        return _template


def close_fork_server() -> None:
    """End the template of this process; the next worker process starts another."""
    global _template
    with _template_lock:
        if _template is not None:
            _template.close()
            _template = None


def last_words(file: IO[bytes]) -> str:
    """The end of what a process wrote to a file, for logs and errors."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
    return file.read().decode(errors="replace").strip()
