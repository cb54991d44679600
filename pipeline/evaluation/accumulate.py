"""From counted chunks to an evaluation: sums by shard, and limits as in a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from fcn_core.labels import LabelSet
from fcn_core.metrics import margins
from fcn_core.metrics.bootstrap import ClassCounts, ScoreAccumulator
from pipeline.config import LimitsConfig
from pipeline.errors import InputError
from pipeline.evaluation.result import Evaluation, EvaluationRequest, ShardCounts
from pipeline.inputs.sample import Failure
from pipeline.limits import is_over, suggest_remedy
from pipeline.monitoring.progress import Progress
from pipeline.plan import Plan
from pipeline.stages.spec import ShardFailure


@dataclass(frozen=True)
class ChunkCounts:
    """What is left of chunk `seq` of `count` when its masks and labels are forgotten."""

    shard: str
    seq: int
    count: int
    counts: ClassCounts
    unlabeled: int
    failures: tuple[Failure, ...]


@dataclass
class _PartialShard:
    """A shard whose chunks are coming in."""

    accumulator: ScoreAccumulator
    chunks: int = 0
    unlabeled: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Bad ones left out."""
        return self.accumulator.images + self.unlabeled


class EvaluationAccumulator:
    """Adds the counts of whole shards that are within the limits: those that a run commits."""

    def __init__(
        self, plan: Plan, labels: LabelSet, request: EvaluationRequest, limits: LimitsConfig
    ) -> None:
        self.plan = plan
        self.labels = labels
        self.request = request
        self.limits = limits
        self.accumulator = self._empty()
        self.partial: dict[str, _PartialShard] = {}
        self.shards: dict[str, ShardCounts] = {}
        self.failed: dict[str, ShardFailure] = {}
        self.failures: list[tuple[str, Failure]] = []
        self.images = 0

    def run(
        self,
        counting: Generator[ChunkCounts | ShardFailure, None, None],
        about: dict[str, Any],
        on_progress: Callable[[Progress], None] | None,
    ) -> Evaluation:
        """Take everything in and say what it comes to.

        Args:
            counting: results of an executor, in any order, each chunk once.
            about: where images and weights came from.
            on_progress: called at the start and after every chunk.

        Raises:
            InputError: nothing had a label.
        """
        started = time.monotonic()
        with closing(counting):  # or its threads would outlive an interrupt
            self._report(on_progress, started)
            for item in counting:
                self._add(item)
                self._report(on_progress, started)
        bad = len(self.failures)
        if not self.accumulator.images and not self.failed:
            raise InputError(
                where=str(about["input"]),
                found=f"{self.images} images without a label, {bad} bad samples",
                expected="labels to score against",
                remedy="Name their folder with --labels, or pack them with the images: fcnseg shard.",
            )
        return Evaluation(
            request=self.request,
            labels=self.labels,
            accumulator=self.accumulator,
            shards=tuple(self.shards[shard] for shard in sorted(self.shards)),
            failures=tuple(sorted(self.failures, key=lambda item: (item[0], item[1].key))),
            failed=tuple(self.failed[shard] for shard in sorted(self.failed)),
            over_limit=is_over(bad, self.images + bad, self.limits.max_bad_fraction),
            passed_over=self.plan.passed_over,
            about=about,
            seconds=time.monotonic() - started,
        )

    def _add(self, item: ChunkCounts | ShardFailure) -> None:
        if isinstance(item, ShardFailure):  # as in a run, nothing of it counts
            self.failed[item.shard] = item
            self.partial.pop(item.shard, None)
            return
        if item.shard in self.failed:
            return
        partial = self.partial.setdefault(item.shard, _PartialShard(self._empty()))
        partial.accumulator.add(item.counts)
        partial.chunks += 1
        partial.unlabeled += item.unlabeled
        partial.failures += item.failures
        if partial.chunks == item.count:
            self._complete(item.shard, self.partial.pop(item.shard))

    def _complete(self, shard: str, partial: _PartialShard) -> None:
        self.images += partial.images
        self.failures += [(shard, failure) for failure in partial.failures]
        bad = len(partial.failures)
        fraction = self.limits.max_bad_fraction_per_shard
        if is_over(bad, partial.images + bad, fraction):
            reason = (
                f"shard {shard}: {bad} of {partial.images + bad} images are bad; at most "
                f"{fraction:.0%} may be (limits.max_bad_fraction_per_shard). Not part of the "
                f"scores. {suggest_remedy(partial.failures)}."
            )
            self.failed[shard] = ShardFailure(shard, reason, "LimitsError")
            return
        self.shards[shard] = ShardCounts(
            shard=shard,
            images=partial.accumulator.images,
            unlabeled=partial.unlabeled,
            failures=bad,
            margins=margins(partial.accumulator.confusions[0]),
        )
        self.accumulator += partial.accumulator

    def _empty(self) -> ScoreAccumulator:
        return ScoreAccumulator(
            (self.request.layers, self.labels.num_classes), self.request.bootstrap
        )

    def _report(self, on_progress: Callable[[Progress], None] | None, started: float) -> None:
        if on_progress is None:
            return
        under_way = self.partial.values()
        on_progress(
            Progress(
                shards_done=len(self.shards) + len(self.failed),
                shards_pending=len(self.plan.pending),
                images=self.images + sum(partial.images for partial in under_way),
                failures=len(self.failures) + sum(len(p.failures) for p in under_way),
                seconds=time.monotonic() - started,
            )
        )
