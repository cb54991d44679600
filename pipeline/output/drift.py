"""Detect drift: compare the images and masks of a run with those of earlier runs.

The measure is the population stability index (PSI) of histograms over images. The usual thresholds
0.1 and 0.25 are rules of thumb from credit scoring (E. M. Lewis, An Introduction to Credit Scoring,
1994; N. Siddiqi, Credit Risk Scorecards, 2006), which ignore the sample size. For two samples of n
and m images from the same distribution over B bins, PSI is approximately (1/n + 1/m) times a
chi-squared variable with B - 1 degrees of freedom (B. Yurdakul and J. Naranjo, Statistical
properties of the population stability index, Journal of Risk Model Validation, 2020). Drift is
reported only if PSI exceeds this noise as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from fcn_core.labels import LabelSet
from pipeline.config import DriftConfig
from pipeline.stages.histograms import Histograms
from pipeline.stages.shard_stats import ShardStats
from pipeline.text import plural

DriftLevel = Literal["stable", "moderate", "major"]


_PSEUDO = 0.5
"""Pseudo-counts, in images per occupied bin, for both samples: one bin may be empty."""


@dataclass(frozen=True)
class Window:
    """The images of a run as its record keeps them, for comparisons with later runs.

    Attributes:
        images: number of images that the histograms count.
        class_pixels: K predicted pixel counts.
        confidence_sum: sum over the images of their mean confidence.
        histograms: histograms of the images.
    """

    images: int
    class_pixels: tuple[int, ...]
    confidence_sum: float
    histograms: Histograms

    @classmethod
    def of(cls, stats: ShardStats) -> Window:
        """Return the window of the images that were counted."""
        pixels = tuple(int(count) for count in stats.class_pixels)
        return cls(stats.histograms.images, pixels, stats.confidence_sum, stats.histograms)

    @property
    def stats(self) -> ShardStats:
        """Return the window as counts. Labels and failures are unknown: their counts are zero."""
        zero = ShardStats.zero(len(self.class_pixels))
        return replace(
            zero,
            images=self.images,
            class_pixels=self.class_pixels,
            confidence_sum=self.confidence_sum,
            histograms=self.histograms,
        )


@dataclass(frozen=True)
class Drift:
    """The change of one quantity between earlier images and those of a run.

    Attributes:
        quantity: "class NAME" (its share of an image), "class mix" (all classes' shares of all
            pixels), "confidence", "size" or "aspect".
        psi: population stability index; 0 means no difference.
        noise: PSI that chance alone rarely exceeds, for samples of these sizes.
        level: "major" or "moderate" if `psi` exceeds both the threshold and `noise`; else "stable".
        before: text with the earlier value, such as a share, a mean confidence or a size.
        after: text with the value of the run.
    """

    quantity: str
    psi: float
    noise: float
    level: DriftLevel
    before: str
    after: str

    @property
    def reason(self) -> str:
        """Return a one-line description of the change."""
        return f"{self.quantity}: {self.before} before, {self.after} now (PSI {self.psi:.2f})"


@dataclass(frozen=True)
class Comparison:
    """The comparison of a run with earlier images.

    Attributes:
        reference: description of the earlier images.
        reference_images: number of earlier images.
        quantities: compared quantities, classes first in their order; empty without a comparison.
        note: reason why nothing was compared; empty otherwise.
    """

    reference: str = ""
    reference_images: int = 0
    quantities: tuple[Drift, ...] = field(default=())
    note: str = ""

    @property
    def drifted(self) -> tuple[Drift, ...]:
        """Return the quantities with major drift, largest PSI first."""
        major = [drift for drift in self.quantities if drift.level == "major"]
        return tuple(sorted(major, key=lambda drift: -drift.psi))

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Comparison:
        """Return the comparison from the document of `to_dict`.

        Raises:
            KeyError, TypeError: the document is not a comparison.
        """
        quantities = tuple(Drift(**drift) for drift in document["quantities"])
        return cls(**{**document, "quantities": quantities})


def psi(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the population stability index of two histograms over the same bins.

    It is symmetric, and 0 for proportional counts. It is always finite: both histograms are first
    smoothed towards their joint distribution, with half an image per occupied bin.

    >>> abs(psi([10, 20, 0], [20, 40, 0])) < 1e-12, round(psi([30, 10], [10, 30]), 2)
    (True, 1.04)
    """
    a, b = np.array(one, np.float64), np.array(other, np.float64)
    if not (a.any() and b.any()):
        return 0.0
    occupied = a + b > 0
    a, b = a[occupied], b[occupied]
    extra = _PSEUDO * len(a)
    together = extra * (a + b) / (a.sum() + b.sum())
    p = (a + together) / (a.sum() + extra)
    q = (b + together) / (b.sum() + extra)
    return float(((p - q) * np.log(p / q)).sum())


