"""Laws of drift: the index against a slow oracle, histograms against counting by hand."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_core.labels import LabelSet
from pipeline.config import DriftConfig
from pipeline.output.drift import Comparison, Window, compare, noise, psi
from pipeline.stages.histograms import (
    ASPECT_STEPS,
    CONFIDENCE_EDGES,
    SHARE_EDGES,
    SIDE_EDGES,
    Histograms,
)
from pipeline.stages.shard_stats import ShardStats

LABELS = LabelSet("two", ("ground", "thing"))
PAIRS = st.integers(1, 12).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(0, 500), min_size=n, max_size=n) for _ in range(2)))
)


def slow_psi(one: list[int], other: list[int]) -> float:
    """The definition, a bin at a time, in exact fractions up to the logarithm."""
    a, b = sum(one), sum(other)
    if not a or not b:
        return 0.0
    bins = [(x, y) for x, y in zip(one, other, strict=True) if x or y]
    extra = Fraction(len(bins), 2)
    total = 0.0
    for x, y in bins:
        both = Fraction(x + y, a + b) * extra
        p, q = (x + both) / (a + extra), (y + both) / (b + extra)
        total += float(p - q) * math.log(p / q)
    return total


@given(PAIRS)
def test_the_index_is_its_definition(pair: tuple[list[int], list[int]]) -> None:
    assert psi(*pair) == pytest.approx(slow_psi(*pair), abs=1e-9)


@given(PAIRS)
def test_the_index_is_symmetric_and_never_negative(pair: tuple[list[int], list[int]]) -> None:
    one, other = pair
    assert psi(one, other) == pytest.approx(psi(other, one), abs=1e-12)
    assert psi(one, other) >= 0


@given(PAIRS, st.integers(1, 1000))
def test_equal_and_proportional_histograms_do_not_differ(
    pair: tuple[list[int], list[int]], factor: int
) -> None:
    one, _ = pair
    assert psi(one, one) == 0
    assert psi(one, [factor * count for count in one]) == pytest.approx(0, abs=1e-12)


def test_empty_bins_make_nothing_infinite() -> None:
    assert 1 < psi([100, 0], [0, 100]) < 20
    assert psi([0, 0], [1, 2]) == 0


def test_noise_is_what_samples_of_one_distribution_exceed_that_often() -> None:
    rng = np.random.default_rng(1)
    shares = rng.dirichlet(np.full(8, 5.0))
    n, m, chance = 400, 1500, 0.05
    pairs = [(rng.multinomial(n, shares), rng.multinomial(m, shares)) for _ in range(2000)]
    over = sum(
        psi(a.tolist(), b.tolist()) > noise(a.tolist(), b.tolist(), chance) for a, b in pairs
    )
    assert over / len(pairs) == pytest.approx(chance, abs=0.02)


SIDES = st.one_of(st.integers(1, 40), st.sampled_from([32, 64, 100, 125, 128, 150, 200, 8192]))


@st.composite
def images(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], float]:
    """(pixels by class, (height, width), confidence)."""
    size = draw(st.tuples(SIDES, SIDES))
    area = size[0] * size[1]
    near = st.sampled_from([0, area, *(round(edge * area) for edge in SHARE_EDGES)])
    first = min(
        area, max(0, draw(st.one_of(st.integers(0, area), near)) + draw(st.integers(-1, 1)))
    )
    sure = draw(st.one_of(st.floats(0, 1), st.sampled_from([*CONFIDENCE_EDGES, math.nan])))
    return (first, area - first), size, sure


IMAGES = st.lists(images(), max_size=12)


def histograms(found: list[Any]) -> Histograms:
    return Histograms.count([i[0] for i in found], [i[2] for i in found], [i[1] for i in found], 2)


def slow_bins(pixels: tuple[int, int], size: tuple[int, int], sure: float) -> dict[str, int]:
    """The bin of one image in every histogram, by comparing with one edge after the other."""
    area = size[0] * size[1]
    found = {}
    for k, count in enumerate(pixels):
        share = Fraction(count, area)
        edges = [Fraction(str(edge)) for edge in SHARE_EDGES]
        found[f"share {k}"] = 0 if not count else 1 + sum(share >= edge for edge in edges)
    found["confidence"] = 0 if math.isnan(sure) else sum(sure >= edge for edge in CONFIDENCE_EDGES)
    found["size"] = sum(area >= side**2 for side in SIDE_EDGES)
    ratio = Fraction(max(size), min(size))
    steps = sum(ratio > Fraction(step) for step in ASPECT_STEPS)
    found["aspect"] = 4 + (steps if size[1] > size[0] else -steps)
    return found


@settings(deadline=None, max_examples=40)
@given(IMAGES)
def test_histograms_count_every_image_once(found: list[Any]) -> None:
    made = histograms(found)
    bins = [slow_bins(*image) for image in found]
    rows = {"share 0": made.shares[0], "share 1": made.shares[1], "confidence": made.confidence,
            "size": made.size, "aspect": made.aspect}  # fmt: skip
    for name, row in rows.items():
        expected = Counter(of_image[name] for of_image in bins)
        assert list(row) == [expected[place] for place in range(len(row))], name
    assert made.images == len(found)


@settings(deadline=None, max_examples=40)
@given(st.lists(IMAGES, min_size=1, max_size=4), st.randoms())
def test_histograms_add_up_in_any_order(parts: list[list[Any]], random: Any) -> None:
    whole = histograms([image for part in parts for image in part])
    shuffled = random.sample(parts, len(parts))
    assert reduce(add, map(histograms, shuffled)) == whole
    assert Histograms.of_flat(whole.flat()) == whole
    assert whole + Histograms.zero(2) == whole


def window(seed: int, images: int, share: float = 0.3, sure: float = 0.9) -> ShardStats:
    """Seeded images of 100x100, whose class 1 has about that share."""
    rng = np.random.default_rng(seed)
    pixels = [(10_000 - p, p) for p in rng.binomial(100, share, images) * 100]
    confidences = np.clip(rng.normal(sure, 0.02, images), 0, 1).tolist()
    found = Histograms.count(pixels, confidences, [(100, 100)] * images, 2)
    sums = tuple(int(sum(p[k] for p in pixels)) for k in range(2))
    return Window(images, sums, math.fsum(confidences), found).stats


def drifted(now: ShardStats, before: ShardStats, **changes: Any) -> list[str]:
    found = compare(now, before, LABELS, DriftConfig(**changes), "before")
    return [drift.quantity for drift in found.drifted]


@pytest.mark.parametrize("images", [30, 100, 1000])
def test_more_of_the_same_is_no_drift(images: int) -> None:
    for seed in range(10):
        assert drifted(window(seed, images), window(seed + 100, images)) == []


def test_what_shifts_is_named_the_largest_first_and_nothing_else() -> None:
    assert drifted(window(1, 200, sure=0.6), window(2, 900)) == ["confidence"]
    found = drifted(window(1, 200, share=0.9), window(2, 900))
    assert set(found[:2]) == {"class ground", "class thing"} and found[2:] == ["class mix"]


def test_a_shift_of_few_images_is_not_told_from_chance() -> None:
    now, before = window(1, 35, sure=0.915), window(2, 35, sure=0.9)
    found = compare(now, before, LABELS, DriftConfig(), "before")
    confidence = next(d for d in found.quantities if d.quantity == "confidence")
    assert confidence.psi > 0.25 and confidence.psi < confidence.noise
    assert confidence.level == "stable" and found.drifted == ()


def test_thresholds_are_those_of_the_configuration() -> None:
    now, before = window(1, 2000, share=0.34), window(2, 2000)
    value = {d.quantity: d for d in compare(now, before, LABELS, DriftConfig(), "b").quantities}
    assert 0.1 < value["class thing"].psi < 0.25 and value["class thing"].level == "moderate"
    assert "class thing" not in drifted(now, before)
    assert "class thing" in drifted(now, before, major=0.11)


def test_too_few_images_are_not_compared() -> None:
    few, many = window(1, 29), window(2, 500)
    for now, before, which in ((few, many, "this run"), (many, few, "the past")):
        found = compare(now, before, LABELS, DriftConfig(), "the past")
        assert found.quantities == () and f"{which} has 29 images" in found.note
    assert compare(few, many, LABELS, DriftConfig(min_images=29), "b").quantities


def test_reasons_say_before_and_after_in_one_line() -> None:
    found = compare(window(1, 200, sure=0.6), window(2, 900), LABELS, DriftConfig(), "before")
    (drift,) = found.drifted
    assert drift.reason == f"confidence: 0.898 before, 0.598 now (PSI {drift.psi:.2f})"
    assert Comparison.of(found.to_dict()) == found


@given(st.randoms())
def test_a_comparison_does_not_depend_on_the_order_of_the_windows(random: Any) -> None:
    parts = [window(seed, 40 + seed) for seed in range(4)]
    shuffled = random.sample(parts, len(parts))
    one, other = (compare(window(9, 90), reduce(add, p), LABELS, DriftConfig(), "b")
                  for p in (parts, shuffled))  # fmt: skip
    assert one == other
