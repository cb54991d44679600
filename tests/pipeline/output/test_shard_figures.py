"""Charts and intervals of shards: bounded, and what a slower way of counting finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from fcn_core.metrics import ConfusionMatrix, score_arrays
from pipeline.output import shard_figures
from pipeline.output.shard_figures import FEWEST_SHARDS, ShardFigures
from pipeline.output.shard_table import Entry, batch_of

CLASSES = 3


def entry(n: int, matrix: NDArray[np.int64]) -> Entry:
    images = 4 + n % 3
    return Entry(
        shard=f"s{n:06d}",
        images=images,
        labeled_images=images if matrix.any() else 0,
        failures=n % 2,
        confusion=ConfusionMatrix(len(matrix), matrix.tolist()),
        class_pixels=tuple(range(1, len(matrix) + 1)),
        confidence_sum=images * (0.5 + (n % 7) / 20),
        seconds={"read": 0.5, "forward": float(n)},
        masks=("png",),
        input_location="mem",
        input_etag="e",
        fingerprint="f",
        commit_etag=str(n),
    )


def world(count: int, seed: int = 0) -> list[Entry]:
    rng = np.random.default_rng(seed)
    matrices = rng.integers(0, 40, (count, CLASSES, CLASSES))
    matrices += np.eye(CLASSES, dtype=np.int64) * rng.integers(0, 400, (count, 1, 1))
    matrices[rng.random(count) < 0.1] = 0
    return [entry(n, matrix) for n, matrix in enumerate(matrices)]


def gathered(entries: list[Entry], batch: int = 50) -> ShardFigures:
    figures = ShardFigures(CLASSES, len(entries))
    for start in range(0, len(entries), batch):
        part = entries[start : start + batch]
        figures.add(batch_of(part), [found.seconds for found in part])
    return figures


@pytest.mark.parametrize(("count", "cells"), [(1, 10), (7, 10), (10, 10), (11, 10), (137, 10)])
def test_cells_hold_each_shard_once(
    count: int, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_figures, "MAX_CELLS", cells)
    entries = world(count)
    found = gathered(entries).cells()
    assert sum(found["shards"]) == count and len(found["first"]) == min(count, cells)
    start = 0
    for cell, number in enumerate(found["shards"]):
        part = entries[start : start + number]
        start += number
        scores = [e.confusion.scores().mean_iou for e in part if e.labeled_images]
        assert (found["first"][cell], found["last"][cell]) == (part[0].shard, part[-1].shard)
        assert found["images"][cell] == sum(e.images for e in part)
        assert found["failures"][cell] == sum(e.failures for e in part)
        assert found["seconds"]["forward"][cell] == sum(e.seconds["forward"] for e in part)
        for name, value in (("low", min), ("mid", np.median), ("high", max)):
            expected = pytest.approx(value(scores), abs=2e-5) if scores else None
            assert found["iou"][name][cell] == expected
        if scores:
            scored = [e for e in part if e.labeled_images]
            lowest = min(scored, key=lambda e: e.confusion.scores().mean_iou)
            assert found["lowest"][cell] == lowest.shard


def test_cells_without_labels_name_the_least_confident() -> None:
    nothing = np.zeros((CLASSES, CLASSES), np.int64)
    entries = [replace(e, confusion=ConfusionMatrix(CLASSES, nothing.tolist())) for e in world(9)]
    figures = gathered(entries)
    found = figures.cells()
    assert figures.labeled == 0 and figures.intervals() == {}
    assert found["iou"]["mid"] == [None] * 9 and found["confidence"]["mid"][:2] == [0.5, 0.55]
    assert figures.histogram(4) == [0, 0, 0, 0]


def test_the_way_the_rows_come_makes_no_difference() -> None:
    entries = world(123)
    one, other = gathered(entries, 123), gathered(entries, 7)
    assert one.cells() == other.cells() and one.histogram() == other.histogram()
    for name, bounds in one.intervals().items():
        np.testing.assert_array_equal(bounds, other.intervals()[name])


def test_intervals_are_those_of_the_plain_bootstrap() -> None:
    entries = world(80, 3)
    figures = gathered(entries)
    counts = np.stack([found.confusion.margins for found in entries])
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(entries), (2000, len(entries)))
    plain = np.percentile(score_arrays(counts[draws].sum(axis=1))["mean_iou"], [2.5, 97.5])
    low, high = figures.intervals()["mean_iou"]
    assert (low, high) == pytest.approx(plain, abs=0.2 * (plain[1] - plain[0]))
    assert figures.intervals()["iou"].shape == (2, CLASSES)


def test_groups_of_very_many_shards_give_the_same_intervals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries = world(2000, 5)
    low, high = gathered(entries).intervals()["mean_iou"]
    monkeypatch.setattr(shard_figures, "MAX_UNITS", 200)
    grouped = gathered(entries).intervals()["mean_iou"]
    assert grouped == pytest.approx((low, high), abs=0.25 * (high - low))


def test_few_shards_have_no_intervals() -> None:
    labeled = [e for e in world(40) if e.labeled_images]
    assert gathered(labeled[: FEWEST_SHARDS - 1]).intervals() == {}
    assert "mean_iou" in gathered(labeled[:FEWEST_SHARDS]).intervals()


def test_more_rows_than_were_expected_are_refused() -> None:
    figures = ShardFigures(CLASSES, 1)
    batch: pa.RecordBatch = batch_of(world(2))
    with pytest.raises(ValueError, match="2 rows, 1 were expected"):
        figures.add(batch, [{}, {}])
