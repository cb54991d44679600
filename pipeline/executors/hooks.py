"""The hooks that the driver of a run gives to an executor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.monitoring.metrics import MetricSample


@dataclass(frozen=True)
class ExecutorHooks:
    """Functions of the driver that an executor calls while it runs the stages.

    Attributes:
        is_stopping: whether the run is stopping. The executor then starts no more chunks; it only
            finishes the chunks that the network already has.
        on_replicas: called once with the number of replicas of the network.
        samples: returns the current metrics, for executors with their own metrics exporter.
    """

    is_stopping: Callable[[], bool] = lambda: False
    on_replicas: Callable[[int], Any] = lambda count: None
    samples: Callable[[], Iterable[MetricSample]] = tuple
