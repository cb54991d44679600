"""All commits in one pass: sums, and the few shards worth naming, however many there are."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from fcn_core.labels import LabelSet
from pipeline.bookkeeping.ledger import Ledger, read_ledger
from pipeline.bookkeeping.review import Shortlist
from pipeline.bookkeeping.shard_table import DamagedError
from pipeline.bookkeeping.sums import Sums
from pipeline.reporting.shard_figures import ShardFigures
from pipeline.store import Store

MOST_NAMED = 50
"""Shards that are remembered of each kind: the worst, those with failures, those between."""

MOST_SHORTLISTED = 12
"""Shards of each kind, with labels and without, that are remembered for their worst image."""


@dataclass(frozen=True, order=True)
class ShardScore:
    """A shard in a list of the worst; they compare by score, then by name.

    Attributes:
        score: mean IU, or mean confidence of a shard without labelled pixels; 1 if it is empty.
        shard: its id.
        has_labels: which of the two.
        images, failures: counts.
        seconds: by stage.
    """

    score: float
    shard: str
    has_labels: bool = field(compare=False)
    images: int = field(compare=False)
    failures: int = field(compare=False)
    seconds: Mapping[str, float] = field(compare=False)


@dataclass
class Summary(Sums):
    """What is known of an output as a whole.

    Attributes:
        expected: how many shards will be added, for an even spread of `spread`.
        seconds: by stage.
        with_failures: the first shards that have quarantined images.
        spread: shards evenly over all, in order.
        figures: what the report draws of the shards.
        shortlist: the shards that hold the worst images.
    """

    expected: int
    seconds: Counter[str] = field(default_factory=Counter)
    with_failures: list[str] = field(default_factory=list)
    spread: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.figures = ShardFigures(self.labels.num_classes, self.expected)
        self.shortlist = Shortlist(MOST_SHORTLISTED)
        self._worst: dict[bool, list[ShardScore]] = {True: [], False: []}
        count = min(self.expected, 2 * MOST_NAMED)
        self._places = [(2 * i + 1) * self.expected // (2 * count) for i in range(count)]

    def add(self, batch: pa.RecordBatch) -> None:
        """Rows of the table of shards, in its order.

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
        self._name(batch, start)

    def worst(self, count: int, *, has_labels: bool) -> list[ShardScore]:
        """Those with the lowest scores of one kind, lowest first; at most `MOST_NAMED`."""
        return self._worst[has_labels][:count]

    def worst_of_all(self, count: int) -> list[ShardScore]:
        """Lowest mean IU first; shards without labels follow, lowest mean confidence first."""
        return [*self._worst[True], *self._worst[False]][:count]

    def _name(self, batch: pa.RecordBatch, start: int) -> None:
        bad = np.flatnonzero(batch["failures"].to_numpy() > 0)[
            : MOST_NAMED - len(self.with_failures)
        ]
        self.with_failures += _pick(batch["shard"], bad)
        end = start + len(batch)
        self.spread += _pick(batch["shard"], [p - start for p in self._places if start <= p < end])
        iou = batch["mean_iou"].to_numpy(zero_copy_only=False)
        confidence = batch["mean_confidence"].fill_null(1.0).to_numpy()
        for has_labels in (True, False):
            rows = np.flatnonzero(np.isnan(iou) != has_labels)
            scores = (iou if has_labels else confidence)[rows]
            # Stable: of equal scores those come first whose shards do.
            lowest = rows[np.argsort(scores, kind="stable")[:MOST_NAMED]]
            found = [_score(row, has_labels) for row in batch.take(pa.array(lowest)).to_pylist()]
            self._worst[has_labels] = heapq.nsmallest(
                MOST_NAMED, [*self._worst[has_labels], *found]
            )


def summarize(output: Store, labels: LabelSet) -> tuple[Ledger, Summary]:
    """All commits of an output, and what they come to.

    Raises:
        OutputError: a commit that cannot be read, or of another format.
        StoreError: the store fails.
    """
    ledger = read_ledger(output)
    try:
        return ledger, _summary(ledger, labels)
    except DamagedError:
        ledger = read_ledger(output, believe_table=False)
        return ledger, _summary(ledger, labels)


def _summary(ledger: Ledger, labels: LabelSet) -> Summary:
    summary = Summary(labels, len(ledger))
    for batch in ledger.batches():
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
