"""What the network found out about a chunk: plain data between the segment and the write stage."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcn_core.metrics import ConfusionMatrix
from pipeline.samples import Failure


@dataclass(frozen=True)
class ImageResult:
    """What is written about one image.

    Attributes:
        key: within its shard.
        mask: (H, W) uint8 class indices.
        mean_confidence: 0-1.
        class_pixels: K counts of predicted classes.
        correct_pixels, labeled_pixels, iou: against the label; None without one. IoU per class,
            NaN where the class is in neither.
    """

    key: str
    mask: NDArray[np.uint8]
    mean_confidence: float
    class_pixels: tuple[int, ...]
    correct_pixels: int | None = None
    labeled_pixels: int | None = None
    iou: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Preview:
    """A picture that the report may show."""

    key: str
    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class Piece:
    """Some samples of a chunk after the network.

    Attributes:
        images: those that were labelled, in the order of the samples.
        failures: the others, in that order.
        previews: of the first image and of the worst.
        confusion: summed over the images.
        seconds: by activity.
    """

    images: tuple[ImageResult, ...]
    failures: tuple[Failure, ...]
    previews: tuple[Preview, ...]
    confusion: ConfusionMatrix
    seconds: dict[str, float]


@dataclass(frozen=True)
class Segmented:
    """A chunk after the network."""

    shard: str
    seq: int
    count: int
    images: tuple[ImageResult, ...]
    failures: tuple[Failure, ...]
    previews: tuple[Preview, ...]
    confusion: ConfusionMatrix
    seconds: dict[str, float]
    store_retries: int = 0


def merge(keys: Sequence[str], pieces: Sequence[Piece], num_classes: int) -> Piece:
    """One piece of several, as if the samples had never been taken apart.

    Args:
        keys: of the chunk's samples, in order; no key twice.
        pieces: each key in at most one of them, in any order.
        num_classes: K.
    """
    place = {key: index for index, key in enumerate(keys)}
    images = [image for piece in pieces for image in piece.images]
    failures = [failure for piece in pieces for failure in piece.failures]
    images.sort(key=lambda image: place[image.key])
    failures.sort(key=lambda failure: place[failure.key])
    confusion = ConfusionMatrix(num_classes)
    seconds: Counter[str] = Counter()
    for piece in pieces:
        confusion += piece.confusion
        seconds.update(piece.seconds)  # adds
    previews = [preview for piece in pieces for preview in piece.previews]
    chosen = choose_previews(images, previews)
    return Piece(tuple(images), tuple(failures), chosen, confusion, dict(seconds))


def choose_previews(
    images: Sequence[ImageResult], previews: Sequence[Preview]
) -> tuple[Preview, ...]:
    """The worst image, and the first if it is another one, of those that have a preview.

    Worst is the lowest share of correct pixels, without a label the lowest confidence; the earlier
    among equals.
    """
    if not images:
        return ()
    by_key = {preview.key: preview for preview in previews}
    worst = min((image for image in images if image.key in by_key), key=badness)
    keys = dict.fromkeys((worst.key, images[0].key))
    return tuple(by_key[key] for key in keys)


def badness(image: ImageResult) -> float:
    """What the choice of previews goes by: the lower, the worse."""
    if image.correct_pixels is not None and image.labeled_pixels:
        return image.correct_pixels / image.labeled_pixels
    return -1.0 if math.isnan(image.mean_confidence) else image.mean_confidence
