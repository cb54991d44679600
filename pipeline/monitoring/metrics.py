"""Report a run to Prometheus: over HTTP while the run works, or in a text file that remains.

All values come from counters that the driver keeps anyway (`RunCounts`). A failure to report is
logged and never ends the run. On Ray the same values go to Ray, too (`executors.ray_metrics`).
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol

from fcn_core.errors import FcnError
from pipeline.concurrency import Throttle
from pipeline.config import MonitoringConfig
from pipeline.storage import retry

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client.core import Metric as Family

    from pipeline.monitoring.progress import Progress


log = logging.getLogger("fcnseg")


FILE_SECONDS = 10.0
"""Shortest time between two writes of the metrics file, and between two updates of Ray."""


STAGES = ("read", "decode", "forward", "write")


@dataclass(frozen=True)
class Metric:
    """Declaration of one metric: one row of the table in docs/monitoring.md.

    Attributes:
        name: Prometheus name with its unit; ends in `_total` if the value only grows.
        kind: Prometheus type.
        unit: unit of the values, in words.
        meaning: one sentence; the HELP text.
        label: second label beside `name`, with few possible values; None if there is none.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    meaning: str
    label: str | None = None


@dataclass(frozen=True)
class MetricSample:
    """Current value of a metric, with the value of its second label ("" if it has none)."""

    metric: Metric
    value: float
    label: str = ""


IMAGES = Metric("fcnseg_images_total", "counter", "images", "Segmented, in finished chunks.")

QUARANTINED = Metric(
    "fcnseg_quarantined_images_total", "counter", "images", "Quarantined, in finished chunks."
)

CHUNKS = Metric("fcnseg_chunks_total", "counter", "chunks", "Finished: segmented and written.")

STAGE_SECONDS = Metric(
    "fcnseg_stage_seconds_total", "counter", "seconds",
    "Spent in a stage by all workers, in finished chunks.", "stage",
)  # fmt: skip

RETRIES = Metric(
    "fcnseg_store_retries_total", "counter", "requests",
    "Retried store requests, in finished chunks; after the end of the run also the driver's own.",
)  # fmt: skip

SHARDS = Metric(
    "fcnseg_shards", "gauge", "shards", "Shards that were pending when the run began.", "state"
)

REPLICAS = Metric("fcnseg_network_copies", "gauge", "replicas", "Replicas of the network.")

BUSY = Metric(
    "fcnseg_network_busy_ratio", "gauge", "0 to 1",
    "Share of time that the replicas spent in forward passes, since segmentation began.",
)  # fmt: skip

STARTED = Metric("fcnseg_run_start_time_seconds", "gauge", "Unix time", "Start of the run.")

ENDED = Metric(
    "fcnseg_run_end_time_seconds", "gauge", "Unix time", "End of the run; absent while it runs."
)

EXIT_CODE = Metric(
    "fcnseg_run_exit_code", "gauge", "exit code", "Exit code of the run; absent while it runs."
)

INFO = Metric(
    "fcnseg_run_info",
    "gauge",
    "1",
    "Always 1; the labels name the run and the package version.",
    "run",
)

METRICS = (
    IMAGES, QUARANTINED, CHUNKS, STAGE_SECONDS, RETRIES, SHARDS, REPLICAS, BUSY, STARTED, ENDED,
    EXIT_CODE, INFO,
)  # fmt: skip


