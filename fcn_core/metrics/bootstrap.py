"""Sums over a data set of any size: the counts, and the same counts of bootstrap replicates.

The plain bootstrap draws N of N images with replacement, again and again, and needs every image's
counts until the end. Here each image arrives once, is counted w times in each replicate, and is
forgotten: w is Poisson distributed with mean 1, which is what the multinomial count of a single
image becomes for large N. A replicate then holds about N images instead of exactly N, which cancels
in a ratio. Sources: Efron 1979; Hanley and MacGibbon 2006 (Creating non-parametric bootstrap
samples using Poisson frequencies); Chamandy et al. 2012 (Estimating uncertainty for massive data
streams).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcn_core.metrics.confusion_matrix import Policy, margins, score_arrays

Shape = tuple[int, int]
"""(L, K): layers and classes."""


LEVEL = 0.95
"""Of the intervals."""


_BATCH = 256
"""Images whose counts are weighted together: bounds memory, keeps float64 sums exact."""


# A uniform 64-bit number above k of these thresholds stands for the weight k.
_CUMULATIVE = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(17)])

_THRESHOLDS = np.array([min(int(p * 2**64), 2**64 - 1) for p in _CUMULATIVE], np.uint64)


@dataclass(frozen=True)
class Bootstrap:
    """How many replicates (0: none), and the seed of their weights."""

    replicates: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class ClassCounts:
    """The pixels of some images, as small as their scores allow.

    Attributes:
        names: one per image, different for every image of the data set: weights depend on them.
        margins: (images, L, 3, K) int64, see `fcn_core.metrics.confusion_matrix.margins`.
        confusions: (L, K, K) int64, summed over the images.
    """

    names: tuple[str, ...]
    margins: NDArray[np.int64]
    confusions: NDArray[np.int64]

    @classmethod
    def of(cls, images: Iterable[tuple[str, NDArray[np.int64]]], shape: Shape) -> ClassCounts:
        """From (name, (L, K, K) confusion matrices) of each image, one at a time.

        Args:
            images: consumed once; K x K counts are never held for more than one image.
            shape: (L, K).
        """
        layers, classes = shape
        names, rows = [], []
        confusions = np.zeros((layers, classes, classes), np.int64)
        for name, matrices in images:
            names.append(name)
            rows.append(margins(matrices))
            confusions += matrices
        stacked = np.stack(rows) if rows else np.zeros((0, layers, 3, classes), np.int64)
        return cls(tuple(names), stacked, confusions)


class ScoreAccumulator:
    """Counts of a data set, or of a part of it; adding tallies adds what they saw.

    There are L layers, each a way to look at the same images: all pixels, or those of a band, or
    those of another prediction. Every number is an integer, so that neither the order of the images
    nor their grouping into tallies changes a bit.

    Memory is K x K counts per layer and 3 x K per layer and replicate, however many the images.
    """

    def __init__(self, shape: Shape, bootstrap: Bootstrap) -> None:
        """Nothing counted yet.

        Args:
            shape: (L, K).
            bootstrap: which replicates to keep.
        """
        layers, num_classes = shape
        self.bootstrap = bootstrap
        self.images = 0
        self.confusions = np.zeros((layers, num_classes, num_classes), np.int64)
        self._replicates = np.zeros((bootstrap.replicates, layers, 3, num_classes), np.int64)

    def add(self, counts: ClassCounts) -> None:
        """Count images."""
        self.images += len(counts.names)
        self.confusions += counts.confusions
        if not self.bootstrap.replicates:
            return
        for start in range(0, len(counts.names), _BATCH):
            batch = slice(start, start + _BATCH)
            weights = poisson_weights(counts.names[batch], self.bootstrap)
            flat = counts.margins[batch].reshape(weights.shape[0], -1)
            # In float64 for BLAS; exact, for every sum is far below 2**53.
            sums = weights.T.astype(np.float64) @ flat.astype(np.float64)
            self._replicates += sums.astype(np.int64).reshape(self._replicates.shape)

    def __iadd__(self, other: ScoreAccumulator) -> ScoreAccumulator:
        self.images += other.images
        self.confusions += other.confusions
        self._replicates += other._replicates
        return self

    def intervals(self, layer: int, policy: Policy = "reference") -> dict[str, NDArray[np.float64]]:
        """95 % percentile intervals of all that `score_arrays` finds.

        The bounds are the 2.5th and 97.5th percentile of the replicates' values, interpolated
        linearly between neighbours. A replicate in which a value is undefined (its class does not
        occur) is left out for that value.

        Returns:
            (2, ...) per name: low, then high; NaN where no replicate has a value or there are none.
        """
        found = score_arrays(self._replicates[:, layer], policy)
        return {name: _percentiles(values) for name, values in found.items()}


def poisson_weights(names: Sequence[str], bootstrap: Bootstrap) -> NDArray[np.uint8]:
    """How often each image counts in each replicate: independent Poisson(1) numbers.

    They follow from the seed and the image's name alone, whatever the order, and from NumPy's
    bit stream, which is the same in every version (its distributions are not).

    Returns:
        (len(names), replicates).
    """
    weights = np.empty((len(names), bootstrap.replicates), np.uint8)
    for row, name in zip(weights, names, strict=True):
        digest = hashlib.sha256(f"{bootstrap.seed}\0{name}".encode()).digest()
        bits = np.random.Philox(key=int.from_bytes(digest[:16])).random_raw(bootstrap.replicates)
        row[:] = np.searchsorted(_THRESHOLDS, bits, side="right")
    return weights


def _percentiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    bounds = np.full((2, *values.shape[1:]), np.nan)
    known = ~np.isnan(values)
    any_known = known.any(axis=0)
    tails = [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2]
    if values.ndim == 1:
        if any_known:
            bounds[:] = np.percentile(values[known], tails)
        return bounds
    for index in np.flatnonzero(any_known):
        bounds[:, index] = np.percentile(values[known[:, index], index], tails)
    return bounds
