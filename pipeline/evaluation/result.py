"""What an evaluation found: scores, their intervals, and what could not be scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_core.labels import LabelSet
from fcn_core.metrics import Policy, margins, none_if_nan, score_arrays
from fcn_core.metrics.bootstrap import LEVEL, Bootstrap, ScoreAccumulator
from fcn_core.metrics.upper_bound import PAPER_MEAN_IOU
from pipeline.inputs.sample import Failure
from pipeline.stages.spec import ShardFailure

FOUR = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")


@dataclass(frozen=True)
class EvaluationRequest:
    """What is asked of an evaluation.

    Attributes:
        policy: see `fcn_core.metrics.confusion_matrix.Policy`.
        widths: boundary bands, px, ascending; none for the upper bound.
        factors: downsampling factors of the upper bound; none asks for the masks of a network.
        bootstrap: replicates and seed.
    """

    policy: Policy = "reference"
    widths: tuple[int, ...] = ()
    factors: tuple[int, ...] = ()
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    @property
    def layers(self) -> int:
        """Confusion matrices per image: one per factor, or all pixels and each band."""
        return len(self.factors) or 1 + len(self.widths)


@dataclass(frozen=True)
class ShardCounts:
    """One scored shard; `margins` (3, K) are of all pixels, or of the first factor."""

    shard: str
    images: int
    unlabeled: int
    failures: int
    margins: NDArray[np.int64]


@dataclass(frozen=True)
class Evaluation:
    """The result.

    Attributes:
        request: what was asked.
        labels: the label set.
        accumulator: counts of all scored images and of their bootstrap replicates.
        shards: scored ones, by id.
        failures: samples that could not be scored, with their shards.
        failed: shards that are not part of the scores, with reasons.
        over_limit: whether `limits.max_bad_fraction` was exceeded.
        passed_over: files of the input that nobody looks at.
        about: where images and weights came from.
        seconds: wall time.
    """

    request: EvaluationRequest
    labels: LabelSet
    accumulator: ScoreAccumulator
    shards: tuple[ShardCounts, ...]
    failures: tuple[tuple[str, Failure], ...]
    failed: tuple[ShardFailure, ...]
    over_limit: bool
    passed_over: tuple[str, ...]
    about: Mapping[str, Any]
    seconds: float

    @property
    def unlabeled(self) -> int:
        """Images of scored shards that have no label."""
        return sum(shard.unlabeled for shard in self.shards)

    @property
    def exit_code(self) -> int:
        """0 all scored, 3 some samples could not be, 4 limits exceeded: as `run` has it."""
        if self.failed or self.over_limit:
            return 4
        return 3 if self.failures else 0

    def layer(self, index: int) -> dict[str, Any]:
        """Scores and intervals of one confusion matrix, JSON-able; None where undefined."""
        matrix = self.accumulator.confusions[index]
        counts = margins(matrix)
        found = {name: _plain(v) for name, v in score_arrays(counts, self.request.policy).items()}
        found["label_pixels"] = counts[1].tolist()
        found["predicted_pixels"] = counts[2].tolist()
        found["confusion"] = matrix.tolist()
        if self.request.bootstrap.replicates:
            found["intervals"] = {
                name: _plain(np.moveaxis(bounds, 0, -1))
                for name, bounds in self.accumulator.intervals(index, self.request.policy).items()
            }
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything, for machines. Scores have the names of `stats/scores.json`."""
        document: dict[str, Any] = {"format": 1, **self.about, **self._scores()}
        bootstrap = self.request.bootstrap
        if bootstrap.replicates:
            document["bootstrap"] = {
                "level": LEVEL,
                "method": "Poisson bootstrap over images, percentiles",
                "replicates": bootstrap.replicates,
                "seed": bootstrap.seed,
            }
        return {
            **document,
            "policy": self.request.policy,
            "classes": list(self.labels.classes),
            "label_set": self.labels.name,
            "labeled_images": self.accumulator.images,
            "unlabeled_images": self.unlabeled,
            "failures": [{"shard": shard, **vars(failure)} for shard, failure in self.failures],
            "failed_shards": {failure.shard: failure.reason for failure in self.failed},
            "over_limit": self.over_limit,
            "passed_over": list(self.passed_over),
            "shards": [self.shard(counts) for counts in self.shards],
            "exit_code": self.exit_code,
            "seconds": round(self.seconds, 3),
        }

    def shard(self, counts: ShardCounts) -> dict[str, Any]:
        """The row of one shard, JSON-able."""
        found = score_arrays(counts.margins, self.request.policy)
        return {
            "shard": counts.shard,
            "labeled_images": counts.images,
            "unlabeled_images": counts.unlabeled,
            "failures": counts.failures,
            **{name: _plain(found[name]) for name in (*FOUR, "iou")},
        }

    def _scores(self) -> dict[str, Any]:
        if self.request.factors:
            rows = []
            for index, factor in enumerate(self.request.factors):
                paper = PAPER_MEAN_IOU.get(factor)
                published = None if paper is None else round(paper / 100, 3)
                row = {"factor": factor, "paper_voc_mean_iou": published, **self.layer(index)}
                rows.append(row)
            return {"upper_bound": rows}
        bands = [
            {"width": width, **self.layer(1 + index)}
            for index, width in enumerate(self.request.widths)
        ]
        return {**self.layer(0), **({"trimap": bands} if bands else {})}


def _plain(values: NDArray[np.float64]) -> Any:
    """Nested lists with None for NaN."""
    if np.ndim(values) == 0:
        return none_if_nan(float(values))
    return [_plain(value) for value in values]
