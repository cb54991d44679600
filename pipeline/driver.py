"""Run a segmentation from plan to report: the driver. Executors work; only the driver commits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from fcn_core.weights.weights_file import WeightsFile
from pipeline import logs
from pipeline.committer import Committer
from pipeline.config import RunConfig
from pipeline.executors.hooks import ExecutorHooks
from pipeline.executors.ray_connection import check_reachable
from pipeline.finish import Session, find_reference, finish_run, open_output
from pipeline.inputs.folder import write_index
from pipeline.inputs.shard import Shard
from pipeline.manifest import check_output
from pipeline.monitoring.progress import Progress
from pipeline.output.history import begin_run, opened_run
from pipeline.output.quarantine import RetryList, read_retry_list, write_retry_list
from pipeline.output.run_result import RunResult
from pipeline.plan import Plan, Survey, make_plan, subtract, survey
from pipeline.resolve import resolve_plan, resolve_run
from pipeline.signals import finish_on_ctrl_c
from pipeline.stages.records import Receipt
from pipeline.stages.spec import RunSpec, ShardFailure
from pipeline.storage import retry
from pipeline.workers.fork_server import start_fork_server

Execute = Callable[[RunSpec, WeightsFile, Sequence[Shard]], Iterator[Receipt | ShardFailure]]

WAVE = 50_000
"""Most shards that an executor is given at once. It holds one object for each of them, and starts
the network again for the next wave."""


def plan(config: RunConfig) -> Plan:
    """Return what a run would do. Loads no network, writes nothing.

    Without weights in the configuration, commits of any fingerprint count as done.

    Raises:
        FcnError: as `resolve_run` and `make_plan`.
    """
    if config.model.weights is None:
        return make_plan(resolve_plan(config))
    spec, _ = resolve_run(config)
    check_output(spec.output, spec.manifest)
    planned = make_plan(spec)
    check_output(spec.output, replace(spec.manifest, layout=planned.layout))
    return planned


def run(
    config: RunConfig,
    on_progress: Callable[[Progress], None] | None = None,
    retry_list: RetryList | None = None,
    *,
    finish_on_interrupt: bool = False,
) -> RunResult:
    """Segment every pending shard, commit it, and write the results.

    Running the same configuration again resumes; a finished shard is never read again.

    Args:
        config: configuration of the run.
        on_progress: called at the start and after every finished chunk.
        retry_list: segment these shards again, and no others.
        finish_on_interrupt: whether the first Ctrl-C lets the local executor finish and commit the
            chunks in progress. The second one raises KeyboardInterrupt; without this option, the
            first one does.

    Raises:
        ConfigError, OutputError, WeightsError, LabelSetError: before anything is written.
        InputError: the input holds no images; nothing is written.
        ClusterError: no Ray head answers at the given address, or the cluster is lost.
        LeaseError: another driver works on this output.
        StoreError: a store fails; run again to resume.
    """
    started = time.monotonic()
    retry.drain()  # counts of an earlier run of this process
    if config.resolved_executor() == "local":
        start_fork_server()  # it imports torch while this process continues
    spec, weights = resolve_run(config)
    check_output(spec.output, spec.manifest)
    # The input is listed before the lease is taken: an input that cannot be segmented leaves no
    # trace in the output. The output is read under the lease: no other driver changes it.
    surveyed = survey(spec)
    spec = replace(spec, manifest=replace(spec.manifest, layout=surveyed.listing.layout))
    check_output(spec.output, spec.manifest)
    reference = find_reference(config.drift, spec.manifest, config.output.store)
    if config.resolved_executor() == "ray":
        check_reachable(config.ray_address())
    with open_output(spec, started, on_progress) as session:
        todo, spec = _plan_run(session.spec, surveyed, retry_list)
        committer = Committer(todo, spec)
        session.monitor.begin(committer, len(todo.pending), spec.run)
        is_stopped = _segment(session, committer, weights, finish_on_interrupt)
        result = finish_run(session, committer, reference, is_interrupted=is_stopped)
    return replace(result, store_retries=committer.store_retries + retry.drain())


def _plan_run(
    spec: RunSpec, surveyed: Survey, retry_list: RetryList | None
) -> tuple[Plan, RunSpec]:
    """Return the plan and the run's settings, and write the index of new virtual shards."""
    output = spec.output
    if retry_list is not None:
        write_retry_list(output, {**read_retry_list(output), **retry_list.commits})
        spec = replace(spec, only=retry_list.shards)
    todo = subtract(surveyed, spec)
    if todo.packing is not None:
        write_index(todo.packing, output)
    name = opened_run(output) or (begin_run(output) if todo.pending else "")
    # A commit names all objects of its shard: one that is replaced must not lose any.
    masks = tuple(sorted({*spec.masks, *todo.outdated_masks}))
    return todo, replace(spec, run=name, masks=masks)


def _segment(
    session: Session, committer: Committer, weights: WeightsFile, finish_on_interrupt: bool
) -> bool:
    """Segment and commit what is pending, in waves; return whether Ctrl-C left a part of it."""
    spec, pending = committer.spec, committer.plan.pending
    is_local = spec.config.resolved_executor() == "local"
    interruptible = finish_on_ctrl_c(wanted=finish_on_interrupt and is_local)
    with logs.of_run(spec.run), interruptible as is_stopping, committer:
        session.report(committer)
        if not pending:
            return False
        hooks = ExecutorHooks(is_stopping, session.monitor.on_replicas, session.monitor.samples)
        execute = _executor(spec.config, hooks)
        for start in range(0, len(pending), WAVE):
            wave = list(pending[start : start + WAVE])
            committer.expect(wave)
            for item in execute(spec, weights, wave):
                session.lease.check()
                committer.add(item)
                session.report(committer)
            if committer.settle():
                session.report(committer)
        # Files of workers that were killed during a write, in this run or in the one it resumes.
        spec.output.sweep()
        return is_stopping() and committer.finished < len(pending)


def _executor(config: RunConfig, hooks: ExecutorHooks) -> Execute:
    # Imported where they are chosen: the local executor must start without Ray.
    if config.resolved_executor() == "local":
        from pipeline.executors.local import run_local

        return partial(run_local, hooks=hooks)
    from pipeline.executors.ray_executor import run_ray

    return partial(run_ray, hooks=hooks)
