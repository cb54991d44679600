"""The fork server: the process that forks worker processes. This module is the driver's side.

There is one fork server per process that owns workers (the driver, or a Ray actor). The code that
runs inside the fork server is `pipeline.workers.worker_main`.
"""

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

_LOG_TAIL_BYTES = 4000


class ForkServer:
    """A process that forks worker processes on request. Safe to use from several threads."""

    def __init__(self) -> None:
        control, server_end = socket.socketpair()
        self.path = list(sys.path)
        self.lock = threading.Lock()
        self.log = tempfile.TemporaryFile("a+b")
        environment = {
            **wait_policy(),
            **os.environ,
            # The full search path of this process; `-P` adds no directory in front of it.
            "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from pipeline.workers.worker_main import main; main()",
             str(server_end.fileno())],
            pass_fds=[server_end.fileno()], stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=self.log, env=environment,
        )  # fmt: skip
        server_end.close()
        self.control = control
        self.owner = os.getpid()
        # Set when the socket breaks: the system may report the end of the process later.
        self.is_broken = False

    def is_usable(self) -> bool:
        """Return whether the process runs, was started by this process, and has its `sys.path`."""
        if self.is_broken or self.owner != os.getpid() or self.path != sys.path:
            return False
        return self.process.poll() is None

    def fork(self, connection: int, log: int, weights: int) -> None:
        """Request a new worker process; does not wait until the worker runs.

        The worker reports itself with `WorkerStarted` on its connection.

        Args:
            connection: descriptor of the worker's end of a socket pair.
            log: descriptor of the file that receives the worker's stdout and stderr.
            weights: descriptor of the memory that holds the weights file.

        Raises:
            OSError: the fork server has ended.
        """
        try:
            with self.lock:
                socket.send_fds(self.control, [REQUEST.pack(FORK, 0)], [connection, log, weights])
        except OSError:
            self.is_broken = True
            raise

    def reap(self, pid: int) -> int | None:
        """Kill a worker process unless it has ended already, and return its wait status.

        Returns:
            The status as of `os.waitpid`; None if the fork server has ended or has no such child.
        """
        with self.lock:
            try:
                self.control.sendall(REQUEST.pack(REAP, pid))
                answer = self.control.recv(STATUS.size, socket.MSG_WAITALL)
            except OSError:
                answer = b""
        if len(answer) < STATUS.size:
            self.is_broken = True
            return None
        (status,) = STATUS.unpack(answer)
        return None if status == UNKNOWN else int(status)

    def log_tail(self) -> str:
        """Return the end of the fork server's own log; empty unless its start failed."""
        return "" if self.log.closed else read_tail(self.log)

    def close(self) -> None:
        """Kill the fork server; the kernel then kills all its worker processes."""
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
        self.control.close()
        self.log.close()


def wait_policy() -> dict[str, str]:
    """Return the OpenMP variables that say how idle threads of a layer wait for the slowest one.

    By default they spin for a while before they sleep. On idle cores, spinning made a bf16 network
    up to 1.5 times as fast; on busy cores it made the network half as fast (docs/tuning.md). So
    threads sleep at once ("passive") where at least half of the cores are busy. OMP_WAIT_POLICY in
    the environment overrides this.
    """
    is_idle = count_busy_threads() < (os.cpu_count() or 1) / 2
    return {} if is_idle else {"OMP_WAIT_POLICY": "passive"}


def count_busy_threads() -> float:
    """Return how many other threads of this machine run or wait for a core at this moment."""
    try:
        with open("/proc/loadavg") as file:
            return int(file.read().split()[3].partition("/")[0]) - 1
    except (OSError, ValueError, IndexError):  # not Linux: the mean over the last minute
        return os.getloadavg()[0]


_fork_server: ForkServer | None = None

_fork_server_lock = threading.Lock()


def start_fork_server() -> ForkServer:
    """Return the fork server of this process; start one if none is usable.

    The call returns at once. The fork server needs some seconds to import torch.
    """
    global _fork_server
    with _fork_server_lock:
        if _fork_server is None or not _fork_server.is_usable():
            if _fork_server is not None:
                _fork_server.close()
            else:
                atexit.register(close_fork_server)
            _fork_server = ForkServer()
        return _fork_server


def close_fork_server() -> None:
    """Kill the fork server of this process, if any; the next worker process starts a new one."""
    global _fork_server
    with _fork_server_lock:
        if _fork_server is not None:
            _fork_server.close()
            _fork_server = None


def read_tail(file: IO[bytes]) -> str:
    """Return the last 4,000 bytes of a log file as text, for log lines and errors."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
    return file.read().decode(errors="replace").strip()
