"""TODO docstring."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.monitoring.metrics import MetricSample

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class ExecutorHooks:
    """What an executor hears from the driver of a run, and tells it.

    Attributes:
        is_stopping: once it says so, only what the network has is finished.
        on_copies: told how many copies of the network there are.
        samples: the metrics of this moment, for executors that have an exporter of their own.
    """

    is_stopping: Callable[[], bool] = lambda: False
    on_copies: Callable[[int], Any] = lambda copies: None
    samples: Callable[[], Iterable[MetricSample]] = tuple
