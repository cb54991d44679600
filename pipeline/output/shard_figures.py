"""Figures for the charts of the report: cells of shards, and confidence intervals of scores.

Both are collected from the rows of the table of shards in one pass and in bounded memory. A cell
stands for one shard or, with more than `MAX_CELLS` shards, for several consecutive shards.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fcn_core.metrics import Policy, margins, none_if_nan
from fcn_core.metrics.bootstrap import Bootstrap, ClassCounts, ScoreAccumulator

MAX_CELLS = 1000
"""Most cells in the charts of shards."""


MAX_UNITS = 4096
"""Most units that the bootstrap samples: single shards, or with more, random groups of shards."""


FEWEST_SHARDS = 5
"""Fewest labeled shards for intervals: with fewer, intervals would be meaningless."""


_QUANTILES = {"low": 0.0, "mid": 0.5, "high": 1.0}


@dataclass
class _Cell:
    """Consecutive shards of the table; `rank` is the rank of `lowest`."""

    first: str
    last: str = ""
    lowest: str = ""
    rank: float = np.inf
    shards: int = 0
    images: int = 0
    failures: int = 0
    seconds: Counter[str] = field(default_factory=Counter)

    def add(self, part: pa.RecordBatch, seconds: Sequence[Mapping[str, float]]) -> None:
        iou = part["mean_iou"].to_numpy(zero_copy_only=False)
        confidence = part["mean_confidence"].to_numpy(zero_copy_only=False)
        # Shards without a score rank after all others, by their confidence.
        ranks = np.nan_to_num(np.where(np.isnan(iou), 2 + confidence, iou), nan=4)
        lowest = int(ranks.argmin())
        if ranks[lowest] < self.rank:
            self.rank, self.lowest = float(ranks[lowest]), part["shard"][lowest].as_py()
        self.last = part["shard"][len(part) - 1].as_py()
        self.shards += len(part)
        self.images += int(part["images"].to_numpy().sum())
        self.failures += int(part["failures"].to_numpy().sum())
        for of_shard in seconds:
            self.seconds.update(of_shard)  # a Counter adds


class ShardFigures:
    """Collects figures from rows of the table of shards.

    Attributes:
        expected: number of rows that will be added.
        labeled: number of added rows with labeled pixels.
    """

    def __init__(self, num_classes: int, expected: int) -> None:
        self.expected = expected
        self.labeled = 0
        self._rows = 0
        self._most_cells = min(expected, MAX_CELLS)
        self._cells: list[_Cell] = []
        self._margins = np.zeros((min(expected, MAX_UNITS), 3, num_classes), np.int64)
        self._scores: list[NDArray[np.float32]] = []
        self._confidences: list[NDArray[np.float32]] = []

    def add(self, batch: pa.RecordBatch, seconds: Sequence[Mapping[str, float]]) -> None:
        """Add rows of the table, in the order of the table.

        Args:
            batch: rows of the table of shards.
            seconds: seconds by stage of each row.

        Raises:
            ValueError: more rows than expected.
        """
        rows = np.arange(self._rows, self._rows + len(batch))
        if self._rows + len(batch) > self.expected:
            raise ValueError(f"{self._rows + len(batch)} rows, {self.expected} were expected")
        self._rows += len(batch)
        counts = batch["confusion"].flatten().to_numpy().reshape(len(batch), -1)
        classes = self._margins.shape[2]
        of_shards = margins(counts.reshape(-1, classes, classes))
        self.labeled += int((of_shards[:, 1].sum(axis=-1) > 0).sum())
        np.add.at(self._margins, self._units(batch["shard"], rows), of_shards)
        score = batch["mean_iou"].to_numpy(zero_copy_only=False)
        confidence = batch["mean_confidence"].to_numpy(zero_copy_only=False)
        self._scores.append(score.astype(np.float32))
        self._confidences.append(confidence.astype(np.float32))
        cells = rows * self._most_cells // self.expected
        for cell in np.unique(cells):
            start, end = (int(place) for place in np.searchsorted(cells, (cell, cell + 1)))
            part = batch.slice(start, end - start)
            if cell == len(self._cells):
                self._cells.append(_Cell(part["shard"][0].as_py()))
            self._cells[cell].add(part, seconds[start:end])

    def intervals(self, policy: Policy = "reference") -> dict[str, NDArray[np.float64]]:
        """Return 95 % confidence intervals of all scores of `score_arrays`.

        They are percentiles of 1000 replicates of a Poisson bootstrap over shards: they show how
        the scores would vary with other shards of the same kind.

        Returns:
            Arrays of shape (2, ...) by name of the score: low, then high; NaN where undefined.
            Empty with fewer than `FEWEST_SHARDS` labeled shards.
        """
        if self.labeled < FEWEST_SHARDS:
            return {}
        units, _, classes = self._margins.shape
        scores = ScoreAccumulator((1, classes), Bootstrap())
        names = tuple(str(unit) for unit in range(units))
        nothing = np.zeros((1, classes, classes), np.int64)
        scores.add(ClassCounts(names, self._margins[:, None], nothing))
        return scores.intervals(0, policy)

    def cells(self) -> dict[str, Any]:
        """Return the columns of the charts as JSON values, one value per cell.

        `first`, `last`: ids of the first and the last shard. `lowest`: id of the shard with the
        lowest mean IoU, or without labels the lowest confidence. `shards`, `images`, `failures`:
        counts. `iou`, `confidence`: `low`, `mid` (median) and `high` over the shards, None where
        undefined. `seconds`: seconds by stage, summed.
        """
        edges = -(-np.arange(len(self._cells) + 1) * self.expected // max(1, self._most_cells))
        stages = sorted({stage for cell in self._cells for stage in cell.seconds})
        columns = ("first", "last", "lowest", "shards", "images", "failures")
        return {
            **{name: [getattr(cell, name) for cell in self._cells] for name in columns},
            "iou": _quantiles(self._scores, edges),
            "confidence": _quantiles(self._confidences, edges),
            "seconds": {
                stage: [round(cell.seconds[stage], 3) for cell in self._cells] for stage in stages
            },
        }

    def histogram(self, bins: int = 20) -> list[int]:
        """Return the numbers of shards by mean IoU, in bins of equal width from 0 to 1."""
        scores = np.concatenate([*self._scores, np.zeros(0, np.float32)])
        counts, _ = np.histogram(scores[~np.isnan(scores)], bins, (0, 1))
        return [int(count) for count in counts]

    def _units(self, names: pa.Array, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.expected <= MAX_UNITS:
            return rows
        groups = [zlib.crc32(name.encode()) % MAX_UNITS for name in names.to_pylist()]
        return np.array(groups, np.int64)


def _quantiles(
    batches: Sequence[NDArray[np.float32]], edges: NDArray[np.int64]
) -> dict[str, list[float | None]]:
    values = np.concatenate([*batches, np.zeros(0, np.float32)])
    quantiles: dict[str, list[float | None]] = {name: [] for name in _QUANTILES}
    at = list(_QUANTILES.values())
    for start, end in pairwise(edges):
        known = values[start:end][~np.isnan(values[start:end])]
        if len(known) > 1:
            cell = np.quantile(known, at)
        else:  # one shard per cell is the usual case, and np.quantile is slow
            cell = np.full(len(at), known[0] if len(known) else np.nan)
        for name, value in zip(_QUANTILES, cell, strict=True):
            quantiles[name].append(none_if_nan(round(float(value), 5)))
    return quantiles
