"""Pass the metrics of a run to Ray's own exporter, so that they are scraped with the cluster's.

Ray names them `ray_fcnseg_…` and adds labels of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from ray.util.metrics import Counter, Gauge

from pipeline.concurrency import Throttle
from pipeline.monitoring.metrics import FILE_SECONDS, MetricSample, labels_of


class RayMetrics:
    """Reports metrics to the Ray that this process is connected to. Use one per connection.

    Args:
        name: name of the run in the label `name` of every metric.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._is_due = Throttle(FILE_SECONDS)
        self._metrics: dict[str, Counter | Gauge] = {}
        self._reported: dict[tuple[str, str], float] = {}

    def report(self, samples: Iterable[MetricSample], *, at_once: bool = False) -> None:
        """Report the values, at most once per `FILE_SECONDS`.

        Args:
            samples: current metrics of the run.
            at_once: whether to report even if the last report was more recent.
        """
        if not self._is_due() and not at_once:
            return
        for sample in samples:
            labels = labels_of(sample, self.name)
            metric = self._metric(sample, tuple(labels))
            if isinstance(metric, Gauge):
                metric.set(sample.value, labels)
                continue
            key = sample.metric.name, sample.label
            increase = sample.value - self._reported.get(key, 0.0)
            if increase > 0:  # Ray's counters refuse 0
                metric.inc(increase, labels)
                self._reported[key] = sample.value

    def _metric(self, sample: MetricSample, labels: tuple[str, ...]) -> Counter | Gauge:
        metric = sample.metric
        if metric.name not in self._metrics:
            kind = Counter if metric.kind == "counter" else Gauge
            self._metrics[metric.name] = kind(metric.name, metric.meaning, tag_keys=labels)
        return self._metrics[metric.name]
