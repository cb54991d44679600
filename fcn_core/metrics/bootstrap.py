"""Sum confusion counts over a data set of any size, together with bootstrap replicates of the sums.

The plain bootstrap repeatedly draws N of N images with replacement, and needs the counts of every
image until the end. Here each image is seen once: each replicate adds its counts w times, and the
image is then dropped. The weight w is Poisson distributed with mean 1, the limit for large N of how
often one image is drawn. A replicate then holds about N images instead of exactly N, which cancels
in a ratio.

Sources: Efron 1979; Hanley and MacGibbon 2006 (Creating non-parametric bootstrap samples using
Poisson frequencies); Chamandy et al. 2012 (Estimating uncertainty for massive data streams).
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
"""(L, K): numbers of layers and classes. A layer is one way to count the same images."""


LEVEL = 0.95
"""Confidence level of the intervals."""


_BATCH = 256
"""Images that are weighted together: bounds memory, and keeps float64 sums exact."""


# A uniform 64-bit number that is above k of these thresholds gives the weight k.
_CUMULATIVE = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(17)])

_THRESHOLDS = np.array([min(int(p * 2**64), 2**64 - 1) for p in _CUMULATIVE], np.uint64)


@dataclass(frozen=True)
class Bootstrap:
    """Bootstrap settings: the number of replicates (0: none), and the seed of their weights."""

    replicates: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class ClassCounts:
    """Pixel counts of some images, reduced to the numbers that scores need.

    Attributes:
        names: One name per image, unique within the data set: bootstrap weights depend on it.
        margins: (images, L, 3, K) int64; see `fcn_core.metrics.confusion_matrix.margins`.
        confusions: (L, K, K) int64, summed over the images.
    """

    names: tuple[str, ...]
    margins: NDArray[np.int64]
    confusions: NDArray[np.int64]

    @classmethod
    def of(cls, images: Iterable[tuple[str, NDArray[np.int64]]], shape: Shape) -> ClassCounts:
        """Count images one at a time.

        Args:
            images: (name, (L, K, K) confusion matrices) of each image. Only the matrices of one
                image are in memory at a time.
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
    """Summed counts of a data set or of a part of it; `+=` merges two accumulators.

    There are L layers, each a way to count the same images: all pixels, the pixels of a boundary
    band, or another prediction. All numbers are integers, so neither the order of the images nor
    their grouping into accumulators changes a bit.

    Memory is K x K counts per layer and 3 x K per layer and replicate, for any number of images.
    """

    def __init__(self, shape: Shape, bootstrap: Bootstrap) -> None:
        """Start with zero counts.

        Args:
            shape: (L, K).
            bootstrap: Number and seed of the replicates.
        """
        layers, num_classes = shape
        self.bootstrap = bootstrap
        self.images = 0
        self.confusions = np.zeros((layers, num_classes, num_classes), np.int64)
        self._replicates = np.zeros((bootstrap.replicates, layers, 3, num_classes), np.int64)

    def add(self, counts: ClassCounts) -> None:
        """Add the counts of some images to the sums and to every replicate."""
        self.images += len(counts.names)
        self.confusions += counts.confusions
        if not self.bootstrap.replicates:
            return
        for start in range(0, len(counts.names), _BATCH):
            batch = slice(start, start + _BATCH)
            weights = poisson_weights(counts.names[batch], self.bootstrap)
            flat = counts.margins[batch].reshape(weights.shape[0], -1)
            # In float64 for BLAS; exact, because every sum is far below 2**53.
            sums = weights.T.astype(np.float64) @ flat.astype(np.float64)
            self._replicates += sums.astype(np.int64).reshape(self._replicates.shape)

    def __iadd__(self, other: ScoreAccumulator) -> ScoreAccumulator:
        self.images += other.images
        self.confusions += other.confusions
        self._replicates += other._replicates
        return self

    def intervals(self, layer: int, policy: Policy = "reference") -> dict[str, NDArray[np.float64]]:
        """Return 95 % percentile intervals of every value of `score_arrays`.

        The bounds are the 2.5th and 97.5th percentile over the replicates, interpolated linearly
        between neighbors. Replicates in which a value is undefined (its class does not occur) are
        left out for that value.

        Returns:
            (2, ...) per name: low, then high; NaN where no replicate has a value.
        """
        scores = score_arrays(self._replicates[:, layer], policy)
        return {name: _percentiles(values) for name, values in scores.items()}


def poisson_weights(names: Sequence[str], bootstrap: Bootstrap) -> NDArray[np.uint8]:
    """Return how often each image counts in each replicate: independent Poisson(1) numbers.

    They depend only on the seed and the image's name, not on the order, and on NumPy's bit stream,
    which is the same in every version (NumPy's distributions are not).

    Returns:
        (len(names), replicates) uint8.
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
