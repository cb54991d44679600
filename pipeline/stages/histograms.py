"""Histograms of a shard's images: what a distribution can be compared by when the images are gone.

The bins are fixed, part of the output format: only then can commits be added up, whoever wrote
them, and in any order. Each image falls into one bin of every histogram.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARE_EDGES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
"""Of a class's share of an image's pixels, above the bin of images without the class."""

CONFIDENCE_EDGES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99)
"""Of an image's mean confidence; NaN counts as 0."""

SIDE_EDGES = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Of the side of a square of as many pixels, px."""

ASPECT_STEPS = (1.0, 1.25, 1.5, 2.0)
"""Of the longer side over the shorter: a bin up to each, and one beyond, for both directions."""


SHARE_BINS = len(SHARE_EDGES) + 2

CONFIDENCE_BINS = len(CONFIDENCE_EDGES) + 1

SIZE_BINS = len(SIDE_EDGES) + 1

ASPECT_BINS = 2 * len(ASPECT_STEPS) + 1


_PER_MILLE = np.array([round(edge * 1000) for edge in SHARE_EDGES])

_AREAS = np.array([side * side for side in SIDE_EDGES])


BinCounts = tuple[int, ...]


@dataclass(frozen=True)
class Histograms:
    """Numbers of images by bin; all four count the same images.

    Attributes:
        shares: for each of K classes, by its share of the pixels (`SHARE_BINS`).
        confidence: by mean confidence (`CONFIDENCE_BINS`).
        size: by pixels (`SIZE_BINS`).
        aspect: by width over height, tall ones first (`ASPECT_BINS`).
    """

    shares: tuple[BinCounts, ...]
    confidence: BinCounts
    size: BinCounts
    aspect: BinCounts

    def __post_init__(self) -> None:
        lengths = (
            *((len(row), SHARE_BINS) for row in self.shares),
            (len(self.confidence), CONFIDENCE_BINS),
            (len(self.size), SIZE_BINS),
            (len(self.aspect), ASPECT_BINS),
        )
        for found, expected in lengths:
            if found != expected:
                raise ValueError(f"a histogram of {found} bins, not {expected}")

    @property
    def images(self) -> int:
        """How many were counted."""
        return sum(self.confidence)

    @classmethod
    def zero(cls, num_classes: int) -> Histograms:
        """Of no image."""
        return cls(
            ((0,) * SHARE_BINS,) * num_classes,
            (0,) * CONFIDENCE_BINS,
            (0,) * SIZE_BINS,
            (0,) * ASPECT_BINS,
        )

    @classmethod
    def count(
        cls,
        class_pixels: Sequence[Sequence[int]],
        confidences: Sequence[float],
        sizes: Sequence[tuple[int, int]],
        num_classes: int,
    ) -> Histograms:
        """Count images.

        Args:
            class_pixels: for each of N images, K counts of predicted classes.
            confidences: N mean confidences, 0-1 or NaN.
            sizes: N pairs of height and width, px, at least 1.
            num_classes: K.
        """
        if not sizes:
            return cls.zero(num_classes)
        pixels = np.array(class_pixels, np.int64).reshape(len(sizes), num_classes)
        sides = np.array(sizes, np.int64)
        areas = sides.prod(axis=1)
        # Whole thousandths: an edge is met exactly or not at all.
        per_mille = pixels * 1000 // areas[:, None]
        bins = np.where(pixels > 0, 1 + np.searchsorted(_PER_MILLE, per_mille, "right"), 0)
        confident = np.nan_to_num(np.array(confidences, np.float64), nan=0.0)
        return cls(
            tuple(_count(column, SHARE_BINS) for column in bins.T),
            _count(np.searchsorted(CONFIDENCE_EDGES, confident, "right"), CONFIDENCE_BINS),
            _count(np.searchsorted(_AREAS, areas, "right"), SIZE_BINS),
            _count(_aspects(sides), ASPECT_BINS),
        )

    def __add__(self, other: Histograms) -> Histograms:
        return Histograms(
            tuple(_sum(a, b) for a, b in zip(self.shares, other.shares, strict=True)),
            _sum(self.confidence, other.confidence),
            _sum(self.size, other.size),
            _sum(self.aspect, other.aspect),
        )

    def flat(self) -> tuple[BinCounts, BinCounts, BinCounts, BinCounts]:
        """As four lists: those of the classes one after the other, then the other three."""
        shares = tuple(count for row in self.shares for count in row)
        return shares, self.confidence, self.size, self.aspect

    @classmethod
    def of_flat(cls, flat: Sequence[Sequence[int]]) -> Histograms:
        """What `flat` gave."""
        shares, *rest = (tuple(int(count) for count in counts) for counts in flat)
        starts = range(0, len(shares), SHARE_BINS)
        return cls(tuple(shares[at : at + SHARE_BINS] for at in starts), *rest)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Histograms:
        """From the JSON of a commit or of a run's record.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        shares = tuple(tuple(map(int, row)) for row in document["shares"])
        rest = (tuple(map(int, document[name])) for name in ("confidence", "size", "aspect"))
        return cls(shares, *rest)


def _aspects(sides: NDArray[np.int64]) -> NDArray[np.int64]:
    height, width = sides.T
    longer, shorter = np.maximum(height, width), np.minimum(height, width)
    steps = np.searchsorted(ASPECT_STEPS, longer / shorter, "left")
    bins: NDArray[np.int64] = len(ASPECT_STEPS) + np.sign(width - height) * steps
    return bins


def _count(bins: NDArray[np.int64], length: int) -> BinCounts:
    return tuple(np.bincount(bins, minlength=length).tolist())


def _sum(one: BinCounts, other: BinCounts) -> BinCounts:
    return tuple(a + b for a, b in zip(one, other, strict=True))
