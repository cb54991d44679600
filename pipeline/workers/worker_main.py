"""Worker processes from the inside: the template that they are forked from, and their loop.

The template is a fresh interpreter that has imported torch, and has neither used it nor started a
thread of it: forking it gives a worker in milliseconds instead of seconds, shares the memory of the
imports, and is safe where forking the driver would not be. The other sides are
`pipeline.workers.fork_server` and `pipeline.workers.supervisor`.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import pickle
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NoReturn

from fcn_core.errors import FcnError
from fcn_core.weights.weights_file import WeightsFile
from pipeline.workers.messages import (
    FORK,
    REQUEST,
    STATUS,
    UNKNOWN,
    OutOfMemory,
    SetupRefused,
    WorkerFault,
    WorkerMessage,
    WorkerReady,
    WorkerSetup,
    WorkerStarted,
    WorkingOn,
)
from pipeline.workers.shared_weights import path_of

_PR_SET_PDEATHSIG = 1

_MEMORY_EXIT = 70


Send = Callable[[WorkerMessage], None]


def main() -> None:
    """The template: fork on request, and end with the parent, which is the end of its socket."""
    control = socket.socket(fileno=int(sys.argv[1]))
    # Ctrl-C reaches the whole foreground group; the parent alone decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere, system libraries forbid to fork after such imports
        import safetensors.torch  # noqa: F401

        import pipeline.stages.segment  # noqa: F401
    gc.collect()
    gc.freeze()  # leaves the imports' pages untouched, and so shared
    template, children = os.getpid(), set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, REQUEST.size, 3)
        if len(message) < REQUEST.size:
            return
        action, pid = REQUEST.unpack(message)
        if action == FORK:
            child = os.fork()
            if child == 0:
                try:
                    control.close()
                    connection, log, weights = descriptors
                    _work(Connection(connection), log, weights, template)
                finally:  # never back into this loop
                    os._exit(1)
            children.add(child)
            for descriptor in descriptors:
                os.close(descriptor)
        else:
            known = pid in children
            children.discard(pid)
            control.sendall(STATUS.pack(_reap(pid) if known else UNKNOWN))


def _reap(pid: int) -> int:
    # A process that is ending already keeps the status that it ends with.
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _work(connection: Connection, log: int, weights: int, template: int) -> NoReturn:
    """A worker process, from its birth to its end."""
    _prepare(log, template)

    def tell(answer: WorkerMessage) -> None:
        connection.send_bytes(pickle.dumps(answer, protocol=5))

    code = 0
    try:
        tell(WorkerStarted(os.getpid()))
        _serve(connection, weights, tell)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone, or has lost interest
    except FcnError as error:
        tell(SetupRefused(error))
    except MemoryError as error:
        code = _MEMORY_EXIT
        tell(OutOfMemory(str(error)))
    except BaseException:
        code = 1
        tell(WorkerFault(traceback.format_exc()))
    os._exit(code)


def _prepare(log: int, template: int) -> None:
    if sys.platform == "linux":
        # A template that is killed takes its children along; one that is already gone, too.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != template:
            os._exit(0)
        try:  # where memory is short the kernel is to choose this process, not the driver
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("1000")
        except OSError:
            pass
    for stream in (1, 2):
        os.dup2(log, stream)
    faulthandler.enable()  # last words of a process that segfaults


def _serve(connection: Connection, memory: int, tell: Send) -> None:
    setup: WorkerSetup = pickle.loads(connection.recv_bytes())
    os.environ.clear()
    os.environ.update(setup.environment)  # CUDA_VISIBLE_DEVICES may have been set since
    from pipeline.stages.segment import Segmenter  # where the template did not import it

    if setup.weights_follow:
        weights = WeightsFile(connection.recv_bytes(), setup.weights_where)
    else:
        weights = WeightsFile.mapped(path_of(memory), setup.weights_where)
    segmenter = Segmenter(setup.settings, weights)
    del weights
    device = segmenter.predictor.device.type
    if device == "cpu" and sys.platform == "linux":  # CUDA reserves more than it ever uses
        limit = _data_bytes() + setup.memory
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    tell(WorkerReady(device))
    while True:
        samples = pickle.loads(connection.recv_bytes())
        tell(segmenter(samples, lambda places: tell(WorkingOn(tuple(places)))))


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process now."""
    with open("/proc/self/status") as file:
        sizes = dict(line.split(":", 1) for line in file)
    return int(sizes["VmData"].split()[0]) * 1024
