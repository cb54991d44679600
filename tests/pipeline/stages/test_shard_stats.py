"""`ShardStats` adds as counts do: in any order, in any grouping, whatever adds them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_core.metrics import ConfusionMatrix
from pipeline.output.drift import Window
from pipeline.output.shard_table import Entry, batch_of
from pipeline.output.summary import stats_of_rows
from pipeline.stages.histograms import Histograms
from pipeline.stages.shard_stats import ShardStats
from tests.pipeline.output.test_commits import commit

CLASSES = 2


@st.composite
def stats(draw: Any) -> ShardStats:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    images = draw(st.integers(0, 5))
    pixels = rng.integers(0, 50, (images, CLASSES))
    confidences = rng.random(images)
    sizes = [(10, 10)] * images
    return ShardStats(
        images=images,
        labeled_images=int(rng.integers(0, images + 1)),
        failures=int(rng.integers(0, 4)),
        confusion=ConfusionMatrix(CLASSES, rng.integers(0, 2**40, (CLASSES, CLASSES)).tolist()),
        class_pixels=tuple(pixels.sum(axis=0).tolist()),
        confidence_sum=float(confidences.sum()),
        histograms=Histograms.count(pixels.tolist(), confidences.tolist(), sizes, CLASSES),
    )


def same(one: ShardStats, other: ShardStats) -> bool:
    """Equal; sums of confidences up to rounding."""
    exact = [field.name for field in fields(one) if field.name != "confidence_sum"]
    return all(getattr(one, name) == getattr(other, name) for name in exact) and (
        one.confidence_sum == pytest.approx(other.confidence_sum, rel=1e-12, abs=1e-12)
    )


@given(stats(), stats(), stats())
def test_sums_need_no_order_and_no_grouping(a: ShardStats, b: ShardStats, c: ShardStats) -> None:
    assert a + b == b + a
    assert same((a + b) + c, a + (b + c))
    assert same(ShardStats.total((a, b, c)), a + b + c)
    assert ShardStats.total((a, b, c)) == ShardStats.total((c, a, b))


@given(stats())
def test_nothing_is_neutral(a: ShardStats) -> None:
    assert a + ShardStats.zero(CLASSES) == a


@given(st.lists(stats(), min_size=1, max_size=4))
def test_rows_of_the_table_sum_as_their_commits_do(parts: list[ShardStats]) -> None:
    rows = []
    for part in parts:
        made = commit(
            images=part.images,
            labeled_images=part.labeled_images,
            failures=part.failures,
            confusion=tuple(tuple(row) for row in part.confusion.matrix.tolist()),
            class_pixels=part.class_pixels,
            confidence_sum=part.confidence_sum,
            histograms=part.histograms,
        )
        assert made.stats == part
        rows.append(Entry.of(made, "tag"))
    assert same(stats_of_rows(batch_of(rows), CLASSES), ShardStats.total(parts))


def test_commits_of_format_1_have_no_histograms_to_sum() -> None:
    made = commit(histograms=None)
    found = stats_of_rows(batch_of([Entry.of(made, "tag")]), CLASSES)
    assert found == made.stats and found.histograms.images == 0


@given(stats())
def test_a_window_keeps_what_drift_compares(a: ShardStats) -> None:
    found = Window.of(a).stats
    assert found.histograms == a.histograms and found.class_pixels == a.class_pixels
    assert found.confidence_sum == a.confidence_sum
    assert Window.of(found) == Window.of(a)


def test_a_batch_without_rows_is_nothing() -> None:
    empty = batch_of([Entry.of(commit(), "tag")]).slice(0, 0)
    assert isinstance(empty, pa.RecordBatch)
    assert stats_of_rows(empty, CLASSES) == ShardStats.zero(CLASSES)
