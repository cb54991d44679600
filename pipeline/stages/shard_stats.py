"""`ShardStats`: the counts over the images of a chunk, a shard, a run or an output."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fcn_core.metrics import ConfusionMatrix
from pipeline.stages.histograms import Histograms


@dataclass(frozen=True)
class ShardStats:
    """Counts over some images; `+` gives the counts over both sets of images.

    A receipt holds the counts of a chunk. A commit holds the sum over a shard, field by field. A
    summary adds up the commits, and drift compares two such sums.

    Attributes:
        images: images that were segmented.
        labeled_images: images that have a label.
        failures: images that were quarantined.
        confusion: K x K pixel counts, true class by predicted class.
        class_pixels: K predicted pixel counts.
        confidence_sum: sum over the images of their mean confidence, 0 to `images`.
        histograms: histograms of the images, except those of commits of format 1, which have none.
    """

    images: int
    labeled_images: int
    failures: int
    confusion: ConfusionMatrix
    class_pixels: tuple[int, ...]
    confidence_sum: float
    histograms: Histograms

    @classmethod
    def zero(cls, num_classes: int) -> ShardStats:
        """Return counts of zero."""
        histograms = Histograms.zero(num_classes)
        return cls(0, 0, 0, ConfusionMatrix(num_classes), (0,) * num_classes, 0.0, histograms)

    @classmethod
    def total(cls, parts: Iterable[ShardStats]) -> ShardStats:
        """Return the sum of at least one part.

        `confidence_sum` is rounded only once, so that it does not depend on the order of the
        parts. All other fields equal those of repeated `+`.
        """
        first, *others = known = list(parts)
        confusion = first.confusion
        histograms = first.histograms
        for part in others:
            confusion = confusion + part.confusion
            histograms = histograms + part.histograms
        columns = zip(*(part.class_pixels for part in known), strict=True)
        return cls(
            images=sum(part.images for part in known),
            labeled_images=sum(part.labeled_images for part in known),
            failures=sum(part.failures for part in known),
            confusion=confusion,
            class_pixels=tuple(sum(column) for column in columns),
            confidence_sum=math.fsum(part.confidence_sum for part in known),
            histograms=histograms,
        )

    def __add__(self, other: ShardStats) -> ShardStats:
        return ShardStats.total((self, other))
