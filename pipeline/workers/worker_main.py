"""The code that runs inside the fork server and inside the worker processes.

The fork server is a fresh interpreter that has imported torch, but has neither used torch nor
started a thread. Forking it starts a worker in milliseconds instead of seconds, shares the memory
of the imports, and is safe (forking the driver would not be). The parent's side is in
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
from pipeline.workers.shared_weights import descriptor_path

_PR_SET_PDEATHSIG = 1

_MEMORY_EXIT = 70


Send = Callable[[WorkerMessage], None]


def main() -> None:
    """Run the fork server: fork on request, and return when the parent closes the socket.

    The socket is the descriptor in `sys.argv[1]`.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    # Ctrl-C reaches every process of the foreground group; only the parent decides what to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # other systems forbid a fork after these imports
        import safetensors.torch  # noqa: F401

        import pipeline.stages.segment  # noqa: F401
    gc.collect()
    gc.freeze()  # the collector never writes to the imports' pages, so they stay shared
    fork_server, children = os.getpid(), set()
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
                    _run_worker(Connection(connection), log, weights, fork_server)
                finally:  # a worker must never continue this loop
                    os._exit(1)
            children.add(child)
            for descriptor in descriptors:
                os.close(descriptor)
        else:
            is_child = pid in children
            children.discard(pid)
            control.sendall(STATUS.pack(_reap(pid) if is_child else UNKNOWN))


def _reap(pid: int) -> int:
    # A process that has already begun to end keeps its own status.
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _run_worker(connection: Connection, log: int, weights: int, fork_server: int) -> NoReturn:
    """Run a worker process from its fork to its exit."""
    _prepare(log, fork_server)

    def send(message: WorkerMessage) -> None:
        connection.send_bytes(pickle.dumps(message, protocol=5))

    code = 0
    try:
        send(WorkerStarted(os.getpid()))
        _serve(connection, weights, send)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has ended or has closed the connection
    except FcnError as error:
        send(SetupRefused(error))
    except MemoryError as error:
        code = _MEMORY_EXIT
        send(OutOfMemory(str(error)))
    except BaseException:
        code = 1
        send(WorkerFault(traceback.format_exc()))
    os._exit(code)


def _prepare(log: int, fork_server: int) -> None:
    if sys.platform == "linux":
        # The kernel kills this process when the fork server ends. It may have ended before this
        # call: then the parent's pid is another one.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != fork_server:
            os._exit(0)
        try:  # if the machine runs out of memory, the kernel kills this process, not the driver
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("1000")
        except OSError:
            pass
    for stream in (1, 2):
        os.dup2(log, stream)
    faulthandler.enable()  # writes a traceback to the log after a segmentation fault


def _serve(connection: Connection, memory: int, send: Send) -> None:
    setup: WorkerSetup = pickle.loads(connection.recv_bytes())
    os.environ.clear()
    os.environ.update(setup.environment)  # CUDA_VISIBLE_DEVICES may have changed since the start
    from pipeline.stages.segment import Segmenter  # not yet imported if not Linux

    if setup.weights_follow:
        weights = WeightsFile(connection.recv_bytes(), setup.weights_where)
    else:
        weights = WeightsFile.mapped(descriptor_path(memory), setup.weights_where)
    segmenter = Segmenter(setup.settings, weights)
    del weights
    device = segmenter.predictor.device.type
    if device == "cpu" and sys.platform == "linux":  # CUDA reserves more than it uses
        limit = _data_bytes() + setup.memory
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    send(WorkerReady(device))
    while True:
        samples = pickle.loads(connection.recv_bytes())
        send(segmenter(samples, lambda positions: send(WorkingOn(tuple(positions)))))


def _data_bytes() -> int:
    """Return the bytes of this process that RLIMIT_DATA counts."""
    with open("/proc/self/status") as file:
        sizes = dict(line.split(":", 1) for line in file)
    return int(sizes["VmData"].split()[0]) * 1024
