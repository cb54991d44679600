"""Worker processes from the outside: watched, killed, replaced; `inside` is their other side.

The network and the decoders of pictures run in processes that the segment stage owns, so that
whatever a picture does to them, the stage lives on and can tell what happened.
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
from pipeline.workers.fork_server import ForkServer, last_words, start_fork_server
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
"""How often a silent process is looked at: its memory, its time, whether it is still wanted."""


_START_SECONDS = 300.0
"""Imports and weights on a slow disk, a first CUDA context: no picture is to blame for these."""


_MEMORY = 0.9

_STARTS = 3

_LOG_BYTES = 2**20


@dataclass(frozen=True)
class WorkerFailure:
    """How a worker process ended that did not finish its samples.

    Attributes:
        what: happened, as a clause ("the worker process died (SIGSEGV)").
        expected: the rule that was broken.
        suspects: places of the samples it was working on; empty when that is not known.
        killed: whether somebody killed it: the kernel for want of memory, or a person.
        fault: the traceback, if it was an exception of the code and not the end of the process.
        words: the last it wrote to stderr.
    """

    what: str
    expected: str = "an image that can be decoded and labelled"
    suspects: tuple[int, ...] = ()
    killed: bool = False
    fault: str | None = None
    words: str = ""


class StoppedError(Exception):
    """The stage was stopped from another thread while it waited for its worker process."""


@dataclass(frozen=True)
class WorkerLimits:
    """What a worker process may take.

    Attributes:
        stall_seconds: longest time without progress.
        memory: bytes.
        is_share: whether `memory` is this machine's and no choice of a person. It is not named in
            the quarantine then: equal runs on unequal machines give equal reasons.
    """

    stall_seconds: float
    memory: int
    is_share: bool


class WorkerProcess:
    """A process with the network: started when it is needed, and anew after each death."""

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
        self._template: ForkServer | None = None
        self._connection: Connection | None = None
        self._log: IO[bytes] | None = None

    def start(self) -> str:
        """Make sure that the network is loaded; the type of its device.

        Raises:
            WorkerError: no process comes up.
            FcnError: the network cannot be built, for example for want of a GPU.
            StoppedError: see there.
        """
        death = None
        for _ in range(_STARTS):
            if self._stopped:
                raise StoppedError
            if self.device is not None:
                return self.device
            death = self._start()
        if self.device is None:
            assert death is not None
            raise WorkerError(
                where="worker process",
                found=f"{_STARTS} starts failed; the last: {death.what}. {death.fault or death.words}",
                expected="a process that loads the network",
                remedy="If it was killed, the machine may be short of memory: fewer compute.workers.",
            )
        return self.device

    def run(self, samples: Sequence[Sample]) -> SegmentedPart | WorkerFailure:
        """What the network makes of the samples, or how the process died of them.

        Raises:
            WorkerError, FcnError, StoppedError: as `start`.
        """
        self.start()
        self._send(pickle.dumps(tuple(samples), protocol=5))
        suspects: tuple[int, ...] = ()
        while isinstance(answer := self._next(self.limits.stall_seconds, suspects), WorkingOn):
            suspects = answer.places
        if isinstance(answer, SegmentedPart):
            self._forget_old_words()
            return answer
        assert isinstance(answer, WorkerFailure), answer
        return answer

    def stop(self) -> None:
        """End the process, from any thread; one that waits for it gets a StoppedError."""
        self._stopped = True
        self._reap()

    def close(self) -> None:
        """As `stop`, when no other thread uses it any more; and give back what is left."""
        self.stop()
        self._give_back()

    def _start(self) -> WorkerFailure | None:
        self._template = start_fork_server()
        self._log = tempfile.TemporaryFile("a+b")
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        log_file = self._log.fileno()
        try:
            memory, follow = self.weights.fileno(), False
        except OSError:
            memory, follow = log_file, True
        with theirs, suppress(OSError):  # a template that has died: found out below
            self._template.fork(theirs.fileno(), log_file, memory)
        answer = self._next(_START_SECONDS)
        if isinstance(answer, WorkerStarted):
            self.pid = answer.pid
            where, environment = self.weights.where, dict(os.environ)
            setup = WorkerSetup(self.settings, where, follow, self.limits.memory, environment)
            self._send(pickle.dumps(setup))
            if follow:
                self._send(self.weights.data)
            answer = self._next(_START_SECONDS)
        if isinstance(answer, WorkerReady):
            self.device = answer.device
            return None
        assert isinstance(answer, WorkerFailure), answer
        return answer

    def _send(self, data: bytes) -> None:
        assert self._connection is not None
        try:
            self._connection.send_bytes(data)
        except OSError:
            pass  # it died; the next look for an answer finds out how

    def _next(
        self, seconds: float, suspects: tuple[int, ...] = ()
    ) -> WorkerMessage | WorkerFailure:
        """The next thing that the process says; or its death, natural or not."""
        assert self._connection is not None
        deadline = time.monotonic() + seconds
        try:
            while not self._connection.poll(_TICK_SECONDS):
                if self._stopped:
                    return self._bury(WorkerFailure("the worker process was stopped"))
                if _memory_of(self.pid) > self.limits.memory:
                    return self._bury(self._starvation(suspects))
                if time.monotonic() > deadline:
                    what = f"the worker process made no progress for {seconds:g} s"
                    return self._bury(
                        WorkerFailure(what, "limits.stall_seconds is the most", suspects)
                    )
            answer: WorkerMessage = pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            return self._bury(WorkerFailure("the worker process died", suspects=suspects))
        if isinstance(answer, SetupRefused):
            self._bury(WorkerFailure("the network was refused"))
            raise answer.error
        if isinstance(answer, OutOfMemory):
            return self._bury(self._starvation(suspects))
        if isinstance(answer, WorkerFault):
            what = "the worker process failed"
            return self._bury(WorkerFailure(what, suspects=suspects, fault=answer.traceback))
        return answer

    def _starvation(self, suspects: tuple[int, ...]) -> WorkerFailure:
        amount = "" if self.limits.is_share else f" ({self.limits.memory / 2**30:.1f} GiB)"
        what = f"the worker process needed more memory than limits.worker_memory{amount}"
        return WorkerFailure(what, "a picture that fits", suspects)

    def _bury(self, death: WorkerFailure) -> WorkerFailure:
        """End what may be left of the process, and add to its death what is known of it then."""
        status = self._reap()
        words = last_words(self._log) if self._log is not None else ""
        if status is None and self._template is not None:
            words = words or self._template.last_words()
        self._give_back()
        if self._stopped:
            raise StoppedError
        code = None if status is None else os.waitstatus_to_exitcode(status)
        if death.what == "the worker process died" and code is not None:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            what = f"{death.what} ({how})"
            death = replace(death, what=what, killed=code == -signal.SIGKILL)
        log.info("%s; its last words: %s", death.what, death.fault or words or "none")
        return replace(death, words=words)

    def _give_back(self) -> None:
        self.device = None
        for thing in (self._connection, self._log):
            if thing is not None:
                thing.close()
        self._connection = self._log = None

    def _reap(self) -> int | None:
        with self._lock:  # a pid is given back once
            pid, self.pid = self.pid, None
        if pid is None or self._template is None:
            return None
        return self._template.reap(pid)

    def _forget_old_words(self) -> None:
        # Decoders may warn of every picture.
        if self._log is not None and os.fstat(self._log.fileno()).st_size > _LOG_BYTES:
            self._log.truncate(0)


def _memory_of(pid: int | None) -> int:
    """Bytes of RAM that a process has to itself; 0 where that is not to be found out."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def usable_memory(memory: float) -> int:
    """What all worker processes together may take of so many bytes, if nobody says."""
    return int(_MEMORY * memory)


def machine_memory() -> int:
    """Bytes of RAM of this machine, or of this container if it may use less."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups v2 and v1
        with suppress(OSError, ValueError), open(f"/sys/fs/cgroup/{name}") as file:
            found = min(found, int(file.read()))
    return found
