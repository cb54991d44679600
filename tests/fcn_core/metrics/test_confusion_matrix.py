"""Scores are ratios of summed counts: how the pixels were grouped never matters."""

from __future__ import annotations

import functools
import json
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fcn_core.errors import LabelError
from fcn_core.labels import VOID
from fcn_core.metrics import ConfusionMatrix
from tests.support import oracles

K = 4
POLICIES = ("reference", "present")


@st.composite
def pairs(draw):
    """A label with void and a mask of one shape, in which some classes are often absent."""
    shape = draw(arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=6))
    truth, prediction = (st.integers(0, draw(st.integers(0, K - 1))) for _ in range(2))
    label = draw(arrays.arrays(np.uint8, shape, elements=st.one_of(truth, st.just(VOID))))
    return label, draw(arrays.arrays(np.uint8, shape, elements=prediction))


def counted(*worlds):
    matrix = ConfusionMatrix(K)
    for label, mask in worlds:
        matrix.update(label, mask)
    return matrix


# --- Counting ----------------------------------------------------------------------------------


@given(pairs())
def test_counts_equal_the_double_loop(world):
    assert counted(world).matrix.tolist() == oracles.confusion(*world, K)


@given(st.tuples(pairs(), pairs(), pairs()))
def test_merge_is_associative_and_commutative(worlds):
    a, b, c = (counted(world) for world in worlds)
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + ConfusionMatrix(K) == a


@given(st.lists(pairs(), min_size=1, max_size=4))
def test_merged_counts_equal_the_counts_of_all_pixels(worlds):
    merged = functools.reduce(operator.add, (counted(world) for world in worlds))
    labels, masks = (
        np.concatenate([a.ravel() for a in side]) for side in zip(*worlds, strict=True)
    )
    assert merged == counted((labels, masks)) == counted(*worlds)


@given(pairs(), st.integers(0, 255))
def test_a_prediction_under_void_counts_nowhere(world, anything):
    label, mask = world
    other = np.where(label == VOID, np.uint8(anything), mask)
    assert counted((label, other)) == counted(world)
    assert counted(world).labeled_pixels == np.count_nonzero(label != VOID)


@given(pairs())
def test_correct_pixels_are_those_that_agree(world):
    label, mask = world
    assert counted(world).correct_pixels == np.count_nonzero((label == mask) & (label != VOID))


def test_adding_leaves_both_sides_alone():
    a, b = (counted((np.array([[i]]), np.array([[i]]))) for i in (0, 1))
    assert (a + b).labeled_pixels == 2
    assert (a.labeled_pixels, b.labeled_pixels) == (1, 1)


def test_counts_beyond_32_bits_are_exact():
    big = ConfusionMatrix(1, [[2**40]])
    assert (big + big).labeled_pixels == 2**41


@pytest.mark.parametrize("classes", [1, 3])
def test_counts_of_other_class_numbers_do_not_add(classes):
    with pytest.raises(LabelError, match=f"{classes} and 2 classes"):
        ConfusionMatrix(classes) + ConfusionMatrix(2)


@pytest.mark.parametrize(
    ("label", "mask", "found"),
    [
        ([[0, K]], [[0, 0]], "label values run from 0 to 4"),
        ([[0, -1]], [[0, 0]], "label values run from -1 to 0"),
        ([[0, 0]], [[0, K]], "mask values run from 0 to 4"),
        ([[0, 0]], [[0, VOID]], "mask values run from 0 to 255"),
        ([[0, 0]], [[0], [0]], r"label has shape \(1, 2\), mask has \(2, 1\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_not_counted(label, mask, found):
    matrix = ConfusionMatrix(K)
    with pytest.raises(LabelError, match=found):
        matrix.update(np.array(label), np.array(mask))
    assert matrix.labeled_pixels == 0


def test_another_value_can_be_ignored():
    matrix = ConfusionMatrix(2).update(np.array([[-1, 1]]), np.array([[0, 1]]), ignore_index=-1)
    assert matrix.matrix.tolist() == [[0, 0], [0, 1]]


# --- Scores ------------------------------------------------------------------------------------


@given(st.lists(pairs(), max_size=3), st.sampled_from(POLICIES))
def test_scores_equal_the_formulas(worlds, policy):
    matrix = counted(*worlds)
    expected = oracles.scores(matrix.matrix.tolist(), policy)
    found = matrix.scores(policy).to_dict()
    assert found.pop("iou") == pytest.approx(expected.pop("iou"))
    assert found == pytest.approx(expected)


@given(st.lists(pairs(), min_size=1, max_size=4), st.sampled_from(POLICIES))
def test_scores_of_merged_counts_are_the_scores_of_all_pixels(worlds, policy):
    merged = functools.reduce(operator.add, (counted(world) for world in worlds))
    labels, masks = (
        np.concatenate([a.ravel() for a in side]) for side in zip(*worlds, strict=True)
    )
    # repr, for NaN equals nothing: every bit is the same.
    assert repr(merged.scores(policy)) == repr(counted((labels, masks)).scores(policy))


def test_mean_iou_is_not_the_mean_of_the_images():
    good = (np.zeros((10, 10), int), np.zeros((10, 10), int))
    bad = (np.array([[0, 0]]), np.array([[1, 1]]))
    assert counted(good, bad).scores().iou[0] == pytest.approx(100 / 102)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_absent_class_is_nan_and_left_out_of_every_mean(policy):
    world = (np.array([[0, 0, 1]]), np.array([[0, 0, 0]]))
    scores = counted(world).scores(policy)
    assert np.isnan(scores.iou[2:]).all()
    assert scores.mean_iou == pytest.approx((2 / 3 + 0) / 2)
    assert scores.mean_accuracy == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("policy", "mean_iou"), [("reference", (1 / 2 + 0) / 2), ("present", 1 / 2)]
)
def test_policies_differ_where_an_absent_class_was_predicted(policy, mean_iou):
    scores = counted((np.array([[0, 0]]), np.array([[0, 3]]))).scores(policy)
    assert scores.mean_iou == pytest.approx(mean_iou)
    assert scores.mean_accuracy == pytest.approx(1 / 2)
    assert scores.frequency_weighted_iou == pytest.approx(1 / 2)


@given(pairs())
def test_a_perfect_mask_scores_one(world):
    label, _ = world
    scores = counted((label, np.where(label == VOID, 0, label))).scores()
    four = {scores.pixel_accuracy, scores.mean_accuracy, scores.mean_iou}
    assert four == {1.0} or counted(world).labeled_pixels == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_without_truth_every_score_is_null(policy):
    document = json.loads(json.dumps(counted().scores(policy).to_dict(), allow_nan=False))
    assert document.pop("iou") == [None] * K
    assert set(document.values()) == {None}


@given(pairs(), st.sampled_from([VOID, 0, K - 1, 256, -1]), st.integers(0, 255))
def test_bytes_are_counted_as_any_other_integers(
    world: tuple[np.ndarray, np.ndarray], ignore_index: int, other: int
) -> None:
    label, mask = world
    if label.size:
        label.flat[0] = other

    def outcome(kind: type) -> object:
        matrix = ConfusionMatrix(K)
        try:
            return matrix.update(
                label.astype(kind), mask.astype(kind), ignore_index
            ).matrix.tolist()
        except LabelError as error:
            return str(error), matrix.matrix.tolist()

    assert outcome(np.uint8) == outcome(np.int64)
