"""Read and watch the nodes of the Ray cluster that this process is connected to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray._private.state

from pipeline.config import ComputeConfig
from pipeline.executors.placement import Node, ReplicaPlan, describe_shortage

log = logging.getLogger("fcnseg")


WATCH_SECONDS = 20.0
"""Seconds between two checks whether the nodes that a run needs are still there."""


def list_nodes() -> list[Node]:
    """Return the nodes that are alive now."""
    rows = ray.nodes()  # type: ignore[no-untyped-call]
    return [
        Node(row["NodeID"], row["NodeManagerAddress"], row["Resources"], row.get("Labels") or {})
        for row in rows
        if row["Alive"]
    ]


def list_addable_nodes() -> list[Node]:
    """Return one node of each type that an autoscaler may add; none without an autoscaler.

    Autoscalers (of KubeRay, of `ray up`) report their node types to Ray's cluster configuration.
    """
    config = ray._private.state.state.get_cluster_config()
    groups = config.node_group_configs if config else ()
    return [
        Node(group.name, "", dict(group.resources))
        for group in groups
        if group.resources and group.max_count != 0
    ]


@contextmanager
def watch_nodes(compute: ComputeConfig, plan: ReplicaPlan) -> Iterator[None]:
    """Log a warning when no node can hold a replica, or read and write, and when one can again.

    Ray itself waits without any message: the node may come back, or an autoscaler may add one.

    Args:
        compute: the `compute` section of the configuration.
        plan: the replicas that were requested.
    """
    io_labels = tuple(f"{key}={value}" for key, value in plan.io_selector.items())
    compute = compute.model_copy(update={"io_labels": io_labels})
    if plan.gpus:  # with device "auto", a cluster that lost its GPUs would count as a CPU cluster
        required = {"device": "cuda", "gpus_per_worker": plan.gpus}
        compute = compute.model_copy(update=required)
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(compute, stop), name="nodes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)  # the thread takes longer only if Ray has lost its head node


def _watch(compute: ComputeConfig, stop: threading.Event) -> None:
    reported: str | None = None
    while not stop.wait(WATCH_SECONDS):
        shortage = describe_shortage(compute, list_nodes())
        if shortage != reported:
            text = f"{shortage}: waiting for a node" if shortage else "a suitable node has joined"
            log.warning("%s", text)
        reported = shortage
