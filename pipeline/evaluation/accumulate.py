"""Sum the counts of chunks by shard, apply the limits of a run, and build the evaluation."""

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
from pipeline.limits import describe_excess, is_over, suggest_remedy
from pipeline.monitoring.progress import Progress
from pipeline.plan import Plan
from pipeline.stages.spec import ShardFailure


@dataclass(frozen=True)
class ChunkCounts:
    """Counts of chunk `seq` of `count` of a shard, without its masks and labels.

    Attributes:
        shard, seq, count: id of the shard, number of the chunk from 0, number of chunks.
        counts: confusion matrices of the labeled images.
        unlabeled: number of images without a label.
        failures: samples that could not be scored.
    """

    shard: str
    seq: int
    count: int
    counts: ClassCounts
    unlabeled: int
    failures: tuple[Failure, ...]


@dataclass
class _PartialShard:
    """Counts of a shard that is not complete yet."""

    accumulator: ScoreAccumulator
    chunks: int = 0
    unlabeled: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Number of images, labeled or not, without bad samples."""
        return self.accumulator.images + self.unlabeled


class EvaluationAccumulator:
    """Adds the counts of complete shards within the limits: the shards that a run would commit.

    Args:
        plan: plan of the input.
        labels: label set of the scores.
        request: scores to compute.
        limits: maximum fractions of bad samples.
    """

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
        """Consume all counts and return the evaluation.

        Args:
            counting: chunks and failed shards from an executor, in any order, each chunk once.
            about: origin of images and weights; becomes part of the JSON document.
            on_progress: callback at the start and after every chunk.

        Raises:
            InputError: no image has a label.
        """
        started = time.monotonic()
        with closing(counting):  # so that its threads end after an interrupt
            self._report(on_progress, started)
            for item in counting:
                self._add(item)
                self._report(on_progress, started)
        bad = len(self.failures)
        if not self.accumulator.images and not self.failed:
            raise InputError(
                where=str(about["input"]),
                found=f"{self.images} images without a label, {bad} bad samples",
                expected="labels for the scores",
                remedy="Give their folder with --labels, or pack them with `fcnseg shard`.",
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
        if isinstance(item, ShardFailure):  # as in a run, no chunk of the shard counts
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
            excess = describe_excess(
                bad, partial.images + bad, fraction, "limits.max_bad_fraction_per_shard"
            )
            reason = (
                f"shard {shard}: {excess}. The shard is not part of the scores. "
                f"{suggest_remedy(partial.failures)}."
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
        in_progress = self.partial.values()
        on_progress(
            Progress(
                shards_done=len(self.shards) + len(self.failed),
                shards_pending=len(self.plan.pending),
                images=self.images + sum(partial.images for partial in in_progress),
                failures=len(self.failures) + sum(len(p.failures) for p in in_progress),
                seconds=time.monotonic() - started,
            )
        )
