"""Bands around boundaries, against loops over all pairs of pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fcn_core.labels import VOID
from fcn_core.metrics import ConfusionMatrix
from fcn_core.metrics.boundary import band_confusions, boundary, boundary_distance
from tests.support import oracles

K = 3
WIDTHS = (1, 2, 3, 5)


@st.composite
def pairs(draw):
    shape = draw(arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))
    values = st.sampled_from([0, 0, 0, 0, 1, 2, VOID])  # long runs of one class
    label = draw(arrays.arrays(np.uint8, shape, elements=values))
    return label, draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, K - 1)))


@given(pairs())
def test_boundary_pixels_are_those_with_another_neighbour(world):
    label, _ = world
    found = sorted((int(y), int(x)) for y, x in zip(*np.nonzero(boundary(label)), strict=True))
    assert found == oracles.boundary_pixels(label)


@settings(deadline=None)
@given(pairs())
def test_bands_equal_the_loop_over_all_pairs_of_pixels(world):
    label, mask = world
    whole, *bands = band_confusions(label, mask, K, WIDTHS)
    assert whole.tolist() == oracles.confusion(label, mask, K)
    for width, matrix in zip(WIDTHS, bands, strict=True):
        inside = np.where(oracles.in_band(label, width), label, VOID)
        assert matrix.tolist() == oracles.confusion(inside, mask, K)


@given(pairs())
def test_a_wider_band_holds_the_narrower_and_the_image_holds_all(world):
    whole, *bands = band_confusions(*world, K, WIDTHS)
    for inner, outer in zip(bands, [*bands[1:], whole], strict=True):
        assert (inner <= outer).all()


@given(pairs())
def test_a_huge_width_is_the_whole_image_if_it_has_a_boundary(world):
    label, mask = world
    whole, band = band_confusions(label, mask, K, (1000,))
    assert np.array_equal(band, whole if boundary(label).any() else np.zeros_like(whole))


@given(pairs(), st.integers(0, K - 1))
def test_what_is_predicted_under_void_counts_in_no_band(world, anything):
    label, mask = world
    other = np.where(label == VOID, np.uint8(anything), mask)
    found = (band_confusions(label, m, K, WIDTHS) for m in (mask, other))
    assert np.array_equal(*found)


def test_a_straight_outline_has_width_pixels_on_either_side():
    label = np.repeat(np.array([[0] * 10 + [1] * 10], np.uint8), 4, axis=0)
    for width, (matrix) in zip(WIDTHS, band_confusions(label, label, 2, WIDTHS)[1:], strict=True):
        assert matrix.tolist() == [[4 * width, 0], [0, 4 * width]]


def test_a_ring_of_void_is_a_boundary_and_the_frame_is_none():
    label = np.zeros((9, 9), np.uint8)
    assert not boundary(label).any() and np.isinf(boundary_distance(label)).all()
    label[2:7, 2:7] = VOID  # as in VOC, where no two classes touch
    label[4, 4] = 1
    whole, narrow = band_confusions(label, label, 2, (1,))
    assert np.diag(whole).tolist() == [81 - 25, 1]
    assert np.diag(narrow).tolist() == [4 * 5, 1]  # corners touch void at their tip only


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1)])
def test_tiny_images_have_no_boundary(shape):
    empty = np.zeros(shape, np.uint8)
    found = band_confusions(empty, empty, 2, (1, 2))
    assert found[0].sum() == empty.size and found[1:].sum() == 0


def test_without_widths_there_is_the_image_alone():
    label, mask = np.array([[0, 1]], np.uint8), np.array([[1, 1]], np.uint8)
    (only,) = band_confusions(label, mask, 2, ())
    assert np.array_equal(only, ConfusionMatrix(2).update(label, mask).matrix)
