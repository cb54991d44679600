"""The metrics of a run in Ray's own exporter: whoever scrapes the cluster has them.

Ray calls them `ray_fcnseg_…` and adds labels of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from ray.util.metrics import Counter, Gauge

from pipeline.monitoring import FILE_SECONDS, Sample, every, labels_of


class RayMetrics:
    """Tells the Ray that this process is connected to. One per connection."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._is_due = every(FILE_SECONDS)
        self._metrics: dict[str, Counter | Gauge] = {}
        self._told: dict[tuple[str, str], float] = {}

    def tell(self, samples: Iterable[Sample], *, at_once: bool = False) -> None:
        """Pass the values on, if it is time."""
        if not self._is_due() and not at_once:
            return
        for sample in samples:
            labels = labels_of(sample, self.name)
            metric = self._metric(sample, tuple(labels))
            if isinstance(metric, Gauge):
                metric.set(sample.value, labels)
                continue
            place = sample.metric.name, sample.label
            more = sample.value - self._told.get(place, 0.0)
            if more > 0:  # Ray's counters take nothing else
                metric.inc(more, labels)
                self._told[place] = sample.value

    def _metric(self, sample: Sample, labels: tuple[str, ...]) -> Counter | Gauge:
        what = sample.metric
        if what.name not in self._metrics:
            kind = Counter if what.kind == "counter" else Gauge
            self._metrics[what.name] = kind(what.name, what.meaning, tag_keys=labels)
        return self._metrics[what.name]
