"""A labelling run from plan to report: the driver. Executors work; only the driver commits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from fcn_core.checkpoint import WeightsFile
from pipeline import retries
from pipeline.collect import Collector, is_over, needed_masks
from pipeline.config import RunConfig
from pipeline.finish import remove_markers, scores_document, write_results
from pipeline.identity import check, claim
from pipeline.job import Job, ShardFailure
from pipeline.lease import Lease
from pipeline.outcome import Progress, RunResult
from pipeline.plan import Plan, is_done, make_plan
from pipeline.preflight import preflight
from pipeline.prepare import Prepared, plan_request, prepare
from pipeline.progress import ProgressRecord
from pipeline.redo import Redo, read_redo, write_redo
from pipeline.shards import Shard
from pipeline.template import start_template
from pipeline.virtual import freeze
from pipeline.writers import Receipt

Execute = Callable[[Job, WeightsFile, Sequence[Shard]], Iterator[Receipt | ShardFailure]]


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
    redo: Redo | None = None,
) -> RunResult:
    """Label everything that is pending, and finish.

    Running the same configuration again resumes; a finished shard is never read again.

    Args:
        config: what, where and how.
        on_progress: called at the start and after every finished chunk.
        redo: label these shards again, and no others.

    Raises:
        ConfigError, OutputError, WeightsError, LabelSetError: before anything is written.
        InputError: nothing to label; nothing is written.
        LeaseError: another driver works on this output.
        StoreError: a store fails; run again to resume.
    """
    started = time.monotonic()
    retries.drain()  # of an earlier run of this process
    prepared = prepare(config)
    output = prepared.job.output
    check(output, prepared.identity)
    # Before the lease: an input that cannot be labelled leaves no trace in the output.
    first = make_plan(prepared.request)
    mine = replace(prepared.identity, layout=first.layout)
    check(output, mine)
    preflight(output)
    if first.pending and config.resolved_executor() == "local":
        start_template()  # it imports torch while this process plans
    with Lease(output) as lease:
        output = output.guarded(lease.check)
        prepared = replace(prepared, job=replace(prepared.job, output=output))
        claim(output, mine)
        remove_markers(output)
        record = ProgressRecord(output, lease.holder.owner, on_progress)
        on_progress = record
        request = prepared.request
        if redo is not None:
            write_redo(output, {**read_redo(output), **redo.commits})
            request = replace(request, only=redo.shards)
        todo = make_plan(request)  # again: now nobody else changes it
        if todo.packing is not None:
            freeze(todo.packing, output)
        collector = _collector(prepared, todo)
        if on_progress is not None:
            on_progress(_progress(collector, started))
        if todo.pending:
            execute = _executor(config)
            for item in execute(collector.job, prepared.weights, todo.pending):
                lease.check()
                collector.add(item)
                if on_progress is not None:
                    on_progress(_progress(collector, started))
            # Workers that died in the middle of a put, now or in the run that this one resumes.
            output.sweep()
        lease.check()
        result = _result(prepared, todo, collector, time.monotonic() - started)
        write_redo(output, _still_to_redo(todo, collector))
        record.remove()
        write_results(output, collector.entries, result)
    return replace(result, store_retries=collector.store_retries + retries.drain())


def _collector(prepared: Prepared, todo: Plan) -> Collector:
    job = replace(prepared.job, masks=needed_masks(todo, prepared.job.masks))
    return Collector(todo, job, prepared.identity.fingerprint, prepared.config.limits)


def _still_to_redo(todo: Plan, collector: Collector) -> dict[str, str]:
    """What was to be redone and has the same commit as before; not what left the input."""
    left = {}
    for shard in todo.shards:
        entry = collector.entries.get(shard.id)
        if entry is not None and todo.redo.get(shard.id) == entry.commit_etag:
            left[shard.id] = entry.commit_etag
    return left


def _executor(config: RunConfig) -> Execute:
    # Imported where they are chosen: the local executor must start without Ray.
    if config.resolved_executor() == "local":
        from pipeline.local import run_local

        return run_local
    from pipeline.ray_job import run_ray

    return run_ray


def _progress(collector: Collector, started: float) -> Progress:
    return Progress(
        shards_done=collector.finished,
        shards_pending=len(collector.plan.pending),
        images=collector.images,
        failures=collector.failures,
        seconds=time.monotonic() - started,
    )


def _result(prepared: Prepared, todo: Plan, collector: Collector, seconds: float) -> RunResult:
    entries = collector.entries
    images = sum(entry.images for entry in entries.values())
    failures = sum(entry.failures for entry in entries.values())
    bad = failures + collector.uncommitted_failures
    total = images + collector.uncommitted_images + bad
    request = replace(prepared.request, redo=todo.redo)
    return RunResult(
        output=prepared.job.output.url,
        labels=prepared.job.labels,
        scores=scores_document(dict(sorted(entries.items())), prepared.job.labels),
        images=images,
        failures=failures,
        shards=len(todo.shards),
        committed=sum(is_done(s, entries.get(s.id), request) for s in todo.shards),
        done_now=collector.committed,
        failed=tuple(collector.failed[shard] for shard in sorted(collector.failed)),
        over_limit=is_over(bad, total, prepared.config.limits.max_bad_fraction),
        vanished=todo.vanished,
        passed_over=todo.passed_over,
        empty=tuple(sorted(collector.empty)),
        seconds=seconds,
    )