class RunCounts(Protocol):
    """Counters of a run that metrics are made from; `pipeline.committer.Committer` has them."""

    @property
    def images(self) -> int:
        """Segmented images, in finished chunks."""

    @property
    def failures(self) -> int:
        """Quarantined images, in finished chunks."""

    @property
    def chunks(self) -> int:
        """Finished chunks."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """Worker seconds by stage, in finished chunks."""

    @property
    def store_retries(self) -> int:
        """Retried store requests of the workers."""

    @property
    def committed(self) -> int:
        """Shards that this run committed."""

    @property
    def failed(self) -> Sized:
        """Shards that this run could not commit."""

    @property
    def finished(self) -> int:
        """Shards that this run committed or gave up."""


class Monitor:
    """Context manager around one run that reports metrics, including the exit code at the end.

    Reports nothing before `begin`: a failure before the lease is held belongs to no run.

    Args:
        config: port and file for the metrics.
    """

    def __init__(self, config: MonitoringConfig) -> None:
        self.config = config
        self._started = time.time()
        self._segmenting_since = time.monotonic()
        self._counts: RunCounts | None = None
        self._pending = 0
        self._run = ""
        self._replicas = 0
        self._exit_code: int | None = None
        self._ended: float | None = None
        self._outlets: list[_File | _Server] = []

    def begin(self, counts: RunCounts, pending: int, run: str) -> None:
        """Start to serve and write metrics, once the run is planned.

        Args:
            counts: counters of the run; read at every scrape and every write.
            pending: shards that are pending at the start of the run.
            run: name of the run in the history; "" if there is nothing to do.
        """
        self._counts, self._pending, self._run = counts, pending, run
        self._segmenting_since = time.monotonic()
        if self.config.metrics_port:
            self._outlets.append(_Server(self))
        if self.config.metrics_file is not None:
            self._outlets.append(_File(self, self.config.metrics_file))

    def on_replicas(self, copies: int) -> None:
        """Record the current number of replicas of the network."""
        self._replicas = copies

    def on_progress(self, _: Progress) -> None:
        """Update the metrics file, if it is time."""
        for outlet in self._outlets:
            outlet.update()

    def end(self, exit_code: int) -> None:
        """Record the exit code and the time at the end of the run."""
        self._exit_code, self._ended = exit_code, time.time()

    def samples(self) -> Iterator[MetricSample]:
        """Yield the current value of every metric; none before `begin`."""
        counts = self._counts
        if counts is None:
            return
        yield MetricSample(IMAGES, counts.images)
        yield MetricSample(QUARANTINED, counts.failures)
        yield MetricSample(CHUNKS, counts.chunks)
        for stage in STAGES:
            yield MetricSample(STAGE_SECONDS, counts.seconds.get(stage, 0.0), stage)
        # Retries of the driver are added only at the end. While the run works, the process counter
        # also holds those of worker threads, which arrive with receipts and would count twice.
        own = 0 if self._ended is None else retry.count()
        yield MetricSample(RETRIES, counts.store_retries + own)
        for state, number in (
            ("committed", counts.committed),
            ("failed", len(counts.failed)),
            ("pending", self._pending - counts.finished),
        ):
            yield MetricSample(SHARDS, number, state)
        yield MetricSample(REPLICAS, self._replicas)
        yield MetricSample(BUSY, self._busy(counts))
        yield MetricSample(STARTED, self._started)
        if self._ended is not None and self._exit_code is not None:
            yield MetricSample(ENDED, self._ended)
            yield MetricSample(EXIT_CODE, self._exit_code)
        yield MetricSample(INFO, 1, self._run)

    def _busy(self, counts: RunCounts) -> float:
        available = self._replicas * (time.monotonic() - self._segmenting_since)
        return min(1.0, counts.seconds.get("forward", 0.0) / available) if available else 0.0

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._ended is None:
            self.end(_exit_code(error))
        for outlet in self._outlets:
            outlet.close()


def _exit_code(error: BaseException | None) -> int:
    if isinstance(error, FcnError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1


class _Registry:
    """Collector for prometheus_client that computes all values at every scrape."""

    def __init__(self, monitor: Monitor) -> None:
        from prometheus_client import CollectorRegistry

        self.monitor = monitor
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def collect(self) -> Iterator[Family]:
        """Yield the metric families with their current values."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for sample in self.monitor.samples():
            metric = sample.metric
            labels = labels_of(sample, self.monitor.config.metrics_name)
            if metric.name not in families:
                kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                families[metric.name] = kind(metric.name, metric.meaning, labels=[*labels])
            families[metric.name].add_metric([*labels.values()], sample.value)
        yield from families.values()


def labels_of(sample: MetricSample, name: str) -> dict[str, str]:
    """Return the labels of a sample by name.

    Args:
        sample: value of a metric.
        name: value of the label `name`, from `monitoring.metrics_name`.
    """
    labels = {"name": name}
    if sample.metric.label is not None:
        labels[sample.metric.label] = sample.label
    if sample.metric is INFO:
        labels["version"] = importlib.metadata.version("fcn-pipeline")
    return labels


class _Server:
    """HTTP server of the metrics, for as long as the run works."""

    def __init__(self, monitor: Monitor) -> None:
        from prometheus_client import start_http_server

        config = monitor.config
        self.running: tuple[WSGIServer, Thread] | None = None
        try:
            self.running = start_http_server(
                config.metrics_port, config.metrics_host, _Registry(monitor).registry
            )
        except OSError as error:
            log.warning(
                "metrics are not served: port %d of %s: %s. The run goes on; for the next one "
                "choose another monitoring.metrics_port", config.metrics_port, config.metrics_host,
                error.strerror or error,
            )  # fmt: skip

    def update(self) -> None:
        """Do nothing: values are computed at every scrape."""

    def close(self) -> None:
        """Stop the server."""
        if self.running is not None:
            server, thread = self.running
            server.shutdown()
            server.server_close()
            thread.join()


class _File:
    """Text file of the metrics, which remains after the run, for node_exporter to collect."""

    def __init__(self, monitor: Monitor, path: str) -> None:
        self.registry = _Registry(monitor).registry
        self.path = os.path.abspath(os.path.expanduser(path))
        self._is_due: Callable[[], bool] = Throttle(FILE_SECONDS)
        self._has_warned = False

    def update(self) -> None:
        """Write the file, if it is time."""
        if self._is_due():
            self._write()

    def close(self) -> None:
        """Write the file for the last time."""
        self._write()

    def _write(self) -> None:
        from prometheus_client import write_to_textfile

        try:
            write_to_textfile(self.path, self.registry)  # writes a temporary file, then renames it
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                log.warning("metrics are not written: %s: %s", self.path, error.strerror or error)
