"""The Ray executor: the same stages as a Ray Data pipeline. Row = chunk, receipts by `iter_rows`.

Every row is one column of pickled bytes: Arrow sees its true size, no batch ever straddles a shard,
and no tensor extension type is involved. The driver commits while the job runs.
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
from pipeline.executors.placement import IO_CPUS, Pool, plan_pool, selector
from pipeline.executors.ray_connection import connected
from pipeline.executors.ray_nodes import (
    RayMetrics,  # imports ray, too
    live_nodes,
    nodes_to_come,
    watched,
)
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


_TASKS = 5_000
"""Read tasks of one Ray dataset; where there are more shards, a task reads several in turn."""


_NOBODY = ExecutorHooks()


def run_ray(
    spec: RunSpec, weights: WeightsFile, shards: Sequence[Shard], *, driver: ExecutorHooks = _NOBODY
) -> Iterator[Receipt | ShardFailure]:
    """Receipts of all chunks, in the order they are finished.

    Connects to `spec.config.compute.ray_address` or RAY_ADDRESS, uses the surrounding Ray spec, or starts an
    embedded Ray and stops it afterwards.

    Args:
        spec: of the run.
        weights: of the network.
        shards: what to label, at least one.
        driver: whoever wants the receipts.

    Raises:
        StoreError: a store fails in a worker.
        ClusterError: the cluster cannot be reached, or no node of it can hold a network.
    """
    with connected(spec.config.compute.ray_address):
        kept = ray.put(weights)
        metrics = RayMetrics(spec.config.monitoring.metrics_name)
        pool = _plan_pool(spec)
        driver.on_copies(pool.start)
        with watched(spec.config.compute, pool):
            for row in _rows(_dataset(spec, kept, shards, pool)):
                item = pickle.loads(row["item"])
                if isinstance(item, FcnError):
                    raise item
                yield item
                metrics.tell(driver.samples())
        metrics.tell(driver.samples(), at_once=True)


def _rows(dataset: Any) -> Iterator[Row]:
    try:
        yield from dataset.iter_rows()
    except ray.data.exceptions.ExecutionTimeoutError as error:
        raise ClusterError(
            where="cluster",
            found=str(error).partition("\n")[0].rstrip("."),
            expected="chunks that come and go",
            remedy="Look for lost nodes (ray status); then run again to resume.",
        ) from error


def _plan_pool(spec: RunSpec) -> Pool:
    """What this cluster is asked for; says what it lacks.

    Raises:
        ClusterError: no node can hold a copy of the network.
    """
    pool = plan_pool(spec.config.compute, live_nodes(), nodes_to_come())
    if pool.start > pool.room:
        log.warning(
            "asks for %d copies of the network, the cluster has room for %d now: the others wait "
            "for nodes that join", pool.start, pool.room,
        )  # fmt: skip
    return pool


def _dataset(spec: RunSpec, weights: Any, shards: Sequence[Shard], pool: Pool) -> Any:
    # Ray logs every start and end of a plan, and warns that its bars are off; set here, because its
    # own set-up comes late.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    _set_context(pool)
    several = math.ceil(len(shards) / _TASKS)
    rows = [
        {"item": pickle.dumps(shards[start : start + several])}
        for start in range(0, len(shards), several)
    ]
    compute = spec.config.compute
    io_nodes = dict(pool.io_selector) or None
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .flat_map(_Read(spec), num_cpus=IO_CPUS, label_selector=io_nodes)
        .map(
            _SegmentActor,  # type: ignore[arg-type]  # Ray's stub wants the method, not the class
            fn_constructor_kwargs={"spec": spec, "weights": weights, "most": pool.most},
            # It never shrinks while there is work: a copy that is lost is asked for again.
            compute=ray.data.ActorPoolStrategy(min_size=pool.start, max_size=pool.most),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            label_selector=selector(compute.worker_labels) or None,
        )
        .map(_Write(spec), num_cpus=IO_CPUS, label_selector=io_nodes)
    )


def _set_context(pool: Pool) -> None:
    context = ray.data.DataContext.get_current()
    # One chunk is one block: finer streaming, and nothing waits for 128 MiB to gather.
    context.target_max_block_size = 1
    context.actor_init_retry_on_errors = True  # a weights download may hiccup
    context.enable_progress_bars = False
    # Ray Data spreads small tasks over all nodes. Ray's own default keeps them off nodes with GPUs
    # while others have room: their CPUs are to decode for the networks.
    wanted = "DEFAULT" if pool.avoid_gpu_nodes else "SPREAD"
    if context.scheduling_strategy != wanted:
        with warnings.catch_warnings():  # "deprecated": there is no other switch in Ray 2.60
            warnings.simplefilter("ignore")
            context.scheduling_strategy = wanted


# An error of ours travels as a row and is raised in the driver. Raised in a worker, Ray would wrap
# it, print its traceback, and hold the actors (and their CPUs) as long as the exception lives.
_PASSED_ON = (ShardFailure, FcnError)


def _log_as(spec: RunSpec) -> None:
    """Worker processes of Ray log to files of Ray's, `worker-….err`, in the form of the run."""
    logs.set_run(spec.run)
    if spec.config.monitoring.log_format == "json" and not logs.is_json():
        logs.use_json()


class _Read:
    """CPU task: the chunks of some shards."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec

    def __call__(self, row: Row) -> Iterator[Row]:
        _log_as(self.spec)
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
    """Actor that owns a worker process with the network: a chunk in, its masks out."""

    def __init__(self, spec: RunSpec, weights: Any, most: int | None) -> None:
        _log_as(spec)
        self.segmenter = IsolatedSegmenter(
            spec, SharedWeights(ray.get(weights)), _memory_share(most, spec.config.limits.memory)
        )
        with suppress(FcnError):  # comes again with the first chunk, and goes to the driver
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
    """Bytes for the worker process of one of at most so many actors, called in the actor."""
    context = ray.get_runtime_context()
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes()}  # type: ignore[no-untyped-call]
    node = nodes.get(context.get_node_id(), {})
    mine = context.get_assigned_resources()  # type: ignore[no-untyped-call]
    here = [int(node[name] / mine[name]) for name in ("CPU", "GPU") if mine.get(name)]
    # Ray's memory is without its object store; it kills actors where a node runs short of it.
    memory = min(node.get("memory", math.inf), machine_memory())
    bounds = here if most is None else [most, *here]
    return (limit or usable_memory(memory)) // max(1, min(bounds, default=1))


class _Write:
    """CPU task: masks to objects, a receipt out."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec

    def __call__(self, row: Row) -> Row:
        _log_as(self.spec)
        item = pickle.loads(row["item"])
        if isinstance(item, _PASSED_ON):
            return row
        try:
            return {"item": pickle.dumps(write_chunk(item, self.spec))}
        except FcnError as error:
            return {"item": pickle.dumps(error)}
