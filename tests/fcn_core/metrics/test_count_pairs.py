"""Pixels counted by class and label: three ways, one result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fcn_core.errors import LabelError
from fcn_core.metrics.confusion_matrix import ConfusionMatrix, count_pairs, count_pairs_on_device

CLASSES = 5
SIZES = st.tuples(st.integers(1, 12), st.integers(1, 40))


@st.composite
def images(draw):
    """A mask and a label, of noise or of stripes as wide as regions are."""
    size = draw(SIZES)
    width = draw(st.sampled_from([1, 9]))
    mask = draw(arrays.arrays(np.uint8, size, elements=st.integers(0, CLASSES - 1)))
    label = draw(arrays.arrays(np.uint8, size))
    return tuple(np.repeat(array, width, axis=1) for array in (mask, label))


@given(images())
def test_counts_are_those_of_a_loop(both):
    mask, label = both
    expected = np.zeros((CLASSES, 256), np.int64)
    for predicted, truth in zip(mask.flat, label.flat, strict=True):
        expected[predicted, truth] += 1
    found = count_pairs(mask, label, CLASSES)
    assert found.dtype == np.int64 and np.array_equal(found, expected)
    batch = (torch.from_numpy(array[None]) for array in both)
    assert np.array_equal(count_pairs_on_device(*batch, CLASSES)[0].numpy(), expected)


@given(images(), st.integers(0, 255))
def test_a_matrix_of_counts_is_that_of_the_images(both, ignored):
    mask, label = both
    counts = count_pairs(mask, label, CLASSES)
    found = ConfusionMatrix(CLASSES)
    outside = (label >= CLASSES) & (label != ignored)
    if outside.any():
        with pytest.raises(LabelError, match="label values of"):
            found.add_pairs(counts, ignored)
        assert found == ConfusionMatrix(CLASSES)
        return
    known = label != ignored
    expected = np.zeros((CLASSES, CLASSES), np.int64)
    np.add.at(expected, (label[known], mask[known]), 1)
    assert np.array_equal(found.add_pairs(counts, ignored).matrix, expected)


def test_a_class_too_many_is_refused():
    with pytest.raises(LabelError, match="values up to 5; classes are 0-4"):
        count_pairs(np.full((2, 2), 5, np.uint8), np.zeros((2, 2), np.uint8), CLASSES)
