"""Open an output for a run, and finalize the run from the commits alone.

`open_output` takes the lease and prepares the output; `finish_run` writes everything that follows
the commits: the table of shards, the review queue, the run record, scores, report and marker.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from fcn_core.labels import LabelSet
from pipeline.committer import Committer
from pipeline.config import DriftConfig
from pipeline.errors import ConfigError
from pipeline.limits import is_over
from pipeline.manifest import Manifest, claim_output, read_manifest
from pipeline.monitoring.metrics import Monitor
from pipeline.monitoring.progress import Progress, ProgressRecord
from pipeline.output.commit_index import CommitIndex, read_commit_index
from pipeline.output.drift import Comparison, Window, compare
from pipeline.output.history import RunRecord, cancel_run, end_run, read_history, versions
from pipeline.output.lease import Lease
from pipeline.output.markers import remove_markers, write_marker
from pipeline.output.quarantine import write_retry_list
from pipeline.output.review import Shortlist, write_review
from pipeline.output.run_result import RunResult
from pipeline.output.shard_table import DamagedError, TableWriter
from pipeline.output.summary import Summary, Sums, summarize
from pipeline.paths import SCORES
from pipeline.report.build import write_report
from pipeline.stages.shard_stats import ShardStats
from pipeline.stages.spec import RunSpec
from pipeline.storage.options import StoreOptions
from pipeline.storage.store import Store, preflight

_SCORES = (
    "pixel_accuracy",
    "mean_accuracy",
    "mean_iou",
    "frequency_weighted_iou",
    "iou",
    "classes",
)


@dataclass(frozen=True)
class Session:
    """An output that this driver holds the lease of.

    Attributes:
        spec: settings of the run; every write to its output first checks the lease.
        lease: the lease of the output.
        monitor: metrics of the run.
        progress: the progress file, and the caller's progress listener.
        started: `time.monotonic()` at the start of the run.
    """

    spec: RunSpec
    lease: Lease
    monitor: Monitor
    progress: ProgressRecord
    started: float

    @property
    def seconds(self) -> float:
        """Wall time of this driver since the start of the run."""
        return time.monotonic() - self.started

    def report(self, committer: Committer) -> None:
        """Report the progress of the run to the progress file, the caller and the metrics."""
        progress = Progress(
            shards_done=committer.finished,
            shards_pending=len(committer.plan.pending),
            images=committer.images,
            failures=committer.failures,
            seconds=self.seconds,
        )
        self.progress(progress)
        self.monitor.on_progress(progress)


@contextmanager
def open_output(
    spec: RunSpec, started: float, on_progress: Callable[[Progress], None] | None
) -> Iterator[Session]:
    """Hold the lease of an output while a run works on it.

    The order is a part of exactly-once: preflight, lease, claim_output, then the markers of the earlier
    run are removed. When the session ends, the progress file is deleted and the lease released.

    Args:
        spec: settings of the run.
        started: `time.monotonic()` at the start of the run.
        on_progress: called with every report of progress.

    Raises:
        LeaseError: another driver works on this output.
        OutputError: the output belongs to another input, other weights or another format.
        StoreError: the store fails.
    """
    preflight(spec.output)
    with Lease(spec.output) as lease, Monitor(spec.config.monitoring) as monitor:
        output = spec.output.guarded(lease.check)
        claim_output(output, spec.manifest)
        remove_markers(output)
        spec = replace(spec, output=output)
        with ProgressRecord(output, lease.holder.owner, on_progress) as progress:
            yield Session(spec, lease, monitor, progress, started)


class RunShare:
    """One run's share of an output, gathered while the rows of all commits are read.

    Attributes:
        run: name of the run.
        sums: sums over the commits of the run.
        shortlist: shards of the run that hold the images for the review queue.
    """

    def __init__(self, run: str, labels: LabelSet, review_images: int) -> None:
        self.run = run
        self._labels = labels
        self._review_images = review_images
        self.begin()

    def begin(self) -> None:
        """Forget all rows, before the table is read again."""
        self.sums = Sums(self._labels)
        self.shortlist = Shortlist(self._review_images)

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows of the table of shards; rows of other runs are ignored."""
        own = batch.filter(pc.equal(batch["run"], self.run))
        if len(own):
            self.sums.add(own)
            self.shortlist.add(own)


def finish_run(
    session: Session, committer: Committer, reference: Reference | None, *, is_interrupted: bool
) -> RunResult:
    """Finalize a run: compare with earlier runs, write the review table and the run record.

    Scores, report and retry list follow, and the marker last. A driver that is killed anywhere in
    here is finished by the next one, with the same result.

    Args:
        session: the open output.
        committer: commits and failures of the run.
        reference: output that the run is compared with; None for its own earlier runs.
        is_interrupted: whether Ctrl-C left a part of what was pending. Such a run gets no record:
            the driver that resumes it writes one for the whole.

    Raises:
        LeaseError: the lease was lost.
        OutputError: a commit, an earlier record or the reference cannot be read.
        StoreError: the store fails.
    """
    session.lease.check()
    spec, todo = committer.spec, committer.plan
    share = RunShare(spec.run, spec.labels, spec.config.drift.review_images)
    summary = write_table(spec.output, todo.ledger, spec.labels, share)
    seconds = session.seconds
    record = None
    if not is_interrupted:
        record = _record_run(spec, share, summary, len(committer.failed), seconds, reference)
    result = _result(committer, summary, seconds)
    result = replace(result, interrupted=is_interrupted, record=record)
    left = {shard: tag for shard, tag in todo.redo.items() if shard not in committer.redone}
    write_retry_list(spec.output, left)
    write_results(spec.output, summary, result)
    session.monitor.end(result.exit_code)
    return result


