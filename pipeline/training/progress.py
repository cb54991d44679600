"""What a training says of itself while it is on, and when it is over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.inputs.sample import Failure


@dataclass(frozen=True)
class TrainProgress:
    """How far a training is.

    Attributes:
        line: of metrics.jsonl, the newest.
        total_steps: of all stages.
        seconds_left: at the pace so far, evaluations included; None before the first step.
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
        first: the step that it began behind.
        step: the last one that was done.
        is_finished: whether it was the last of all.
        failures: samples that nothing was learnt from, in any process.
    """

    first: int
    step: int
    is_finished: bool
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves behind.

    Attributes:
        output: its directory.
        step: the last one.
        total_steps: of all stages.
        variant: of the last weights.
        last_sha256: of last.safetensors.
        best: the line of metrics.jsonl whose weights are best.safetensors; None without VAL.
        classes: names.
        bad: samples skipped by this command.
        trained_now: steps of this command.
        seconds: wall time of this command.
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
        """For machines."""
        return {**vars(self), "classes": list(self.classes), "seconds": round(self.seconds, 3)}
