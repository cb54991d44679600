"""The Ray executor: runs the same stages as a Ray Data pipeline, one row per chunk.

A row has one column of pickled bytes. So Arrow knows its true size, a row never spans two shards,
and no tensor extension type is needed. The driver reads receipts with `iter_rows` and commits
shards while the pipeline runs.
"""

from __future__ import annotations

import logging
import math
import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import ray
import ray.data
import ray.data.exceptions
import ray.exceptions

from fcn_core.errors import FcnError
from fcn_core.weights.weights_file import WeightsFile
from pipeline import logs
from pipeline.errors import ClusterError, ShardError, StoreError
from pipeline.executors.hooks import ExecutorHooks
from pipeline.executors.placement import (
    IO_CPUS,
    ReplicaPlan,
    plan_replicas,
    to_label_selector,
)
from pipeline.executors.ray_connection import connect_ray
from pipeline.executors.ray_metrics import RayMetrics
from pipeline.executors.ray_nodes import list_addable_nodes, list_nodes, watch_nodes
from pipeline.inputs.shard import Shard
from pipeline.stages.read import read_chunks
from pipeline.stages.records import Receipt
from pipeline.stages.spec import RunSpec, ShardFailure
from pipeline.stages.write import write_chunk
from pipeline.workers.segmenter import IsolatedSegmenter
from pipeline.workers.shared_weights import SharedWeights
from pipeline.workers.supervisor import machine_memory, usable_memory

Row = dict[str, Any]

log = logging.getLogger("fcnseg")


MAX_READ_TASKS = 5_000
"""Most read tasks of one Ray dataset. With more shards, a task reads several, one by one."""


_NO_HOOKS = ExecutorHooks()


def run_ray(
    spec: RunSpec,
    weights: WeightsFile,
    shards: Sequence[Shard],
    *,
    hooks: ExecutorHooks = _NO_HOOKS,
) -> Iterator[Receipt | ShardFailure]:
    """Run all stages on Ray; yield a receipt of each finished chunk, in the order of finishing.

    Connects to `compute.ray_address`, RAY_ADDRESS or the cluster of the surrounding Ray job.
    Otherwise starts an embedded Ray, and stops it at the end.

    Args:
        spec: run settings shared by all stages.
        weights: weights of the network.
        shards: shards to segment, at least one.
        hooks: functions of the driver.

    Raises:
        StoreError: a store fails in a task.
        ClusterError: the cluster cannot be reached, or no node can hold a replica.
    """
    with connect_ray(spec.config.compute.ray_address):
        weights_ref = ray.put(weights)
        metrics = RayMetrics(spec.config.monitoring.metrics_name)
        plan = _plan_replicas(spec)
        hooks.on_replicas(plan.initial)
        with watch_nodes(spec.config.compute, plan):
            for row in _rows(make_dataset(spec, weights_ref, shards, plan)):
                item = pickle.loads(row["item"])
                if isinstance(item, FcnError):
                    raise item
                yield item
                metrics.report(hooks.samples())
        metrics.report(hooks.samples(), at_once=True)


def _rows(dataset: Any) -> Iterator[Row]:
    try:
        yield from dataset.iter_rows()
    except ray.data.exceptions.ExecutionTimeoutError as error:
        raise ClusterError(
            where="cluster",
            found=str(error).partition("\n")[0].rstrip("."),
            expected="a steady flow of chunks",
            remedy="Look for lost nodes (ray status); then run again to resume.",
        ) from error


def _plan_replicas(spec: RunSpec) -> ReplicaPlan:
    """Plan the replicas on this cluster; log a warning if not all of them fit now.

    Raises:
        ClusterError: no node can hold a replica of the network.
    """
    plan = plan_replicas(spec.config.compute, list_nodes(), list_addable_nodes())
    if plan.initial > plan.capacity:
        log.warning(
            "asks for %d replicas of the network, the cluster has room for %d now: the others wait "
            "for nodes that join", plan.initial, plan.capacity,
        )  # fmt: skip
    return plan


def make_dataset(
    spec: RunSpec, weights_ref: Any, shards: Sequence[Shard], plan: ReplicaPlan
) -> Any:
    """Return the Ray dataset that reads, segments and writes shards: one row per chunk."""
    # Ray logs every start and end of a plan, and warns that its progress bars are off. Ray sets its
    # own level late, so this line must come here.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    _set_context(plan)
    shards_per_task = math.ceil(len(shards) / MAX_READ_TASKS)
    rows = [
        {"item": pickle.dumps(shards[start : start + shards_per_task])}
        for start in range(0, len(shards), shards_per_task)
    ]
    compute = spec.config.compute
    io_selector = dict(plan.io_selector) or None
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .flat_map(_Read(spec), num_cpus=IO_CPUS, label_selector=io_selector)
        .map(
            _SegmentActor,  # type: ignore[arg-type]  # Ray's stub wants the method, not the class
            fn_constructor_kwargs={"spec": spec, "weights": weights_ref, "most": plan.maximum},
            # The pool never shrinks while there is work: Ray replaces a replica that is lost.
            compute=ray.data.ActorPoolStrategy(min_size=plan.initial, max_size=plan.maximum),
            num_cpus=plan.cpus,
            num_gpus=plan.gpus,
            label_selector=to_label_selector(compute.worker_labels) or None,
        )
        .map(_Write(spec), num_cpus=IO_CPUS, label_selector=io_selector)
    )


