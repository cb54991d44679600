"""Summarize an output in one pass over its commits: sums, scores, and a few shards by name.

`Sums` adds up any rows of the table of shards. `Summary` adds what the report needs of all rows:
the worst shards, those with failures, and an even spread. Its memory does not grow with the number
of shards, except for the charts (`ShardFigures`).
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fcn_core.labels import LabelSet
from fcn_core.metrics import ConfusionMatrix, none_if_nan
from pipeline.errors import OutputError
from pipeline.output.commit_index import CommitIndex, read_commit_index
from pipeline.output.review import Shortlist
from pipeline.output.shard_figures import ShardFigures
from pipeline.output.shard_table import HISTOGRAMS, DamagedError
from pipeline.stages.histograms import Histograms
from pipeline.stages.shard_stats import ShardStats
from pipeline.storage.store import Store

MAX_NAMED = 50
"""Most shards to name of each kind: the worst, those with failures, and the even spread."""


MAX_SHORTLISTED = 12
"""Most shards on the shortlist of each kind: with labels, and without."""


@dataclass
class Sums:
    """Sums over some commits, taken from rows of the table of shards.

    Attributes:
        labels: label set of the output; every commit must have its number of classes.
        shards: number of commits.
        stats: counts over the images of the commits.
    """

    labels: LabelSet
    shards: int = field(default=0, init=False)
    stats: ShardStats = field(init=False)

    def __post_init__(self) -> None:
        self.stats = ShardStats.zero(self.labels.num_classes)

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows of the table of shards.

        Raises:
            OutputError: a commit has another number of classes.
        """
        self._refuse_other_classes(batch)
        self.shards += len(batch)
        self.stats += stats_of_rows(batch, self.labels.num_classes)

    @property
    def images(self) -> int:
        """Number of images that were segmented."""
        return self.stats.images

    @property
    def labeled_images(self) -> int:
        """Number of images that have a label."""
        return self.stats.labeled_images

    @property
    def failures(self) -> int:
        """Number of images that were quarantined."""
        return self.stats.failures

    @property
    def confusion(self) -> ConfusionMatrix:
        """Sum of all confusion matrices."""
        return self.stats.confusion

    def scores(self) -> dict[str, Any]:
        """Return the merged scores as JSON values, computed from the commits alone.

        Scores of absent classes are None. `mean_iou` follows the policy "reference" of
        `fcn_core.metrics.confusion_matrix`, and `mean_iou_present` the policy "present".
        """
        return {
            "format": 1,
            **self.confusion.scores().to_dict(),
            "mean_iou_present": none_if_nan(self.confusion.scores("present").mean_iou),
            "classes": list(self.labels.classes),
            "images": self.images,
            "labeled_images": self.labeled_images,
            "failures": self.failures,
            "shards": self.shards,
            "class_pixels": list(self.stats.class_pixels),
            "confusion": self.confusion.matrix.tolist(),
        }

    def _refuse_other_classes(self, batch: pa.RecordBatch) -> None:
        classes = self.labels.num_classes
        for name, length in (("class_pixels", classes), ("confusion", classes**2)):
            lengths = pc.list_value_length(batch[name]).to_numpy()
            if len(wrong := np.flatnonzero(lengths != length)):
                raise OutputError(
                    where=f"the commit of shard {batch['shard'][int(wrong[0])].as_py()}",
                    found=f"{lengths[wrong[0]]} values in {name}",
                    expected=f"{length} for the {classes} classes of {self.labels.name}",
                    remedy="Delete it: its shard will be segmented again.",
                )


def stats_of_rows(batch: pa.RecordBatch, num_classes: int) -> ShardStats:
    """Return the counts over the commits in rows of the table of shards.

    Args:
        batch: rows whose lists have the lengths of `num_classes` classes.
        num_classes: K.
    """
    if not len(batch):
        return ShardStats.zero(num_classes)
    confusion = _sum_of_lists(batch["confusion"], len(batch)).reshape(num_classes, num_classes)
    known = batch.filter(batch[HISTOGRAMS[0]].is_valid())
    flat = [_sum_of_lists(known[name], len(known)).tolist() for name in HISTOGRAMS if len(known)]
    return ShardStats(
        images=pc.sum(batch["images"]).as_py(),
        labeled_images=pc.sum(batch["labeled_images"]).as_py(),
        failures=pc.sum(batch["failures"]).as_py(),
        confusion=ConfusionMatrix(num_classes, confusion.tolist()),
        class_pixels=tuple(_sum_of_lists(batch["class_pixels"], len(batch)).tolist()),
        confidence_sum=pc.sum(batch["confidence_sum"]).as_py(),
        histograms=Histograms.of_flat(flat) if len(known) else Histograms.zero(num_classes),
    )


