"""Sums in any order and grouping, and a bootstrap that agrees with the plain one."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_core.metrics import ConfusionMatrix, margins, score_arrays
from fcn_core.metrics.bootstrap import Bootstrap, ClassCounts, ScoreAccumulator, poisson_weights

K = 3
SHAPE = (2, K)
SCALARS = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")


def images(number: int, seed: int = 0) -> list[tuple[str, np.ndarray]]:
    """(name, (2, K, K)) of images that differ much: some easy, some hard."""
    random = np.random.default_rng(seed)
    skill = random.uniform(0, 60, (number, 1, 1, 1)) * np.eye(K, dtype=np.int64)
    matrices = random.poisson(4 + skill, (number, *SHAPE, K))
    return [(f"image {index}", matrix) for index, matrix in enumerate(matrices)]


def tally(world: list[tuple[str, np.ndarray]], bootstrap: Bootstrap) -> ScoreAccumulator:
    found = ScoreAccumulator(SHAPE, bootstrap)
    found.add(ClassCounts.of(iter(world), SHAPE))
    return found


def assert_same(a: ScoreAccumulator, b: ScoreAccumulator) -> None:
    assert a.images == b.images
    assert np.array_equal(a.confusions, b.confusions)
    for layer in range(SHAPE[0]):
        one, other = a.intervals(layer), b.intervals(layer)
        assert all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


def plain_bootstrap(matrices: np.ndarray, replicates: int, seed: int) -> dict[str, np.ndarray]:
    """The textbook: draw N of N images with replacement, sum, take the ratios, sort."""
    random = np.random.default_rng(seed)
    values: dict[str, list[float]] = {name: [] for name in SCALARS}
    for _ in range(replicates):
        drawn = random.integers(0, len(matrices), len(matrices))
        scores = ConfusionMatrix(K, matrices[drawn].sum(axis=0)).scores()
        for name in SCALARS:
            values[name].append(getattr(scores, name))
    return {name: np.quantile(found, [0.025, 0.975]) for name, found in values.items()}


def test_intervals_agree_with_the_plain_bootstrap():
    world = images(300)
    streamed = tally(world, Bootstrap(4000, seed=1)).intervals(1)
    plain = plain_bootstrap(np.stack([matrix[1] for _, matrix in world]), 4000, seed=2)
    for name in SCALARS:
        width = plain[name][1] - plain[name][0]
        assert width > 0.01
        assert streamed[name] == pytest.approx(plain[name], abs=0.08 * width)


def test_intervals_hold_the_truth_about_95_times_of_100():
    """Images drawn from one distribution, whose true pixel accuracy is known."""
    random = np.random.default_rng(7)
    held, experiments = 0, 200
    for experiment in range(experiments):
        right = random.binomial(100, random.beta(8, 2, 100))  # of 100 pixels; 0.8 on average
        matrices = np.zeros((100, 1, 1 + 1, 1 + 1), np.int64)
        matrices[:, 0, 0, 0], matrices[:, 0, 0, 1] = right, 100 - right
        found = ScoreAccumulator((1, 2), Bootstrap(200, seed=experiment))
        found.add(ClassCounts.of(((str(i), m) for i, m in enumerate(matrices)), (1, 2)))
        low, high = found.intervals(0)["pixel_accuracy"]
        held += low <= 0.8 <= high
    assert 0.90 <= held / experiments <= 0.98


def test_the_interval_of_many_images_holds_the_point():
    found = tally(images(500), Bootstrap(500))
    point = score_arrays(margins(found.confusions[0]))
    for name, (low, high) in found.intervals(0).items():
        assert (low <= point[name]).all() and (point[name] <= high).all()


def test_the_interval_shrinks_with_the_square_root_of_the_images():
    few, many = (tally(images(n), Bootstrap(800)).intervals(0)["mean_iou"] for n in (50, 800))
    assert (few[1] - few[0]) / (many[1] - many[0]) == pytest.approx(4, rel=0.25)


@given(st.permutations(range(12)), st.lists(st.integers(0, 12), max_size=3))
def test_neither_order_nor_grouping_changes_a_bit(order, cuts):
    world, bootstrap = images(12), Bootstrap(20, seed=3)
    together = tally(world, bootstrap)
    shuffled = [world[index] for index in order]
    parts = ScoreAccumulator(SHAPE, bootstrap)
    places = [0, *sorted(cuts), 12]
    for start, end in itertools.pairwise(places):
        parts += tally(shuffled[start:end], bootstrap)
    assert_same(parts, together)


def test_a_large_chunk_is_weighted_in_batches_of_the_same_sum():
    world, bootstrap = images(700), Bootstrap(10)
    one_by_one = ScoreAccumulator(SHAPE, bootstrap)
    for name, matrix in world:
        one_by_one.add(ClassCounts.of([(name, matrix)], SHAPE))
    assert_same(tally(world, bootstrap), one_by_one)


def test_the_seed_decides_and_nothing_else():
    world = images(40)
    assert_same(tally(world, Bootstrap(50, 1)), tally(world, Bootstrap(50, 1)))
    one, other = (tally(world, Bootstrap(50, seed)).intervals(0)["mean_iou"] for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_memory_does_not_grow_with_the_images():
    few, many = (len(pickle.dumps(tally(images(n), Bootstrap(50)))) for n in (1, 2000))
    assert abs(few - many) < 100


def test_weights_are_poisson_numbers_of_mean_1():
    weights = poisson_weights([str(index) for index in range(400)], Bootstrap(500))
    for k in range(6):
        expected = math.exp(-1) / math.factorial(k)
        error = math.sqrt(expected * (1 - expected) / weights.size)
        assert np.mean(weights == k) == pytest.approx(expected, abs=5 * error)
    # Neither the replicates of one image nor the images of one replicate go together.
    assert abs(np.corrcoef(weights[:200])[np.triu_indices(200, 1)].mean()) < 0.005
    assert abs(np.corrcoef(weights.T[:200])[np.triu_indices(200, 1)].mean()) < 0.005


def test_weights_are_the_same_for_ever():
    """Pinned: a number of a paper must come out again in another year."""
    weights = poisson_weights(["s0\0img0", "s0\0img1"], Bootstrap(12, seed=5))
    assert weights.tolist() == [
        [0, 1, 0, 0, 1, 2, 0, 3, 1, 1, 0, 1],
        [1, 1, 0, 1, 2, 0, 4, 1, 1, 0, 5, 0],
    ]


def test_a_value_that_no_replicate_has_is_nan_and_without_replicates_all_are():
    only_class_0 = np.zeros((*SHAPE, K), np.int64)
    only_class_0[:, 0, 0] = 5
    found = tally([("a", only_class_0)], Bootstrap(50)).intervals(0)
    assert np.isnan(found["iou"][:, 1:]).all()
    assert found["iou"][:, 0].tolist() == [1.0, 1.0]
    nothing = tally(images(3), Bootstrap(0)).intervals(0)
    assert all(np.isnan(bounds).all() for bounds in nothing.values())
