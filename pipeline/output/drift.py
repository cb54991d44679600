"""Drift: whether what a run labelled is distributed as what was labelled before.

The measure is the population stability index (PSI) of histograms over images. Its two thresholds,
0.1 and 0.25, are the rule of thumb of credit scoring (E. M. Lewis, An Introduction to Credit
Scoring, 1994; N. Siddiqi, Credit Risk Scorecards, 2006). They know nothing of sample sizes: of two
samples of one distribution, PSI is about (1/n + 1/m) times chi-squared with one degree of freedom
less than there are bins (B. Yurdakul and J. Naranjo, Statistical properties of the population
stability index, Journal of Risk Model Validation, 2020). So a small sample must exceed that, too.
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
"""Images per occupied bin that are added to both samples: a bin may be empty in one of them."""


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
        """Return the window of some images."""
        pixels = tuple(int(count) for count in stats.class_pixels)
        return cls(stats.histograms.images, pixels, stats.confidence_sum, stats.histograms)

    @property
    def stats(self) -> ShardStats:
        """The window as an accumulator: labels and failures are not known, so they count zero."""
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
    """One quantity, now and before.

    Attributes:
        quantity: "class NAME" (its share of an image), "class mix" (all classes' shares of all
            pixels), "confidence", "size" or "aspect".
        psi: population stability index; 0 is no difference.
        noise: PSI that chance alone hardly exceeds between samples of these sizes.
        level: "major" or "moderate" by the thresholds of the configuration, and only beyond noise.
        before, after: a number for people: share, mean confidence, pixels or width over height.
    """

    quantity: str
    psi: float
    noise: float
    level: DriftLevel
    before: str
    after: str

    @property
    def reason(self) -> str:
        """One line."""
        return f"{self.quantity}: {self.before} before, {self.after} now (PSI {self.psi:.2f})"


@dataclass(frozen=True)
class Comparison:
    """What a run labelled beside what was labelled before.

    Attributes:
        reference: what it was compared with, for people.
        reference_images: how many that are.
        quantities: all that was compared, in the order of the classes; empty if nothing was.
        note: why nothing was compared, else empty.
    """

    reference: str = ""
    reference_images: int = 0
    quantities: tuple[Drift, ...] = field(default=())
    note: str = ""

    @property
    def drifted(self) -> tuple[Drift, ...]:
        """The major ones, largest PSI first."""
        major = [drift for drift in self.quantities if drift.level == "major"]
        return tuple(sorted(major, key=lambda drift: -drift.psi))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Comparison:
        """What `to_dict` gave.

        Raises:
            KeyError, TypeError: it is none.
        """
        quantities = tuple(Drift(**drift) for drift in document["quantities"])
        return cls(**{**document, "quantities": quantities})


def psi(one: Sequence[float], other: Sequence[float]) -> float:
    """The population stability index of two histograms of the same bins.

    Symmetric; 0 for proportional counts; finite, because both are first moved a little towards
    what they are together: by half an image per bin that either occupies.

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
    """The PSI that two samples of one distribution exceed with this chance, about.

    Args:
        one: images by bin.
        other: the same.
        chance: 0-1.
    """
    from scipy.special import chdtri  # half a second, and only needed at a run's end

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
    found = _quantities(now, before, labels)
    chance = config.false_alarms / len(found)
    quantities = []
    for name, (a, b), (was, is_now) in found:
        value, least = psi(a, b), noise(a, b, chance)
        level: DriftLevel = "stable"
        if value > least:
            level = "major" if value >= config.major else level
            level = "moderate" if config.moderate <= value < config.major else level
        quantities.append(Drift(name, round(value, 6), round(least, 6), level, was, is_now))
    return Comparison(reference, before.histograms.images, tuple(quantities))


_Quantity = tuple[str, tuple[Sequence[float], Sequence[float]], tuple[str, str]]


def _quantities(now: ShardStats, before: ShardStats, labels: LabelSet) -> list[_Quantity]:
    """(name, histograms before and now, numbers for people before and now) of all that is known."""
    windows = (before, now)
    shares = [np.array(w.class_pixels) / max(1, sum(w.class_pixels)) for w in windows]
    found: list[_Quantity] = [
        (
            f"class {name}",
            (before.histograms.shares[k], now.histograms.shares[k]),
            (_percent(shares[0][k]), _percent(shares[1][k])),
        )
        for k, name in enumerate(labels.classes)
    ]
    # In images, not pixels: pixels of one image are no independent samples.
    mix = [(share * w.histograms.images).tolist() for share, w in zip(shares, windows, strict=True)]
    most = [labels.classes[int(share.argmax())] for share in shares]
    found.append(("class mix", (mix[0], mix[1]), (f"most {most[0]}", f"most {most[1]}")))
    for name, text in (("confidence", _confidence), ("size", _size), ("aspect", _aspect)):
        histograms = (getattr(before.histograms, name), getattr(now.histograms, name))
        found.append((name, histograms, (text(before), text(now))))
    return found


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