def write_table(
    output: Store, index: CommitIndex, labels: LabelSet, share: RunShare | None = None
) -> Summary:
    """Write the table of shards, if it is not up to date, and sum the commits in the same pass.

    Args:
        output: store of OUTPUT.
        index: all commits of the output.
        labels: label set of the output.
        share: share of the present run, filled in the same pass.

    Raises:
        OutputError: a commit cannot be read, or has another number of classes.
        StoreError: the store fails.
    """
    try:
        return _write_table(output, index, labels, share)
    except DamagedError:  # the older table, whose rows were to be copied
        return _write_table(output, read_commit_index(output, believe_table=False), labels, share)


def _write_table(
    output: Store, index: CommitIndex, labels: LabelSet, share: RunShare | None
) -> Summary:
    summary = Summary(labels, len(index))
    if share is not None:
        share.begin()
    with TableWriter(output) as table:
        for batch in index.batches():
            summary.add(batch)
            if share is not None:
                share.add(batch)
            if not index.is_as_the_table:
                table.write(batch)
        if not index.is_as_the_table:
            table.put()
    return summary


def write_results(output: Store, summary: Summary, result: RunResult) -> None:
    """Write the scores, the report, and the marker last.

    Raises:
        StoreError: the store fails.
    """
    output.write(SCORES, json.dumps(summary.scores(), indent=1).encode())
    write_report(output, summary, {failure.shard: failure.reason for failure in result.failed})
    write_marker(output, result)


@dataclass(frozen=True)
class Reference:
    """An output that runs are compared with instead of their own earlier runs."""

    output: Store
    manifest: Manifest

    def stats(self) -> ShardStats:
        """Return the counts over all images of the output.

        Raises:
            OutputError: a commit cannot be read.
            StoreError: the store fails.
        """
        return summarize(self.output, self.manifest.labels)[1].stats


def find_reference(
    config: DriftConfig, manifest: Manifest, options: StoreOptions
) -> Reference | None:
    """Return the output that `drift.reference` names, checked before any work is done.

    Raises:
        ConfigError: the reference has other classes, or no histograms.
        OutputError: the URL does not hold an output.
    """
    if config.reference is None:
        return None
    output = Store(config.reference, options)
    reference = read_manifest(output)
    where = f"drift.reference {output.location('')}"
    if reference.parts.get("output_format", 0) < 2:
        raise ConfigError(
            where=where,
            found="an output of format 1, which keeps no histograms",
            expected="format 2 or later",
            remedy="Segment its input again with this version, or remove drift.reference.",
        )
    if reference.labels.classes != manifest.labels.classes:
        raise ConfigError(
            where=where,
            found=f"the classes {', '.join(reference.labels.classes)}",
            expected=f"those of this run: {', '.join(manifest.labels.classes)}",
            remedy="Name an output of the same classes.",
        )
    return Reference(output, reference)


def _record_run(
    spec: RunSpec,
    share: RunShare,
    summary: Summary,
    failed: int,
    seconds: float,
    reference: Reference | None,
) -> RunRecord | None:
    """Write the record of a run that did something, or tried to; also of one that was killed."""
    output, own = spec.output, share.sums
    if not share.run:
        return None
    if not own.shards and not failed:
        cancel_run(output)
        return None
    manifest = read_manifest(output)
    scores = own.scores()
    record = RunRecord(
        run=share.run,
        ended=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        seconds=round(seconds, 3),
        fingerprint=manifest.fingerprint,
        versions=versions(),
        shards=own.shards,
        failed=failed,
        images=own.images,
        labeled_images=own.labeled_images,
        failures=own.failures,
        scores={name: scores[name] for name in _SCORES},
        totals={
            "shards": summary.shards,
            "images": summary.images,
            "failures": summary.failures,
            "mean_iou": summary.scores()["mean_iou"],
        },
        window=Window.of(own.stats),
        comparison=_compare(output, own.stats, manifest, spec.config.drift, reference),
        review=write_review(output, share.run, share.shortlist, manifest.labels),
    )
    end_run(output, record)
    return record


def _compare(
    output: Store,
    now: ShardStats,
    manifest: Manifest,
    config: DriftConfig,
    reference: Reference | None,
) -> Comparison:
    if reference is not None:
        before = reference.stats()
        return compare(now, before, manifest.labels, config, reference.output.location(""))
    if not config.window:
        return Comparison(note="not compared: drift.window is 0")
    earlier = [
        record
        for record in read_history(output, config.window)
        if record.images and record.fingerprint == manifest.fingerprint
    ]
    if not earlier:
        return Comparison(note="not compared: no earlier run segmented any images here")
    before = earlier[0].window.stats
    for record in earlier[1:]:
        before += record.window.stats
    runs = "the run" if len(earlier) == 1 else f"the {len(earlier)} runs"
    return compare(now, before, manifest.labels, config, f"{runs} before")


def _result(committer: Committer, summary: Summary, seconds: float) -> RunResult:
    spec, todo = committer.spec, committer.plan
    bad = summary.failures + committer.uncommitted_failures
    total = summary.images + committer.uncommitted_images + bad
    return RunResult(
        output=spec.output.url,
        labels=spec.labels,
        scores=summary.scores(),
        images=summary.images,
        failures=summary.failures,
        shards=todo.total,
        committed=todo.done + committer.committed,
        done_now=committer.committed,
        failed=tuple(committer.failed[shard] for shard in sorted(committer.failed)),
        bad=bad,
        seen=total,
        over_limit=is_over(bad, total, spec.config.limits.max_bad_fraction),
        vanished=todo.vanished,
        vanished_names=todo.vanished_names,
        unpacked=todo.unpacked,
        passed_over=todo.passed_over,
        empty=tuple(sorted(committer.empty)),
        seconds=seconds,
    )
