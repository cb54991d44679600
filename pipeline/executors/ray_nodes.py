"""The nodes of the cluster that this process is connected to, and those its autoscaler may add.

The metrics of a run in Ray's own exporter: whoever scrapes the cluster has them.

Ray calls them `ray_fcnseg_…` and adds labels of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import ray
import ray._private.state
from ray.util.metrics import Counter, Gauge

from pipeline.concurrency import Throttle
from pipeline.config import ComputeConfig
from pipeline.executors.placement import Node, Pool, lack
from pipeline.monitoring.metrics import FILE_SECONDS, MetricSample, labels_of

log = logging.getLogger("fcnseg")


WATCH_SECONDS = 20.0
"""How often a run looks whether the nodes that it needs are still there."""


def live_nodes() -> list[Node]:
    """The nodes that live now."""
    rows = ray.nodes()  # type: ignore[no-untyped-call]
    return [
        Node(row["NodeID"], row["NodeManagerAddress"], row["Resources"], row.get("Labels") or {})
        for row in rows
        if row["Alive"]
    ]


def nodes_to_come() -> list[Node]:
    """One node of each kind that an autoscaler may add; none where there is no autoscaler.

    Autoscalers (KubeRay's, that of `ray up`) report their node types; Ray Data reads them there.
    """
    config = ray._private.state.state.get_cluster_config()
    groups = config.node_group_configs if config else ()
    return [
        Node(group.name, "", dict(group.resources))
        for group in groups
        if group.resources and group.max_count != 0
    ]


@contextmanager
def watched(compute: ComputeConfig, pool: Pool) -> Iterator[None]:
    """Say in the log when no node is left that can hold a copy, or read and write; and when one is.

    Ray itself waits without a word: a node may come back, or an autoscaler may bring one.
    """
    reads = tuple(f"{key}={value}" for key, value in pool.io_selector.items())
    compute = compute.model_copy(update={"io_labels": reads})
    if pool.gpus:  # with device auto, a cluster that lost its GPUs would look like one of CPUs
        asked = {"device": "cuda", "gpus_per_worker": pool.gpus}
        compute = compute.model_copy(update=asked)
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(compute, stop), name="nodes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)  # longer only where Ray itself has lost its head


def _watch(compute: ComputeConfig, stop: threading.Event) -> None:
    told: str | None = None
    while not stop.wait(WATCH_SECONDS):
        missing = lack(compute, live_nodes())
        if missing != told:
            log.warning("%s", f"{missing}: waiting for a node" if missing else "a node has come")
        told = missing


class RayMetrics:
    """Tells the Ray that this process is connected to. One per connection."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._is_due = Throttle(FILE_SECONDS)
        self._metrics: dict[str, Counter | Gauge] = {}
        self._told: dict[tuple[str, str], float] = {}

    def tell(self, samples: Iterable[MetricSample], *, at_once: bool = False) -> None:
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

    def _metric(self, sample: MetricSample, labels: tuple[str, ...]) -> Counter | Gauge:
        what = sample.metric
        if what.name not in self._metrics:
            kind = Counter if what.kind == "counter" else Gauge
            self._metrics[what.name] = kind(what.name, what.meaning, tag_keys=labels)
        return self._metrics[what.name]