def _sum_of_lists(column: pa.Array, rows: int) -> NDArray[np.int64]:
    """Return the sum of lists of equal length, element by element."""
    return cast(NDArray[np.int64], column.flatten().to_numpy().reshape(rows, -1).sum(axis=0))


@dataclass(frozen=True, order=True)
class ShardScore:
    """A shard and its score. Shards compare by score, then by id.

    Attributes:
        score: mean IoU, or mean confidence of a shard without labeled pixels; 1 if it is empty.
        shard: id of the shard.
        has_labels: whether `score` is a mean IoU.
        images: images that were segmented.
        failures: images that were quarantined.
        seconds: seconds by stage.
    """

    score: float
    shard: str
    has_labels: bool = field(compare=False)
    images: int = field(compare=False)
    failures: int = field(compare=False)
    seconds: Mapping[str, float] = field(compare=False)


@dataclass
class Summary(Sums):
    """Sums over all commits of an output, and the shards that the report names.

    Attributes:
        expected: number of shards that will be added.
        seconds: seconds by stage, summed.
        with_failures: ids of the first `MAX_NAMED` shards with quarantined images.
        spread: ids of shards at even distances, in order.
        figures: figures for the charts of the report.
        shortlist: shards that hold the worst images.
    """

    expected: int
    seconds: Counter[str] = field(default_factory=Counter)
    with_failures: list[str] = field(default_factory=list)
    spread: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.figures = ShardFigures(self.labels.num_classes, self.expected)
        self.shortlist = Shortlist(MAX_SHORTLISTED)
        self._worst: dict[bool, list[ShardScore]] = {True: [], False: []}
        count = min(self.expected, 2 * MAX_NAMED)
        self._places = [(2 * i + 1) * self.expected // (2 * count) for i in range(count)]

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows of the table of shards, in the order of the table.

        Raises:
            OutputError: a commit has another number of classes.
        """
        start = self.shards
        super().add(batch)
        seconds = [json.loads(text) for text in batch["seconds"].to_pylist()]
        for of_shard in seconds:
            self.seconds.update(of_shard)
        self.figures.add(batch, seconds)
        self.shortlist.add(batch)
        self._name_shards(batch, start)

    def worst(self, count: int, *, has_labels: bool) -> list[ShardScore]:
        """Return the shards of one kind with the lowest scores, at most `MAX_NAMED`."""
        return self._worst[has_labels][:count]

    def worst_of_all(self, count: int) -> list[ShardScore]:
        """Return the shards with the lowest mean IoU; those without labels come last."""
        return [*self._worst[True], *self._worst[False]][:count]

    def _name_shards(self, batch: pa.RecordBatch, start: int) -> None:
        bad = np.flatnonzero(batch["failures"].to_numpy() > 0)[
            : MAX_NAMED - len(self.with_failures)
        ]
        self.with_failures += _pick(batch["shard"], bad)
        end = start + len(batch)
        self.spread += _pick(batch["shard"], [p - start for p in self._places if start <= p < end])
        iou = batch["mean_iou"].to_numpy(zero_copy_only=False)
        confidence = batch["mean_confidence"].fill_null(1.0).to_numpy()
        for has_labels in (True, False):
            rows = np.flatnonzero(np.isnan(iou) != has_labels)
            scores = (iou if has_labels else confidence)[rows]
            # A stable sort: shards of equal score stay in the order of the table.
            lowest = rows[np.argsort(scores, kind="stable")[:MAX_NAMED]]
            worst = [_score(row, has_labels) for row in batch.take(pa.array(lowest)).to_pylist()]
            self._worst[has_labels] = heapq.nsmallest(MAX_NAMED, [*self._worst[has_labels], *worst])


def summarize(output: Store, labels: LabelSet) -> tuple[CommitIndex, Summary]:
    """Return the index of all commits of an output, and their summary.

    Raises:
        OutputError: a commit cannot be read, or has a later format.
        StoreError: the store fails.
    """
    index = read_commit_index(output)
    try:
        return index, _summary(index, labels)
    except DamagedError:
        index = read_commit_index(output, trust_table=False)
        return index, _summary(index, labels)


def _summary(index: CommitIndex, labels: LabelSet) -> Summary:
    summary = Summary(labels, len(index))
    for batch in index.batches():
        summary.add(batch)
    return summary


def _pick(column: pa.Array, rows: Any) -> list[str]:
    return [column[int(row)].as_py() for row in rows]


def _score(row: Mapping[str, Any], has_labels: bool) -> ShardScore:
    confidence = 1.0 if row["mean_confidence"] is None else row["mean_confidence"]
    return ShardScore(
        score=row["mean_iou"] if has_labels else confidence,
        shard=row["shard"],
        has_labels=has_labels,
        images=row["images"],
        failures=row["failures"],
        seconds=json.loads(row["seconds"]),
    )
