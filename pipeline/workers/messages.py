"""The messages between the parent process, its fork server and its worker processes.

The parent is the driver or a Ray actor. Requests to the fork server are packed structs. Messages
between parent and worker are pickles: first a `WorkerSetup` and perhaps the weights, then tuples of
samples from the parent; any `WorkerMessage` from the worker.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from fcn_core.errors import FcnError
from pipeline.stages.records import SegmentedPart
from pipeline.stages.spec import NetworkSettings

REQUEST = struct.Struct("=ci")
"""A request to the fork server: FORK and 0 with three descriptors, or REAP and a pid."""


FORK, REAP = b"F", b"R"

STATUS = struct.Struct("=i")
"""The fork server's answer to REAP: the wait status, or UNKNOWN."""


UNKNOWN = -1


@dataclass(frozen=True)
class WorkerSetup:
    """The first message to a worker process.

    Attributes:
        settings: settings of the network.
        weights_where: name of the weights file in errors.
        weights_follow: whether the bytes of the weights are the next message. False: the worker
            maps them from the descriptor that it was forked with.
        memory: bytes that the worker may allocate after the network is loaded; CPU only.
        environment: environment variables of the parent at this moment.
    """

    settings: NetworkSettings
    weights_where: str
    weights_follow: bool
    memory: int
    environment: Mapping[str, str]


@dataclass(frozen=True)
class WorkerStarted:
    """The process runs and waits for its `WorkerSetup`."""

    pid: int


@dataclass(frozen=True)
class WorkerReady:
    """The network is loaded; the worker waits for samples.

    Attributes:
        device: type of the network's device: "cpu" or "cuda".
    """

    device: str


@dataclass(frozen=True)
class WorkingOn:
    """The worker begins with these samples. If the process dies now, these are the suspects.

    Attributes:
        positions: indices into the tuple of samples that the worker was sent.
    """

    positions: tuple[int, ...]


@dataclass(frozen=True)
class SetupRefused:
    """The network cannot be built. The worker process ends; the parent raises the error."""

    error: FcnError


@dataclass(frozen=True)
class OutOfMemory:
    """A memory allocation failed; the worker process ends."""

    detail: str


@dataclass(frozen=True)
class WorkerFault:
    """An unexpected exception (a bug or a device fault); the worker process ends."""

    traceback: str


WorkerMessage = (
    WorkerStarted
    | WorkerReady
    | WorkingOn
    | SetupRefused
    | OutOfMemory
    | WorkerFault
    | SegmentedPart
)