def noise(one: Sequence[float], other: Sequence[float], chance: float) -> float:
    """Return the PSI that two samples of one distribution exceed with a given probability.

    Args:
        one: numbers of images by bin.
        other: numbers of images by bin of the other sample.
        chance: probability, 0-1.
    """
    from scipy.special import (
        chdtri,
    )  # takes 0.5 s to import, and is needed only at the end of a run

    occupied = sum(a + b > 0 for a, b in zip(one, other, strict=True))
    if occupied < 2:
        return 0.0
    return float(chdtri(occupied - 1, chance)) * (1 / sum(one) + 1 / sum(other))


def compare(
    now: ShardStats, before: ShardStats, labels: LabelSet, config: DriftConfig, reference: str
) -> Comparison:
    """Compare the images of a run with earlier images. With too few, return only a note.

    Args:
        now: counts over the images of the run, K classes.
        before: counts over the earlier images, of the same classes.
        labels: names of the classes.
        config: thresholds.
        reference: name of the earlier images in messages.
    """
    for stats, which in ((now, "this run"), (before, reference)):
        images = stats.histograms.images
        if images < config.min_images:
            note = (
                f"not compared: {which} has {plural(images, 'image')}, "
                f"drift.min_images is {config.min_images}"
            )
            return Comparison(reference, before.histograms.images, note=note)
    compared = _quantities(now, before, labels)
    chance = config.false_alarms / len(compared)
    quantities = []
    for name, (a, b), (was, is_now) in compared:
        value, least = psi(a, b), noise(a, b, chance)
        level: DriftLevel = "stable"
        if value > least:
            level = "major" if value >= config.major else level
            level = "moderate" if config.moderate <= value < config.major else level
        quantities.append(Drift(name, round(value, 6), round(least, 6), level, was, is_now))
    return Comparison(reference, before.histograms.images, tuple(quantities))


_Quantity = tuple[str, tuple[Sequence[float], Sequence[float]], tuple[str, str]]


def _quantities(now: ShardStats, before: ShardStats, labels: LabelSet) -> list[_Quantity]:
    """Return name, histograms (before, now) and texts (before, now) of every quantity."""
    windows = (before, now)
    shares = [np.array(w.class_pixels) / max(1, sum(w.class_pixels)) for w in windows]
    quantities: list[_Quantity] = [
        (
            f"class {name}",
            (before.histograms.shares[k], now.histograms.shares[k]),
            (_percent(shares[0][k]), _percent(shares[1][k])),
        )
        for k, name in enumerate(labels.classes)
    ]
    # Counted in images: the pixels of one image are not independent samples.
    mix = [(share * w.histograms.images).tolist() for share, w in zip(shares, windows, strict=True)]
    most = [labels.classes[int(share.argmax())] for share in shares]
    quantities.append(("class mix", (mix[0], mix[1]), (f"most {most[0]}", f"most {most[1]}")))
    for name, text in (("confidence", _confidence), ("size", _size), ("aspect", _aspect)):
        histograms = (getattr(before.histograms, name), getattr(now.histograms, name))
        quantities.append((name, histograms, (text(before), text(now))))
    return quantities


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _confidence(stats: ShardStats) -> str:
    return f"{stats.confidence_sum / stats.histograms.images:.3f}"


def _size(stats: ShardStats) -> str:
    return f"{sum(stats.class_pixels) / stats.histograms.images:,.0f} pixels"


def _aspect(stats: ShardStats) -> str:
    counts = stats.histograms.aspect
    middle = len(counts) // 2
    wide, tall = sum(counts[middle + 1 :]), sum(counts[:middle])
    return f"{wide / stats.histograms.images:.0%} wide, {tall / stats.histograms.images:.0%} tall"
