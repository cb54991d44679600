"""Progress, outcome and result of a training; no torch here, so CLI and flows can import it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.inputs.sample import Failure


@dataclass(frozen=True)
class TrainProgress:
    """Progress of a running training.

    Attributes:
        line: newest line of metrics.jsonl.
        total_steps: steps of all stages.
        seconds_left: estimated time left, s, validation included; None before the first step.
        bad: samples skipped so far.
    """

    line: Mapping[str, Any]
    total_steps: int
    seconds_left: float | None
    bad: int


@dataclass(frozen=True)
class TrainOutcome:
    """How a training loop ended.

    Attributes:
        first: last step before the loop started (0 for a new training).
        step: last finished step.
        is_finished: whether all steps of all stages are finished.
        failures: bad samples, skipped by any process.
    """

    first: int
    step: int
    is_finished: bool
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class TrainResult:
    """The result of `fcnseg train`.

    Attributes:
        output: location of the training's directory.
        step: last finished step.
        total_steps: steps of all stages.
        variant: variant of the network in last.safetensors.
        last_sha256: SHA-256 checksum of last.safetensors.
        best: line of metrics.jsonl that belongs to best.safetensors; None without VAL.
        classes: class names.
        bad: samples skipped by this command.
        trained_now: steps trained by this command.
        seconds: wall time of this command, s.
    """

    output: str
    step: int
    total_steps: int
    variant: str
    last_sha256: str
    best: Mapping[str, Any] | None
    classes: tuple[str, ...]
    bad: int
    trained_now: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a JSON document."""
        return {**vars(self), "classes": list(self.classes), "seconds": round(self.seconds, 3)}
