"""A labelling run from plan to report: the driver. Executors work; only the driver commits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fcn_core.checkpoint import WeightsFile
from fcn_core.labels import LabelSet
from pipeline.collect import Collector, is_over, needed_masks
from pipeline.config import RunConfig
from pipeline.finish import remove_markers, scores_document, write_results
from pipeline.identity import check, claim
from pipeline.job import Job, ShardFailure
from pipeline.lease import Lease
from pipeline.plan import Plan, make_plan
from pipeline.prepare import Prepared, plan_request, prepare
from pipeline.shards import Shard
from pipeline.virtual import freeze
from pipeline.writers import Receipt

log = logging.getLogger("fcnseg")

Execute = Callable[[Job, WeightsFile, Sequence[Shard]], Iterator[Receipt | ShardFailure]]


@dataclass(frozen=True)
class Progress:
    """How far this run is with what was pending when it began."""

    shards_done: int
    shards_pending: int
    images: int
    failures: int
    seconds: float


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind, for people and for exit codes.

    Attributes:
        output: its URL.
        labels: the label set.
        scores: merged over all commits of the output, as `stats/scores.json` has them.
        images, failures: over all commits.
        shards: of the input.
        committed: shards of the input that are done.
        done_now: shards committed by this run.
        failed: shards that this run could not finish, with reasons.
        over_limit: whether the run's bad-fraction limit was exceeded.
        vanished: see `Plan`.
        seconds: wall time.
    """

    output: str
    labels: LabelSet
    scores: Mapping[str, Any]
    images: int
    failures: int
    shards: int
    committed: int
    done_now: int
    failed: tuple[ShardFailure, ...]
    over_limit: bool
    vanished: int
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 all done, 3 done with quarantined images, 4 limits exceeded."""
        if self.failed or self.over_limit:
            return 4
        return 3 if self.failures else 0

    def to_dict(self) -> dict[str, Any]:
        """For machines: the scores, and what became of the shards."""
        return {
            **self.scores,
            "output": self.output,
            "exit_code": self.exit_code,
            "shards_in_input": self.shards,
            "shards_committed": self.committed,
            "shards_done_now": self.done_now,
            "failed_shards": {failure.shard: failure.reason for failure in self.failed},
            "over_limit": self.over_limit,
            "vanished": self.vanished,
            "seconds": round(self.seconds, 3),
        }


def plan(config: RunConfig) -> Plan:
    """What a run would do. Loads no network, writes nothing; without weights, checks none.

    Raises:
        FcnError: see `prepare` and `make_plan`.
    """
    if config.model.weights is None:
        return make_plan(plan_request(config))
    prepared = prepare(config)
    check(prepared.job.output, prepared.identity)
    return make_plan(prepared.request)


def run(config: RunConfig, on_progress: Callable[[Progress], None] | None = None) -> RunResult:
    """Label everything that is pending, and finish.

    Running the same configuration again resumes; a finished shard is never read again.

    Args:
        config: what, where and how.
        on_progress: called at the start and after every finished chunk.

    Raises:
        ConfigError, OutputError, WeightsError, LabelSetError: before anything is written.
        InputError: nothing to label; nothing is written.
        LeaseError: another driver works on this output.
        StoreError: a store fails; run again to resume.
    """
    started = time.monotonic()
    prepared = prepare(config)
    output = prepared.job.output
    check(output, prepared.identity)
    make_plan(prepared.request)  # an input that cannot be labelled leaves no trace in the output
    with Lease(output) as lease:
        claim(output, prepared.identity)
        remove_markers(output)
        todo = make_plan(prepared.request)  # again: now nobody else changes it
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
        lease.check()
        result = _result(prepared, todo, collector, time.monotonic() - started)
        write_results(output, collector.entries, result)
    return result


def _collector(prepared: Prepared, todo: Plan) -> Collector:
    job = replace(prepared.job, masks=needed_masks(todo, prepared.job.masks))
    return Collector(todo, job, prepared.identity.fingerprint, prepared.config.limits)


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
    return RunResult(
        output=prepared.job.output.url,
        labels=prepared.job.labels,
        scores=scores_document(dict(sorted(entries.items())), prepared.job.labels),
        images=images,
        failures=failures,
        shards=len(todo.shards),
        committed=sum(
            shard.id in entries and entries[shard.id].input_etag == shard.etag
            for shard in todo.shards
        ),
        done_now=collector.committed,
        failed=tuple(collector.failed[shard] for shard in sorted(collector.failed)),
        over_limit=is_over(bad, total, prepared.config.limits.max_bad_fraction),
        vanished=todo.vanished,
        seconds=seconds,
    )
