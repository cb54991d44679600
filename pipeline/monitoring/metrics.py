"""What machines see of a run: metrics for Prometheus, served on a port or left in a file.

The driver knows all of it anyway, from receipts and commits: nothing is counted for this alone, and
nothing here can end a run. On Ray the same numbers also go to Ray (`pipeline.executors.ray_metrics`).
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from fcn_core.errors import FcnError
from pipeline.concurrency import Throttle
from pipeline.config import MonitoringConfig
from pipeline.storage import retry as retries

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client.core import Metric as Family

    from pipeline.committer import Committer
    from pipeline.monitoring.progress import Progress


log = logging.getLogger("fcnseg")


FILE_SECONDS = 10.0
"""Between two writes of the file; also between two times that Ray is told."""


STAGES = ("read", "decode", "forward", "write")


@dataclass(frozen=True)
class Metric:
    """One row of the table in docs/monitoring.md.

    Attributes:
        name: with its unit, and `_total` if it only grows.
        kind: of Prometheus.
        unit: of its values, in words.
        meaning: one sentence.
        label: what its values are told apart by, beside `name`; bounded.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    meaning: str
    label: str | None = None


@dataclass(frozen=True)
class MetricSample:
    """A value of a metric, at this moment."""

    metric: Metric
    value: float
    label: str = ""


IMAGES = Metric("fcnseg_images_total", "counter", "images", "Labelled, in finished chunks.")

QUARANTINED = Metric(
    "fcnseg_quarantined_images_total", "counter", "images", "Quarantined, in finished chunks."
)

CHUNKS = Metric("fcnseg_chunks_total", "counter", "chunks", "Finished: labelled and written.")

STAGE_SECONDS = Metric(
    "fcnseg_stage_seconds_total", "counter", "seconds",
    "Spent in a stage by all workers, in finished chunks.", "stage",
)  # fmt: skip

RETRIES = Metric(
    "fcnseg_store_retries_total", "counter", "requests",
    "Requests to stores that were tried again, in finished chunks; at the end the driver's, too.",
)  # fmt: skip

SHARDS = Metric(
    "fcnseg_shards", "gauge", "shards", "Of what was pending when the run began.", "state"
)

COPIES = Metric("fcnseg_network_copies", "gauge", "copies", "Copies of the network.")

BUSY = Metric(
    "fcnseg_network_busy_ratio", "gauge", "0 to 1",
    "Share of their time that the copies spent in forward passes, since labelling began.",
)  # fmt: skip

STARTED = Metric("fcnseg_run_start_time_seconds", "gauge", "Unix time", "When the run began.")

ENDED = Metric(
    "fcnseg_run_end_time_seconds", "gauge", "Unix time", "When it ended; absent while it runs."
)

EXIT_CODE = Metric(
    "fcnseg_run_exit_code", "gauge", "exit code", "How it ended; absent while it runs."
)

INFO = Metric(
    "fcnseg_run_info", "gauge", "1", "Always 1; its labels say which run of which version.", "run"
)

METRICS = (
    IMAGES, QUARANTINED, CHUNKS, STAGE_SECONDS, RETRIES, SHARDS, COPIES, BUSY, STARTED, ENDED,
    EXIT_CODE, INFO,
)  # fmt: skip


class Monitor:
    """The metrics of one run, as a context manager around it: however it ends, that is told.

    Says nothing before `begin`: whatever fails before the lease is held is not this run's.
    """

    def __init__(self, config: MonitoringConfig) -> None:
        self.config = config
        self._started = time.time()
        self._labelling_since = time.monotonic()
        self._collector: Committer | None = None
        self._run = ""
        self._copies = 0
        self._exit_code: int | None = None
        self._ended: float | None = None
        self._outlets: list[_File | _Server] = []

    def begin(self, collector: Committer, run: str) -> None:
        """The run knows what it has to do.

        Args:
            collector: is read whenever somebody wants to know.
            run: its name in the history; "" if there is nothing to do.
        """
        self._collector, self._run = collector, run
        self._labelling_since = time.monotonic()
        if self.config.metrics_port:
            self._outlets.append(_Server(self))
        if self.config.metrics_file is not None:
            self._outlets.append(_File(self, self.config.metrics_file))

    def on_copies(self, copies: int) -> None:
        """How many copies of the network there are."""
        self._copies = copies

    def on_progress(self, _: Progress) -> None:
        """Something was finished."""
        for outlet in self._outlets:
            outlet.update()

    def end(self, exit_code: int) -> None:
        """The run is over."""
        self._exit_code, self._ended = exit_code, time.time()

    def samples(self) -> Iterator[MetricSample]:
        """All values of this moment."""
        run = self._collector
        if run is None:
            return
        yield MetricSample(IMAGES, run.images)
        yield MetricSample(QUARANTINED, run.failures)
        yield MetricSample(CHUNKS, run.chunks)
        for stage in STAGES:
            yield MetricSample(STAGE_SECONDS, run.seconds.get(stage, 0.0), stage)
        # The driver's own tries are added last: in between, what is its and what its threads',
        # which comes with receipts, is not to be told apart.
        own = 0 if self._ended is None else retries.count()
        yield MetricSample(RETRIES, run.store_retries + own)
        for state, number in (
            ("committed", run.committed),
            ("failed", len(run.failed)),
            ("pending", len(run.plan.pending) - run.finished),
        ):
            yield MetricSample(SHARDS, number, state)
        yield MetricSample(COPIES, self._copies)
        yield MetricSample(BUSY, self._busy(run))
        yield MetricSample(STARTED, self._started)
        if self._ended is not None and self._exit_code is not None:
            yield MetricSample(ENDED, self._ended)
            yield MetricSample(EXIT_CODE, self._exit_code)
        yield MetricSample(INFO, 1, self._run)

    def _busy(self, run: Committer) -> float:
        worked = self._copies * (time.monotonic() - self._labelling_since)
        return min(1.0, run.seconds.get("forward", 0.0) / worked) if worked else 0.0

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
    """What prometheus_client asks for values: none are kept."""

    def __init__(self, monitor: Monitor) -> None:
        from prometheus_client import CollectorRegistry

        self.monitor = monitor
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def collect(self) -> Iterator[Family]:
        """Families of the format, each with its values of now."""
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
    """The labels of a sample and their values."""
    labels = {"name": name}
    if sample.metric.label is not None:
        labels[sample.metric.label] = sample.label
    if sample.metric is INFO:
        labels["version"] = importlib.metadata.version("fcn-pipeline")
    return labels


class _Server:
    """The metrics over HTTP, while the run lasts."""

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
        """Nothing: values are taken when they are asked for."""

    def close(self) -> None:
        """Serve no more."""
        if self.running is not None:
            server, thread = self.running
            server.shutdown()
            server.server_close()
            thread.join()


class _File:
    """The metrics in a file, which stays when the run is over: what a nightly job needs."""

    def __init__(self, monitor: Monitor, path: str) -> None:
        self.registry = _Registry(monitor).registry
        self.path = os.path.abspath(os.path.expanduser(path))
        self.due: Callable[[], bool] = Throttle(FILE_SECONDS)
        self.told = False

    def update(self) -> None:
        """Write it, if it is time."""
        if self.due():
            self._write()

    def close(self) -> None:
        """Write it for the last time."""
        self._write()

    def _write(self) -> None:
        from prometheus_client import write_to_textfile

        try:
            write_to_textfile(self.path, self.registry)  # a file beside it, then renamed
        except OSError as error:
            if not self.told:
                self.told = True
                log.warning("metrics are not written: %s: %s", self.path, error.strerror or error)
