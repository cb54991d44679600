"""Turn images and labels into training batches. All randomness comes from the caller.

Shape suffixes: B batch, C channel, H height px, W width px.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fcn_core.labels import VOID
from fcn_core.preprocessing import Preprocessing
from fcn_core.training.recipes import Augmentation

TrainingSample = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""An image, (H, W, 3) uint8 RGB, and its label, (H, W) uint8 class index or 255."""


Pixels = tuple[NDArray[np.float32], NDArray[np.uint8]]
"""An image, (H, W, 3) float32 RGB in 0-255, and its label, (H, W) uint8."""


NOTHING: TrainingSample = (np.zeros((1, 1, 3), np.uint8), np.full((1, 1), VOID, np.uint8))
"""Replaces a sample that cannot be used; it is all void and changes no weight."""


@dataclass(frozen=True)
class TrainingBatch:
    """The images of one forward pass.

    Attributes:
        image: (B, 3, H, W) preprocessed pixels, float32, channels last.
        label: (B, H, W) int64, class index or 255.
        slots: Position of each image among the images of the step.
    """

    image: Tensor
    label: Tensor
    slots: tuple[int, ...]

    @property
    def labeled_pixels(self) -> int:
        """Number of pixels that have a class."""
        return int((self.label != VOID).sum())


def augment(sample: TrainingSample, how: Augmentation, rng: np.random.Generator) -> Pixels:
    """Return a random view of an image and its label.

    Args:
        sample: Image and label.
        how: Augmentation settings.
        rng: Random generator; every call draws the same number of values.

    Returns:
        Pixels and label, at most crop x crop; the whole image without a crop.
    """
    image, label = sample
    enlarge, *place = rng.random(3)
    mirror, *jitter = rng.random(), *rng.uniform(-1, 1, 4)
    if how.crop is not None:
        low, high = how.scale
        factor = math.exp(math.log(low) + enlarge * (math.log(high) - math.log(low)))
        image, label = _view(image, label, how.crop, factor, place)
    pixels = image.astype(np.float32)
    if how.flip and mirror < 0.5:
        pixels, label = pixels[:, ::-1], label[:, ::-1]
    if how.jitter > 0:
        contrast, *brightness = how.jitter * np.array(jitter, np.float32)
        pixels = pixels + contrast * (pixels - pixels.mean()) + 128 * np.array(brightness)
        pixels = np.clip(pixels, 0, 255)
    return pixels, label


def _view(
    image: NDArray[np.uint8], label: NDArray[np.uint8], crop: int, factor: float,
    place: Sequence[float],
) -> TrainingSample:  # fmt: skip
    """Cut a window that has at most crop x crop px after scaling by the factor."""
    height, width = (min(side, max(1, round(crop / factor))) for side in label.shape)
    top, left = (
        int(where * (full - part + 1))
        for where, full, part in zip(place, label.shape, (height, width), strict=True)
    )
    window = (slice(top, top + height), slice(left, left + width))
    image, label = image[window], label[window]
    size = min(crop, max(1, round(width * factor))), min(crop, max(1, round(height * factor)))
    if size != (width, height):
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        label = np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST))
    return image, label


def stack(
    views: Sequence[Pixels], slots: Sequence[int], how: Augmentation, preprocessing: Preprocessing
) -> list[TrainingBatch]:
    """Batch views for the network: crops in one batch, whole images one by one."""
    if how.crop is None:
        return [
            TrainingBatch(*tensors([view], view[1].shape, preprocessing), (slot,))
            for view, slot in zip(views, slots, strict=True)
        ]
    return [TrainingBatch(*tensors(views, (how.crop, how.crop), preprocessing), tuple(slots))]


def tensors(
    views: Sequence[Pixels], size: tuple[int, ...], preprocessing: Preprocessing
) -> tuple[Tensor, Tensor]:
    """Return float32 (B, 3, *size), channels last, and int64 (B, *size), filled up with void."""
    shape = (len(views), *size)
    image_BHWC = np.zeros((*shape, 3), np.float32)  # zero is the mean colour
    label_BHW = np.full(shape, VOID, np.int64)
    mean, std = np.array([preprocessing.mean, preprocessing.std], np.float32)
    for slot, (pixels, label) in enumerate(views):
        height, width = label.shape
        ordered = pixels[..., ::-1] if preprocessing.channels == "BGR" else pixels
        image_BHWC[slot, :height, :width] = (ordered - mean) / std
        label_BHW[slot, :height, :width] = label
    # Permuting a (B, H, W, C) array gives torch's channels-last format.
    return torch.from_numpy(image_BHWC).permute(0, 3, 1, 2), torch.from_numpy(label_BHW)
