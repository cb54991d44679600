"""Coarse truth against exact fractions, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fcn_core.labels import VOID
from fcn_core.metrics import ConfusionMatrix
from fcn_core.metrics.upper_bound import (
    FACTORS,
    PAPER_MEAN_IOU,
    coarsen_label,
    upper_bound_confusions,
)
from tests.support import oracles


@st.composite
def labels(draw):
    shape = draw(arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=10))
    return draw(arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, VOID])))


@settings(deadline=None, max_examples=60)
@given(labels(), st.integers(1, 6))
def test_every_known_pixel_gets_a_class_of_the_largest_score(label, factor):
    scores = oracles.coarse_scores(label, factor)
    mask = coarsen_label(label, factor)
    for y, x in np.argwhere(label != VOID):
        best = max(plane[y][x] for plane in scores.values())
        assert scores[int(mask[y, x])][y][x] >= best - 1e-5


@given(labels())
def test_factor_1_gives_the_truth_back_and_scores_1(label):
    assert np.array_equal(coarsen_label(label, 1), label)
    scores = ConfusionMatrix(3, upper_bound_confusions(label, 3, [1])[0]).scores()
    assert scores.mean_iou == 1.0 or (label == VOID).all()


@given(labels(), st.integers(1, 12))
def test_a_known_pixel_is_never_void_and_void_is_never_scored(label, factor):
    mask = coarsen_label(label, factor)
    assert set(mask[label != VOID].tolist()) <= set(label[label != VOID].tolist())
    assert upper_bound_confusions(label, 3, [factor]).sum() == np.count_nonzero(label != VOID)


@given(labels(), st.integers(1, 6), st.integers(0, 2))
def test_void_takes_no_part(label, factor, shift):
    """Cells of void alone, appended, change nothing that lies far enough away."""
    border = np.full((label.shape[0], 3 * factor), VOID, np.uint8)
    width = -(-label.shape[1] // factor) * factor
    padded = np.pad(label, ((0, 0), (0, width - label.shape[1])), constant_values=VOID)
    wide = np.hstack([padded, border])
    inner = max(0, width - factor)
    found, alone = (coarsen_label(each, factor)[:, :inner] for each in (wide, padded))
    assert np.array_equal(found, alone)


def test_a_factor_over_the_image_gives_its_most_frequent_class():
    label = np.array([[0, 1, 1], [1, 2, VOID]], np.uint8)
    assert (coarsen_label(label, 128) == 1).all()


def test_a_straight_edge_between_cells_stays_and_within_a_cell_it_moves():
    between = np.repeat(np.array([[0] * 8 + [1] * 8], np.uint8), 16, axis=0)
    assert np.array_equal(coarsen_label(between, 8), between)
    within = np.repeat(np.array([[0] * 10 + [1] * 6], np.uint8), 16, axis=0)
    assert not np.array_equal(coarsen_label(within, 8), within)


def test_a_thing_thinner_than_half_a_cell_is_lost():
    label = np.zeros((16, 16), np.uint8)
    label[:, 6:8] = 1
    assert (coarsen_label(label, 8) == 0).all()


def test_all_void_stays_void():
    assert (coarsen_label(np.full((5, 7), VOID, np.uint8), 4) == VOID).all()


def test_the_table_of_the_paper():
    assert list(FACTORS) == [128, 64, 32, 16, 8, 4] == list(PAPER_MEAN_IOU)
    assert list(PAPER_MEAN_IOU.values()) == pytest.approx([50.9, 73.3, 86.1, 92.8, 96.4, 98.5])
