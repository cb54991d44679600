"""Histograms over images: class shares, confidence, size and aspect ratio, for drift detection.

The bins are fixed and part of the output format, so that the histograms of any commits can be added
in any order. Each image falls into exactly one bin of every histogram.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARE_EDGES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
"""Bin edges of a class's share of the pixels. Images without the class have a bin of their own."""

CONFIDENCE_EDGES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99)
"""Bin edges of the mean confidence of an image; NaN counts as 0."""

SIDE_EDGES = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
"""Bin edges of the image size: the side, in pixels, of a square with the same area."""

ASPECT_STEPS = (1.0, 1.25, 1.5, 2.0)
"""Bin edges of the longer side divided by the shorter, for tall and for wide images."""


SHARE_BINS = len(SHARE_EDGES) + 2

CONFIDENCE_BINS = len(CONFIDENCE_EDGES) + 1

SIZE_BINS = len(SIDE_EDGES) + 1

ASPECT_BINS = 2 * len(ASPECT_STEPS) + 1


_PER_MILLE = np.array([round(edge * 1000) for edge in SHARE_EDGES])

_AREAS = np.array([side * side for side in SIDE_EDGES])


BinCounts = tuple[int, ...]


@dataclass(frozen=True)
class Histograms:
    """Numbers of images by bin; all histograms count the same images.

    Attributes:
        shares: for each of K classes, images by the class's share of the pixels (`SHARE_BINS`).
        confidence: images by mean confidence (`CONFIDENCE_BINS`).
        size: images by area (`SIZE_BINS`).
        aspect: images by width / height, tall images first (`ASPECT_BINS`).
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
        for length, expected in lengths:
            if length != expected:
                raise ValueError(f"a histogram of {length} bins, not {expected}")

    @property
    def images(self) -> int:
        """Return the number of counted images."""
        return sum(self.confidence)

    @classmethod
    def zero(cls, num_classes: int) -> Histograms:
        """Return histograms of no image."""
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
        """Return the histograms of N images.

        Args:
            class_pixels: for each of N images, K counts of predicted classes.
            confidences: N mean confidences, 0-1 or NaN.
            sizes: N pairs of height and width in pixels, at least 1.
            num_classes: number of classes, K.
        """
        if not sizes:
            return cls.zero(num_classes)
        pixels = np.array(class_pixels, np.int64).reshape(len(sizes), num_classes)
        sides = np.array(sizes, np.int64)
        areas = sides.prod(axis=1)
        # Integer thousandths: comparisons with the edges are exact.
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
        """Return four lists: the shares of all classes one after another, then the others."""
        shares = tuple(count for row in self.shares for count in row)
        return shares, self.confidence, self.size, self.aspect

    @classmethod
    def of_flat(cls, flat: Sequence[Sequence[int]]) -> Histograms:
        """Return the histograms from the lists of `flat`."""
        shares, *rest = (tuple(int(count) for count in counts) for counts in flat)
        starts = range(0, len(shares), SHARE_BINS)
        return cls(tuple(shares[at : at + SHARE_BINS] for at in starts), *rest)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Histograms:
        """Return the histograms from the JSON of a commit or of a run record.

        Raises:
            KeyError, TypeError, ValueError: the document does not hold histograms.
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
