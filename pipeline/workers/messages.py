"""What a driver, its template and its worker processes say to each other."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from fcn_core.errors import FcnError
from pipeline.stages.records import SegmentedPart
from pipeline.stages.spec import NetworkSettings

REQUEST = struct.Struct("=ci")
"""To the template: FORK with three descriptors, or REAP with a pid."""


FORK, REAP = b"F", b"R"

STATUS = struct.Struct("=i")
"""Its answer to REAP: the wait status, or UNKNOWN."""


UNKNOWN = -1


@dataclass(frozen=True)
class WorkerSetup:
    """The first message to a worker process.

    Attributes:
        settings: of the network.
        weights_where: names the weights in errors.
        weights_follow: whether their bytes come next, for want of a descriptor to map.
        memory: bytes that it may allocate on top of what it begins with, when it runs on a CPU.
        environment: of the parent at this moment.
    """

    settings: NetworkSettings
    weights_where: str
    weights_follow: bool
    memory: int
    environment: Mapping[str, str]


@dataclass(frozen=True)
class WorkerStarted:
    """First words: the process is there, and builds the network."""

    pid: int


@dataclass(frozen=True)
class WorkerReady:
    """The network is loaded; samples may come."""

    device: str


@dataclass(frozen=True)
class WorkingOn:
    """Places of the samples that are worked on next: what to suspect if nothing more is heard."""

    places: tuple[int, ...]


@dataclass(frozen=True)
class SetupRefused:
    """An error written for people ends this worker process, and the run."""

    error: FcnError


@dataclass(frozen=True)
class OutOfMemory:
    """An allocation failed; the process ends itself."""

    detail: str


@dataclass(frozen=True)
class WorkerFault:
    """An exception that nothing foresaw; the process ends itself."""

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
