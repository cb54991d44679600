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
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from fcn_core.labels import LabelSet
from pipeline.config import DriftConfig
from pipeline.stages.histograms import Histograms
from pipeline.text import plural

DriftLevel = Literal["stable", "moderate", "major"]


_PSEUDO = 0.5
"""Images per occupied bin that are added to both samples: a bin may be empty in one of them."""


@dataclass(frozen=True)
class Window:
    """Some images, as sums: what commits say of them all.

    Attributes:
        images: counted.
        class_pixels: K predicted pixels by class.
        confidence_sum: of the images' mean confidences.
        histograms: of the images.
    """

    images: int
    class_pixels: tuple[int, ...]
    confidence_sum: float
    histograms: Histograms

    def __add__(self, other: Window) -> Window:
        pixels = zip(self.class_pixels, other.class_pixels, strict=True)
        return Window(
            self.images + other.images,
            tuple(a + b for a, b in pixels),
            self.confidence_sum + other.confidence_sum,
            self.histograms + other.histograms,
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
    now: Window, before: Window, labels: LabelSet, config: DriftConfig, reference: str
) -> Comparison:
    """What differs between two windows; nothing, with a note, where there are too few images.

    Args:
        now: of K classes.
        before: of the same.
        labels: their names.
        config: thresholds.
        reference: what `before` is, for people.
    """
    for window, which in ((now, "this run"), (before, reference)):
        if window.images < config.min_images:
            note = (
                f"not compared: {which} has {plural(window.images, 'image')}, "
                f"drift.min_images is {config.min_images}"
            )
            return Comparison(reference, before.images, note=note)
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
    return Comparison(reference, before.images, tuple(quantities))


_Quantity = tuple[str, tuple[Sequence[float], Sequence[float]], tuple[str, str]]


def _quantities(now: Window, before: Window, labels: LabelSet) -> list[_Quantity]:
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
    mix = [(share * w.images).tolist() for share, w in zip(shares, windows, strict=True)]
    most = [labels.classes[int(share.argmax())] for share in shares]
    found.append(("class mix", (mix[0], mix[1]), (f"most {most[0]}", f"most {most[1]}")))
    for name, text in (("confidence", _confidence), ("size", _size), ("aspect", _aspect)):
        histograms = (getattr(before.histograms, name), getattr(now.histograms, name))
        found.append((name, histograms, (text(before), text(now))))
    return found


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _confidence(window: Window) -> str:
    return f"{window.confidence_sum / window.images:.3f}"


def _size(window: Window) -> str:
    return f"{sum(window.class_pixels) / window.images:,.0f} pixels"


def _aspect(window: Window) -> str:
    counts = window.histograms.aspect
    middle = len(counts) // 2
    wide, tall = sum(counts[middle + 1 :]), sum(counts[:middle])
    return f"{wide / window.images:.0%} wide, {tall / window.images:.0%} tall"
