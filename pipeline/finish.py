"""The end of a run: merged scores, the table of shards, the report and the marker.

The morning after: what a run that is done has to say of itself, from its commits alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from fcn_core.labels import LabelSet
from pipeline.config import DriftConfig
from pipeline.errors import ConfigError
from pipeline.manifest import Manifest, read_manifest
from pipeline.output.commit_index import CommitIndex, read_commit_index
from pipeline.output.drift import Comparison, Window, compare
from pipeline.output.history import RunRecord, end_run, read_history, versions
from pipeline.output.markers import PARTIAL, SUCCESS, _marker
from pipeline.output.review import Shortlist, write_review
from pipeline.output.run_result import RunResult
from pipeline.output.shard_table import DamagedError, TableWriter
from pipeline.output.summary import Summary, Sums, summarize
from pipeline.report.build import write_report
from pipeline.storage.options import StoreOptions
from pipeline.storage.store import Store

SCORES_PATH = "stats/scores.json"


def write_table(
    output: Store, ledger: CommitIndex, labels: LabelSet, share: RunShare | None = None
) -> Summary:
    """Write the commits as a table, if it is not there already, and sum them up: in one pass.

    Args:
        output: where.
        ledger: of the output.
        labels: of the output.
        share: what this run did; filled in the same pass.

    Raises:
        OutputError: a commit that cannot be read, or of another number of classes.
        StoreError: the store refuses.
    """
    try:
        return _write_table(output, ledger, labels, share)
    except DamagedError:  # the older table, whose rows the ledger was going to copy
        return _write_table(output, read_commit_index(output, believe_table=False), labels, share)


def _write_table(
    output: Store, ledger: CommitIndex, labels: LabelSet, share: RunShare | None
) -> Summary:
    summary = Summary(labels, len(ledger))
    if share is not None:
        share.begin()
    with TableWriter(output) as table:
        for batch in ledger.batches():
            summary.add(batch)
            if share is not None:
                share.add(batch)
            if not ledger.is_as_the_table:
                table.write(batch)
        if not ledger.is_as_the_table:
            table.put()
    return summary


def write_results(output: Store, summary: Summary, result: RunResult) -> None:
    """Write the scores, the report, and the marker last.

    Raises:
        StoreError: the store refuses.
    """
    output.write(SCORES_PATH, json.dumps(summary.scores(), indent=1).encode())
    write_report(output, summary, {f.shard: f.reason for f in result.failed})
    output.write(SUCCESS if result.is_complete else PARTIAL, _marker(result))


class RunShare:
    """One run's share of an output, gathered while the rows of all commits pass.

    Attributes:
        run: its name.
        sums: of the commits that bear it.
        shortlist: of these, the shards that hold the images to look at.
    """

    def __init__(self, run: str, labels: LabelSet, review_images: int) -> None:
        self.run = run
        self._labels = labels
        self._review_images = review_images
        self.begin()

    def begin(self) -> None:
        """Forget what passed so far."""
        self.sums = Sums(self._labels)
        self.shortlist = Shortlist(self._review_images)

    def add(self, batch: pa.RecordBatch) -> None:
        """Rows of the table of shards."""
        mine = batch.filter(pc.equal(batch["run"], self.run))
        if len(mine):
            self.sums.add(mine)
            self.shortlist.add(mine)


@dataclass(frozen=True)
class Reference:
    """What runs are compared with when it is not their own past."""

    output: Store
    identity: Manifest

    def window(self) -> Window:
        """All of its commits.

        Raises:
            OutputError: a commit that cannot be read.
            StoreError: the store fails.
        """
        return summarize(self.output, self.identity.labels)[1].window()


def find_reference(config: DriftConfig, mine: Manifest, options: StoreOptions) -> Reference | None:
    """The output that `drift.reference` names, checked before any work is done.

    Raises:
        ConfigError: it has other classes, or no histograms.
        OutputError: it is no output.
    """
    if config.reference is None:
        return None
    output = Store(config.reference, options)
    theirs = read_manifest(output)
    where = f"drift.reference {output.location('')}"
    if theirs.parts.get("output_format", 0) < 2:
        raise ConfigError(
            where=where, found="an output of format 1, which keeps no histograms", expected="format 2 or later",
            remedy="Label it again with this version, or leave drift.reference out.",
        )  # fmt: skip
    if theirs.labels.classes != mine.labels.classes:
        raise ConfigError(
            where=where, found=f"the classes {', '.join(theirs.labels.classes)}",
            expected=f"those of this run: {', '.join(mine.labels.classes)}",
            remedy="Name an output of the same classes.",
        )  # fmt: skip
    return Reference(output, theirs)


@dataclass(frozen=True)
class Ending:
    """What only the driver knows of a run that it finishes.

    Attributes:
        whole: all commits of the output.
        failed: shards that the run could not finish.
        seconds: wall time of this driver.
    """

    whole: Summary
    failed: int
    seconds: float


def finish_run(
    output: Store,
    share: RunShare,
    ending: Ending,
    config: DriftConfig,
    reference: Reference | None,
) -> RunRecord:
    """Compare a run with what was before it, write its review queue, and end it with its record.

    Killed anywhere in here, the run is finished by the next one, with the same result.

    Raises:
        OutputError: an earlier record, a commit or the reference cannot be read.
        StoreError: the store fails.
    """
    tonight, whole, window = share.sums, ending.whole, share.sums.window()
    mine = read_manifest(output)
    scores = tonight.scores()
    record = RunRecord(
        run=share.run,
        ended=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        seconds=round(ending.seconds, 3),
        fingerprint=mine.fingerprint,
        versions=versions(),
        shards=tonight.shards,
        failed=ending.failed,
        images=tonight.images,
        labeled_images=tonight.labeled_images,
        failures=tonight.failures,
        scores={name: scores[name] for name in _SCORES},
        totals={
            "shards": whole.shards,
            "images": whole.images,
            "failures": whole.failures,
            "mean_iou": whole.scores()["mean_iou"],
        },
        window=window,
        comparison=_compare(output, window, mine, config, reference),
        review=write_review(output, share.run, share.shortlist, mine.labels),
    )
    end_run(output, record)
    return record


_SCORES = (
    "pixel_accuracy",
    "mean_accuracy",
    "mean_iou",
    "frequency_weighted_iou",
    "iou",
    "classes",
)


def _compare(
    output: Store, now: Window, mine: Manifest, config: DriftConfig, reference: Reference | None
) -> Comparison:
    if reference is not None:
        before = reference.window()
        return compare(now, before, mine.labels, config, reference.output.location(""))
    if not config.window:
        return Comparison(note="not compared: drift.window is 0")
    history = read_history(output, config.window)
    earlier = [found for found in history if found.images and found.fingerprint == mine.fingerprint]
    if not earlier:
        return Comparison(note="not compared: no earlier run labelled anything here")
    before = earlier[0].window
    for record in earlier[1:]:
        before += record.window
    runs = "the run" if len(earlier) == 1 else f"the {len(earlier)} runs"
    return compare(now, before, mine.labels, config, f"{runs} before")
