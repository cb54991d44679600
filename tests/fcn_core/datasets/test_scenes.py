"""Scenes are functions of their seed, and their labels are exact."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from fcn_core.datasets.scenes import SIDES, render_scene, render_training_scenes
from fcn_core.errors import FcnError
from fcn_core.labels import SCENES, VOID
from fcn_core.metrics import ConfusionMatrix


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(seed) for seed in range(60)]


@pytest.mark.parametrize("size", [None, (40, 70), (160, 160)])
def test_equal_seeds_give_equal_scenes(size):
    first, second = render_scene(5, size), render_scene(5, size)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.label, second.label)


def test_a_scene_does_not_depend_on_what_was_rendered_before():
    alone = render_scene(9)
    in_a_row = [render_scene(seed) for seed in range(10)][9]
    assert np.array_equal(alone.image, in_a_row.image)


def test_different_seeds_give_different_scenes(scenes):
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (7, 5), (61, 33), (250, 375)])
def test_a_scene_has_the_size_asked_for(size):
    scene = render_scene(3, size)
    assert scene.image.shape == (*size, 3)
    assert scene.label.shape == size
    assert scene.image.dtype == scene.label.dtype == np.uint8


def test_drawn_sizes_vary_within_their_limits(scenes):
    shapes = np.array([scene.label.shape for scene in scenes])
    assert SIDES[0] <= shapes.min() <= shapes.max() <= SIDES[1]
    assert len(np.unique(shapes)) > 40
    assert (shapes[:, 0] > shapes[:, 1]).any()
    assert (shapes[:, 0] < shapes[:, 1]).any()


@pytest.mark.parametrize(("seed", "size"), [(-1, None), (0, (0, 5)), (0, (5, -1))])
def test_a_negative_seed_and_an_empty_size_are_refused(seed, size):
    with pytest.raises(FcnError, match="start at"):
        render_scene(seed, size)


def test_labels_hold_every_class_and_void_and_nothing_else(scenes):
    values = set().union(*(np.unique(scene.label).tolist() for scene in scenes))
    assert values == {*range(SCENES.num_classes), VOID}


def test_two_classes_never_touch(scenes):
    for scene in scenes:
        label = scene.label.astype(int)
        for first, second in ((label[1:], label[:-1]), (label[:, 1:], label[:, :-1])):
            known = (first != VOID) & (second != VOID)
            assert np.array_equal(first[known], second[known])


def test_the_void_border_is_thin(scenes):
    for scene in scenes:
        void = scene.label == VOID
        blocks = sliding_window_view(np.pad(void, 3, constant_values=True), (7, 7))
        assert not (blocks.all(axis=(2, 3)) & void).any()
    assert np.mean([(scene.label == VOID).mean() for scene in scenes]) < 0.1


def test_the_image_changes_where_the_label_says_an_outline_is(scenes):
    change = {True: [], False: []}
    for scene in scenes:
        steps = np.abs(np.diff(scene.image.astype(int), axis=1)).sum(axis=2)
        void = scene.label == VOID
        inside_border = void[:, 1:] & void[:, :-1]
        for kind in change:
            change[kind].extend(steps[inside_border == kind].tolist())
    assert np.mean(change[True]) > 1.5 * np.mean(change[False])


def test_colour_alone_does_not_tell_the_class(scenes):
    classes = SCENES.num_classes
    votes = np.zeros((8**3, classes), int)

    def colour(image):
        return (image // 32).astype(int) @ (64, 8, 1)

    for scene in scenes[:40]:
        known = scene.label != VOID
        np.add.at(votes, (colour(scene.image)[known], scene.label[known]), 1)
    # Bayes' rule for equally frequent classes; by plain counts all would be background.
    table = (votes / votes.sum(axis=0)).argmax(axis=1)
    confusion = ConfusionMatrix(classes)
    for scene in scenes[40:]:
        confusion.update(scene.label, table[colour(scene.image)])
    assert confusion.scores().mean_accuracy < 1.5 / classes


def test_seven_of_eight_training_scenes_are_squares():
    shapes = [scene.label.shape for scene in render_training_scenes(range(16), 64)]
    assert shapes.count((64, 64)) == 14
    assert shapes[7] == render_scene(7).label.shape
