"""Supervise worker processes: start them, watch their memory and time, replace them when they end.

Image decoders and the network run in worker processes, so that an image that crashes, hangs or
takes too much memory ends a worker and not the run. This is the parent's side of the connection;
the worker's side is `pipeline.workers.worker_main`.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import IO

from pipeline.errors import WorkerError
from pipeline.inputs.sample import Sample
from pipeline.stages.records import SegmentedPart
from pipeline.stages.spec import NetworkSettings
from pipeline.workers.fork_server import ForkServer, read_tail, start_fork_server
from pipeline.workers.messages import (
    OutOfMemory,
    SetupRefused,
    WorkerFault,
    WorkerMessage,
    WorkerReady,
    WorkerSetup,
    WorkerStarted,
    WorkingOn,
)
from pipeline.workers.shared_weights import SharedWeights

log = logging.getLogger("fcnseg")


_TICK_SECONDS = 0.1
"""Seconds between two checks of a worker that has not answered: memory, time limit, stop."""


_START_SECONDS = 300.0
"""Seconds that a start may take: imports and weights on a slow disk, a first CUDA context."""


_USABLE_MEMORY = 0.9

_STARTS = 3

_LOG_BYTES = 2**20


@dataclass(frozen=True)
class WorkerFailure:
    """How a worker process ended before it finished its samples.

    `what` and `expected` become the reason in the quarantine table: they are part of OUTPUT.

    Attributes:
        what: what happened, as a clause ("the worker process died (SIGSEGV)").
        expected: the rule that was broken.
        suspects: indices of the samples that the worker was working on; empty if not known.
        is_killed: whether the process ended by SIGKILL: the kernel ran out of memory, or a person.
        fault: traceback of an unexpected exception; None if the process ended in another way.
        log_tail: the end of the worker's log (its stdout and stderr).
    """

    what: str
    expected: str = "an image that can be decoded and segmented"
    suspects: tuple[int, ...] = ()
    is_killed: bool = False
    fault: str | None = None
    log_tail: str = ""


class StoppedError(Exception):
    """Another thread stopped the worker while this thread waited for its answer."""


@dataclass(frozen=True)
class WorkerLimits:
    """Limits of one worker process.

    Attributes:
        stall_seconds: longest time without progress, in seconds.
        memory: most RAM that only this process uses, in bytes.
        is_default_memory: whether `memory` follows from the RAM of this machine and not from the
            configuration. Quarantine reasons do not name a default: equal runs on different
            machines give equal reasons.
    """

    stall_seconds: float
    memory: int
    is_default_memory: bool


class WorkerProcess:
    """A process that holds the network: started when needed, started again after a failure.

    Attributes:
        device: type of the network's device ("cpu" or "cuda"); None while no network is loaded.
        pid: process id of the worker; None while there is none.
    """

    def __init__(
        self, settings: NetworkSettings, weights: SharedWeights, limits: WorkerLimits
    ) -> None:
        self.settings = settings
        self.weights = weights
        self.limits = limits
        self.device: str | None = None
        self.pid: int | None = None
        self._stopped = False
        self._lock = threading.Lock()
        self._fork_server: ForkServer | None = None
        self._connection: Connection | None = None
        self._log: IO[bytes] | None = None

    def start(self) -> str:
        """Load the network unless it is loaded, and return the type of its device.

        Raises:
            WorkerError: three starts failed.
            FcnError: the network cannot be built, for example because there is no GPU.
            StoppedError: `stop` was called.
        """
        failure = None
        for _ in range(_STARTS):
            if self._stopped:
                raise StoppedError
            if self.device is not None:
                return self.device
            failure = self._start()
        if self.device is None:
            assert failure is not None
            detail = failure.fault or failure.log_tail
            raise WorkerError(
                where="worker process",
                found=f"{_STARTS} starts failed; the last: {failure.what}. {detail}",
                expected="a process that loads the network",
                remedy="If the process was killed, the machine may be out of memory: reduce "
                "compute.workers.",
            )
        return self.device

    def run(self, samples: Sequence[Sample]) -> SegmentedPart | WorkerFailure:
        """Segment samples; return the results, or how the process ended.

        Raises:
            WorkerError: three starts failed.
            FcnError: the network cannot be built.
            StoppedError: `stop` was called.
        """
        self.start()
        self._send(pickle.dumps(tuple(samples), protocol=5))
        suspects: tuple[int, ...] = ()
        while isinstance(answer := self._receive(self.limits.stall_seconds, suspects), WorkingOn):
            suspects = answer.positions
        if isinstance(answer, SegmentedPart):
            self._trim_log()
            return answer
        assert isinstance(answer, WorkerFailure), answer
        return answer

    def stop(self) -> None:
        """End the process, from any thread. A thread that waits for it gets a StoppedError."""
        self._stopped = True
        self._reap()

    def close(self) -> None:
        """End the process and close its connection and log; no other thread may use them."""
        self.stop()
        self._close_files()

    def _start(self) -> WorkerFailure | None:
        self._fork_server = start_fork_server()
        self._log = tempfile.TemporaryFile("a+b")
        own_end, worker_end = socket.socketpair()
        self._connection = Connection(own_end.detach())
        log_file = self._log.fileno()
        try:
            memory, weights_follow = self.weights.fileno(), False
        except OSError:
            memory, weights_follow = log_file, True
        with worker_end, suppress(OSError):  # a dead fork server: `_receive` reports it
            self._fork_server.fork(worker_end.fileno(), log_file, memory)
        answer = self._receive(_START_SECONDS)
        if isinstance(answer, WorkerStarted):
            self.pid = answer.pid
            setup = WorkerSetup(
                self.settings,
                self.weights.where,
                weights_follow,
                self.limits.memory,
                dict(os.environ),
            )
            self._send(pickle.dumps(setup))
            if weights_follow:
                self._send(self.weights.data)
            answer = self._receive(_START_SECONDS)
        if isinstance(answer, WorkerReady):
            self.device = answer.device
            return None
        assert isinstance(answer, WorkerFailure), answer
        return answer

    def _send(self, message: bytes) -> None:
        assert self._connection is not None
        try:
            self._connection.send_bytes(message)
        except OSError:
            pass  # the process has ended; the next `_receive` reports how

    def _receive(
        self, seconds: float, suspects: tuple[int, ...] = ()
    ) -> WorkerMessage | WorkerFailure:
        """Return the next message of the process, or how it ended.

        Args:
            seconds: time limit; a process without a message is then killed.
            suspects: indices of the samples that the process is working on.
        """
        assert self._connection is not None
        deadline = time.monotonic() + seconds
        try:
            while not self._connection.poll(_TICK_SECONDS):
                if self._stopped:
                    return self._collect_failure(WorkerFailure("the worker process was stopped"))
                if _private_memory(self.pid) > self.limits.memory:
                    return self._collect_failure(self._memory_failure(suspects))
                if time.monotonic() > deadline:
                    what = f"the worker process made no progress for {seconds:g} s"
                    return self._collect_failure(
                        WorkerFailure(what, "limits.stall_seconds is the most", suspects)
                    )
            answer: WorkerMessage = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            return self._collect_failure(
                WorkerFailure("the worker process died", suspects=suspects)
            )
        if isinstance(answer, SetupRefused):
            self._collect_failure(WorkerFailure("the network was refused"))
            raise answer.error
        if isinstance(answer, OutOfMemory):
            return self._collect_failure(self._memory_failure(suspects))
        if isinstance(answer, WorkerFault):
            return self._collect_failure(
                WorkerFailure(
                    "the worker process failed", suspects=suspects, fault=answer.traceback
                )
            )
        return answer

    def _memory_failure(self, suspects: tuple[int, ...]) -> WorkerFailure:
        limit = self.limits.memory / 2**30
        amount = "" if self.limits.is_default_memory else f" ({limit:.1f} GiB)"
        what = f"the worker process needed more memory than limits.worker_memory{amount}"
        return WorkerFailure(what, "an image that fits", suspects)

    def _collect_failure(self, failure: WorkerFailure) -> WorkerFailure:
        """End the process if it still runs; return the failure with its signal and log tail.

        Raises:
            StoppedError: `stop` was called.
        """
        status = self._reap()
        log_tail = read_tail(self._log) if self._log is not None else ""
        if status is None and self._fork_server is not None:
            log_tail = log_tail or self._fork_server.log_tail()
        self._close_files()
        if self._stopped:
            raise StoppedError
        code = None if status is None else os.waitstatus_to_exitcode(status)
        if failure.what == "the worker process died" and code is not None:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            what = f"{failure.what} ({how})"
            failure = replace(failure, what=what, is_killed=code == -signal.SIGKILL)
        log.info("%s; end of its log: %s", failure.what, failure.fault or log_tail or "(empty)")
        return replace(failure, log_tail=log_tail)

    def _close_files(self) -> None:
        self.device = None
        for file in (self._connection, self._log):
            if file is not None:
                file.close()
        self._connection = self._log = None

    def _reap(self) -> int | None:
        with self._lock:  # reap each pid once: the system may give it to another process
            pid, self.pid = self.pid, None
        if pid is None or self._fork_server is None:
            return None
        return self._fork_server.reap(pid)

    def _trim_log(self) -> None:
        # Decoders may write a warning for every image.
        if self._log is not None and os.fstat(self._log.fileno()).st_size > _LOG_BYTES:
            self._log.truncate(0)


def _private_memory(pid: int | None) -> int:
    """Return the bytes of RAM that only this process uses; 0 if not available."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def usable_memory(memory: float) -> int:
    """Return the default memory limit of all worker processes together: 90 % of `memory` bytes."""
    return int(_USABLE_MEMORY * memory)


def machine_memory() -> int:
    """Return the bytes of RAM of this machine, or the lower limit of its container (cgroup)."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups v2 and v1
        with suppress(OSError, ValueError), open(f"/sys/fs/cgroup/{name}") as file:
            memory = min(memory, int(file.read()))
    return memory
