"""Views of images: label and image stay together, whatever is done to them."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_core.labels import VOID
from fcn_core.preprocessing import CENTRED_RGB, Preprocessing
from fcn_core.training.batch import augment, stack
from fcn_core.training.recipes import Augmentation


def coded(height, width, block=1):
    """An image whose red channel is 80 times its label, in square blocks."""
    rng = np.random.default_rng(height * width)
    small = rng.integers(0, 4, (-(-height // block), -(-width // block)), np.uint8)
    label = np.kron(small, np.ones((block, block), np.uint8))[:height, :width]
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 80 * label
    return image, np.ascontiguousarray(label)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(0, 1000))
def test_crops_and_flips_move_label_and_image_together(height, width, crop, seed):
    how = Augmentation(crop=crop, flip=True)
    pixels, label = augment(coded(height, width), how, np.random.default_rng(seed))
    assert label.shape == (min(height, crop), min(width, crop))
    assert np.array_equal(pixels[..., 0], 80.0 * label)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.3, 3), st.integers(0, 1000))
def test_an_enlarged_view_is_no_larger_than_the_crop_and_its_label_fits(
    height, width, factor, seed
):
    how = Augmentation(crop=24, scale=(factor, factor), flip=True)
    pixels, label = augment(coded(height, width, 12), how, np.random.default_rng(seed))
    assert pixels.shape[:2] == label.shape and max(label.shape) <= 24 and min(label.shape) >= 1
    assert set(np.unique(label)) <= {0, 1, 2, 3}  # classes are never mixed
    # Bilinear pixels agree with nearest labels but near the edges of blocks.
    assert np.median(np.abs(pixels[..., 0] - 80.0 * label)) <= 40


def test_without_augmentation_an_image_is_what_it_was():
    image, label = coded(13, 9)
    pixels, same = augment((image, label), Augmentation(), np.random.default_rng(0))
    assert np.array_equal(pixels, image) and np.array_equal(same, label)


def test_jitter_changes_colours_but_no_label():
    image, label = coded(20, 20)
    how = Augmentation(crop=20, jitter=0.5)
    pixels, same = augment((image, label), how, np.random.default_rng(3))
    assert np.array_equal(same, label) and not np.array_equal(pixels, image)
    assert pixels.min() >= 0 and pixels.max() <= 255


def test_a_view_depends_on_its_random_numbers_alone():
    sample = coded(60, 60)
    how = Augmentation(crop=20, scale=(0.5, 2.0), flip=True, jitter=0.2)
    first, again, other = (augment(sample, how, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(first[0], again[0])
    assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])


def test_crops_go_together_and_whole_images_one_by_one():
    views = [augment(coded(5, 6), Augmentation(), np.random.default_rng(0)) for _ in range(2)]
    together = stack(views, [4, 5], Augmentation(crop=8), CENTRED_RGB)
    assert [b.slots for b in together] == [(4, 5)] and together[0].image.shape == (2, 3, 8, 8)
    alone = stack(views, [4, 5], Augmentation(), CENTRED_RGB)
    assert [b.slots for b in alone] == [(4,), (5,)] and alone[0].image.shape == (1, 3, 5, 6)
    assert alone[0].labeled_pixels == 30 and together[0].labeled_pixels == 60


def test_small_images_are_filled_up_with_the_mean_colour_and_void():
    view = augment(coded(5, 6), Augmentation(crop=8), np.random.default_rng(0))
    values = Preprocessing("BGR", (10.0, 20.0, 30.0), (2.0, 4.0, 5.0))
    (batch,) = stack([view], [0], Augmentation(crop=8), values)
    assert (batch.label[0, 5:] == VOID).all() and (batch.label[0, :, 6:] == VOID).all()
    assert (batch.image[0, :, 5:] == 0).all() and (batch.image[0, :, :, 6:] == 0).all()
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert np.allclose(batch.image[0, 2, :5, :6], (80.0 * batch.label[0, :5, :6] - 30) / 5)
