"""The request and the result of an evaluation: scores, intervals, and samples without a score."""

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

SUMMARY_SCORES = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")


@dataclass(frozen=True)
class EvaluationRequest:
    """Scores to compute in an evaluation.

    Attributes:
        policy: classes in the means; see `fcn_core.metrics.confusion_matrix.Policy`.
        widths: widths of boundary bands in px, ascending; empty for the upper bound.
        factors: downsampling factors of the upper bound; empty to score a network.
        bootstrap: number of replicates and seed.
    """

    policy: Policy = "reference"
    widths: tuple[int, ...] = ()
    factors: tuple[int, ...] = ()
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    @property
    def layers(self) -> int:
        """Number of confusion matrices per image: one per factor, or 1 + one per boundary band."""
        return len(self.factors) or 1 + len(self.widths)


@dataclass(frozen=True)
class ShardCounts:
    """Counts of one scored shard.

    Attributes:
        shard: id of the shard.
        images, unlabeled, failures: number of labeled, unlabeled and bad images.
        margins: (3, K) pixel counts of all pixels, or of the first factor.
    """

    shard: str
    images: int
    unlabeled: int
    failures: int
    margins: NDArray[np.int64]


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        request: requested scores.
        labels: label set of the scores.
        accumulator: counts of all scored images, and of their bootstrap replicates.
        shards: scored shards, sorted by id.
        failures: (shard, failure) of each sample that could not be scored.
        failed: shards that are not part of the scores, with the reasons.
        over_limit: whether `limits.max_bad_fraction` was exceeded.
        passed_over: ignored files of the input.
        about: origin of images and weights.
        seconds: wall time, s.
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
        """Number of images without a label in scored shards."""
        return sum(shard.unlabeled for shard in self.shards)

    @property
    def exit_code(self) -> int:
        """0 if all samples are scored, 3 if some are not, 4 if limits are exceeded; as in `run`."""
        if self.failed or self.over_limit:
            return 4
        return 3 if self.failures else 0

    def layer(self, index: int) -> dict[str, Any]:
        """Return scores and intervals of confusion matrix `index`, JSON-able; None if undefined."""
        matrix = self.accumulator.confusions[index]
        counts = margins(matrix)
        scores = {name: _plain(v) for name, v in score_arrays(counts, self.request.policy).items()}
        scores["label_pixels"] = counts[1].tolist()
        scores["predicted_pixels"] = counts[2].tolist()
        scores["confusion"] = matrix.tolist()
        if self.request.bootstrap.replicates:
            scores["intervals"] = {
                name: _plain(np.moveaxis(bounds, 0, -1))
                for name, bounds in self.accumulator.intervals(index, self.request.policy).items()
            }
        return scores

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `--json`. Scores have the names of `stats/scores.json`."""
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
        """Return the scores of one shard, JSON-able."""
        scores = score_arrays(counts.margins, self.request.policy)
        return {
            "shard": counts.shard,
            "labeled_images": counts.images,
            "unlabeled_images": counts.unlabeled,
            "failures": counts.failures,
            **{name: _plain(scores[name]) for name in (*SUMMARY_SCORES, "iou")},
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
    """Return a float, or nested lists of floats, with None for NaN."""
    if np.ndim(values) == 0:
        return none_if_nan(float(values))
    return [_plain(value) for value in values]
