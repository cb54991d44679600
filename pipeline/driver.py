"""A labelling run from plan to report: the driver. Executors work; only the driver commits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from fcn_core.weights.weights_file import WeightsFile
from pipeline import logs
from pipeline.committer import Committer, needed_masks
from pipeline.config import RunConfig
from pipeline.executors.hooks import ExecutorHooks
from pipeline.executors.ray_connection import check_reachable
from pipeline.finish import (
    Ending,
    Reference,
    RunShare,
    find_reference,
    finish_run,
    write_results,
    write_table,
)
from pipeline.inputs.folder import freeze
from pipeline.inputs.shard import Shard
from pipeline.limits import is_over
from pipeline.manifest import check, claim
from pipeline.monitoring.metrics import Monitor
from pipeline.monitoring.progress import Progress, ProgressRecord
from pipeline.output.commits import Author
from pipeline.output.history import RunRecord, begin_run, cancel_run, opened_run
from pipeline.output.lease import Lease
from pipeline.output.markers import remove_markers
from pipeline.output.quarantine import RetryList, read_retry_list, write_retry_list
from pipeline.output.run_result import RunResult
from pipeline.plan import Plan, make_plan, subtract, survey
from pipeline.resolve import Prepared, plan_request, prepare
from pipeline.signals import finish_on_ctrl_c
from pipeline.stages.records import Receipt
from pipeline.stages.spec import RunSpec, ShardFailure
from pipeline.storage import retry as retries
from pipeline.storage.store import preflight
from pipeline.workers.fork_server import start_fork_server

Execute = Callable[[RunSpec, WeightsFile, Sequence[Shard]], Iterator[Receipt | ShardFailure]]


WAVE = 50_000
"""Shards that an executor is given at once: it makes an object of each, and starts the network anew
for the next wave."""


def plan(config: RunConfig) -> Plan:
    """What a run would do. Loads no network, writes nothing; without weights, checks none.

    Raises:
        FcnError: see `prepare` and `make_plan`.
    """
    if config.model.weights is None:
        return make_plan(plan_request(config))
    prepared = prepare(config)
    check(prepared.job.output, prepared.identity)
    found = make_plan(prepared.request)
    check(prepared.job.output, replace(prepared.identity, layout=found.layout))
    return found


def run(
    config: RunConfig,
    on_progress: Callable[[Progress], None] | None = None,
    redo: RetryList | None = None,
    *,
    finish_on_interrupt: bool = False,
) -> RunResult:
    """Label everything that is pending, and finish.

    Running the same configuration again resumes; a finished shard is never read again.

    Args:
        config: what, where and how.
        on_progress: called at the start and after every finished chunk.
        redo: label these shards again, and no others.
        finish_on_interrupt: whether the first Ctrl-C lets the local executor finish and commit what
            is under way; the second raises KeyboardInterrupt, as else the first does.

    Raises:
        ConfigError, OutputError, WeightsError, LabelSetError: before anything is written.
        InputError: nothing to label; nothing is written.
        ClusterError: no Ray head at the address that is named, or it is lost.
        LeaseError: another driver works on this output.
        StoreError: a store fails; run again to resume.
    """
    started = time.monotonic()
    retries.drain()  # of an earlier run of this process
    if config.resolved_executor() == "local":
        start_fork_server()  # it imports torch while this process goes on
    prepared = prepare(config)
    output = prepared.job.output
    check(output, prepared.identity)
    # The input before the lease: one that cannot be labelled leaves no trace in the output. The
    # output under the lease: nobody else changes it.
    found = survey(prepared.request)
    mine = replace(prepared.identity, layout=found.listing.layout)
    check(output, mine)
    reference = find_reference(config.drift, mine, config.output.store)
    if config.resolved_executor() == "ray":
        check_reachable(config.ray_address())
    preflight(output)
    with Lease(output) as lease, Monitor(config.monitoring) as monitor:
        output = output.guarded(lease.check)
        prepared = replace(prepared, job=replace(prepared.job, output=output))
        claim(output, mine)
        remove_markers(output)
        record = ProgressRecord(output, lease.holder.owner, on_progress)
        request = prepared.request
        if redo is not None:
            write_retry_list(output, {**read_retry_list(output), **redo.commits})
            request = replace(request, only=redo.shards)
        todo = subtract(found, request)
        if todo.packing is not None:
            freeze(todo.packing, output)
        run_name = opened_run(output) or (begin_run(output) if todo.pending else "")
        prepared = replace(prepared, job=replace(prepared.job, run=run_name))
        collector = _collector(prepared, todo, run_name)
        monitor.begin(collector, run_name)
        is_local = config.resolved_executor() == "local"
        interruptible = finish_on_ctrl_c(wanted=finish_on_interrupt and is_local)
        with logs.of_run(run_name), interruptible as is_stopping, record, collector:
            reporter = _Reporter(collector, started, (record, monitor.on_progress))
            driver = ExecutorHooks(is_stopping, monitor.on_copies, monitor.samples)
            stopped = _label(prepared, collector, lease, reporter, driver)
        lease.check()
        share = RunShare(run_name, prepared.job.labels, config.drift.review_images)
        summary = write_table(output, todo.ledger, prepared.job.labels, share)
        ending = Ending(summary, len(collector.failed), time.monotonic() - started)
        # One that was interrupted is not finished: whoever goes on tells of the whole.
        told = None if stopped else _tell_history(prepared, share, ending, reference)
        result = _result(prepared, todo, collector, ending)
        result = replace(result, interrupted=stopped, record=told)
        redone = collector.redone
        write_retry_list(output, {s: tag for s, tag in todo.redo.items() if s not in redone})
        write_results(output, summary, result)
        monitor.end(result.exit_code)
    return replace(result, store_retries=collector.store_retries + retries.drain())


def _label(
    prepared: Prepared,
    collector: Committer,
    lease: Lease,
    report: Callable[[], None],
    driver: ExecutorHooks,
) -> bool:
    """Everything that is pending, in waves; whether some of it was left, because of Ctrl-C."""
    report()
    pending = collector.plan.pending
    if not pending:
        return False
    execute = _executor(prepared.config, driver)
    for start in range(0, len(pending), WAVE):
        wave = list(pending[start : start + WAVE])
        collector.expect(wave)
        for item in execute(collector.job, prepared.weights, wave):
            lease.check()
            collector.add(item)
            report()
        if collector.settle():
            report()
    # Workers that died in the middle of a put, now or in the run that this one resumes.
    prepared.job.output.sweep()
    return driver.is_stopping() and collector.finished < len(pending)


def _collector(prepared: Prepared, todo: Plan, run_name: str) -> Committer:
    job = replace(prepared.job, masks=needed_masks(todo, prepared.job.masks))
    author = Author(prepared.identity.fingerprint, run_name, job.masks, job.review_images)
    return Committer(todo, job, author, prepared.config.limits)


def _tell_history(
    prepared: Prepared, share: RunShare, ending: Ending, reference: Reference | None
) -> RunRecord | None:
    """The record of a run that did something, or tried to; that of one that was killed, too."""
    output = prepared.job.output
    if not share.run:
        return None
    if not share.sums.shards and not ending.failed:
        cancel_run(output)
        return None
    return finish_run(output, share, ending, prepared.config.drift, reference)


def _executor(config: RunConfig, driver: ExecutorHooks) -> Execute:
    # Imported where they are chosen: the local executor must start without Ray.
    if config.resolved_executor() == "local":
        from pipeline.executors.local import run_local

        return partial(run_local, hooks=driver)
    from pipeline.executors.ray_executor import run_ray

    return partial(run_ray, hooks=driver)


class _Reporter:
    """Tells whoever wants to know how far the run is."""

    def __init__(
        self,
        collector: Committer,
        started: float,
        listeners: Sequence[Callable[[Progress], None]],
    ) -> None:
        self.collector = collector
        self.started = started
        self.listeners = listeners

    def __call__(self) -> None:
        progress = Progress(
            shards_done=self.collector.finished,
            shards_pending=len(self.collector.plan.pending),
            images=self.collector.images,
            failures=self.collector.failures,
            seconds=time.monotonic() - self.started,
        )
        for tell in self.listeners:
            tell(progress)


def _result(prepared: Prepared, todo: Plan, collector: Committer, ending: Ending) -> RunResult:
    summary = ending.whole
    bad = summary.failures + collector.uncommitted_failures
    total = summary.images + collector.uncommitted_images + bad
    return RunResult(
        output=prepared.job.output.url,
        labels=prepared.job.labels,
        scores=summary.scores(),
        images=summary.images,
        failures=summary.failures,
        shards=todo.total,
        committed=todo.done + collector.committed,
        done_now=collector.committed,
        failed=tuple(collector.failed[shard] for shard in sorted(collector.failed)),
        bad=bad,
        seen=total,
        over_limit=is_over(bad, total, prepared.config.limits.max_bad_fraction),
        vanished=todo.vanished,
        vanished_names=todo.vanished_names,
        unpacked=todo.unpacked,
        passed_over=todo.passed_over,
        empty=tuple(sorted(collector.empty)),
        seconds=ending.seconds,
    )