def _set_context(plan: ReplicaPlan) -> None:
    context = ray.data.DataContext.get_current()
    # One chunk is one block, so that chunks pass on one by one. By default Ray gathers 128 MiB.
    context.target_max_block_size = 1
    context.actor_init_retry_on_errors = True  # a download of weights may fail once
    context.enable_progress_bars = False
    # SPREAD, the default of Ray Data, puts small tasks on all nodes. DEFAULT, the default of Ray,
    # prefers nodes without GPUs: the CPUs of GPU nodes are needed to decode images.
    strategy = "DEFAULT" if plan.avoid_gpu_nodes else "SPREAD"
    if context.scheduling_strategy != strategy:
        with warnings.catch_warnings():  # deprecated, but Ray 2.60 has no other switch
            warnings.simplefilter("ignore")
            context.scheduling_strategy = strategy


# An FcnError travels as a row and is raised in the driver. If a task raised it, Ray would wrap it,
# print its traceback, and keep the actors (and their CPUs) as long as the exception exists.
_PASSED_ON = (ShardFailure, FcnError)


def configure_logs(spec: RunSpec) -> None:
    """Let a Ray worker log as the run does (run name, format), to Ray's files `worker-….err`."""
    logs.set_run(spec.run)
    if spec.config.monitoring.log_format == "json" and not logs.is_json():
        logs.use_json()


class _Read:
    """A CPU task: reads some shards and yields their chunks."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec

    def __call__(self, row: Row) -> Iterator[Row]:
        configure_logs(self.spec)
        shards: Sequence[Shard] = pickle.loads(row["item"])
        for shard in shards:
            try:
                for chunk in read_chunks(shard, self.spec.sources, self.spec.manifest.chunk_limits):
                    yield {"item": pickle.dumps(chunk, protocol=5)}
            except (ShardError, StoreError) as error:
                yield {"item": pickle.dumps(ShardFailure.of(shard.id, error))}
            except FcnError as error:
                yield {"item": pickle.dumps(error)}


class _SegmentActor:
    """An actor that owns a worker process with the network: segments chunks."""

    def __init__(self, spec: RunSpec, weights: Any, most: int | None) -> None:
        configure_logs(spec)
        self.segmenter = IsolatedSegmenter(
            spec, SharedWeights(ray.get(weights)), _memory_share(most, spec.config.limits.memory)
        )
        with suppress(FcnError):  # the first chunk meets it again and sends it to the driver
            self.segmenter.worker.start()

    def __call__(self, row: Row) -> Row:
        item = pickle.loads(row["item"])
        if isinstance(item, _PASSED_ON):
            return row
        try:
            return {"item": pickle.dumps(self.segmenter(item), protocol=5)}
        except FcnError as error:
            return {"item": pickle.dumps(error)}


def _memory_share(most: int | None, limit: int | None) -> int:
    """Return the memory limit in bytes of this actor's worker process.

    Args:
        most: most actors of the run; None if not limited.
        limit: `limits.memory`, which all workers of a machine share; None: a part of the RAM.
    """
    context = ray.get_runtime_context()
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes()}  # type: ignore[no-untyped-call]
    node = nodes.get(context.get_node_id(), {})
    own = context.get_assigned_resources()  # type: ignore[no-untyped-call]
    # How many actors like this one fit on the node.
    fitting = [int(node[name] / own[name]) for name in ("CPU", "GPU") if own.get(name)]
    # The node's "memory" excludes the object store. Ray kills actors when a node exceeds it.
    memory = min(node.get("memory", math.inf), machine_memory())
    bounds = fitting if most is None else [most, *fitting]
    return (limit or usable_memory(memory)) // max(1, min(bounds, default=1))


class _Write:
    """A CPU task: writes the masks of a chunk and returns a receipt."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec

    def __call__(self, row: Row) -> Row:
        configure_logs(self.spec)
        item = pickle.loads(row["item"])
        if isinstance(item, _PASSED_ON):
            return row
        try:
            return {"item": pickle.dumps(write_chunk(item, self.spec))}
        except FcnError as error:
            return {"item": pickle.dumps(error)}
