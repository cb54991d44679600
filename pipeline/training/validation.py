"""Scores on VAL while a network is trained, and some of its masks to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fcn_core.errors import ImageError
from fcn_core.images import overlay
from fcn_core.labels import LabelSet
from fcn_core.metrics import ConfusionMatrix, Scores
from fcn_core.predictor import Predictor
from fcn_core.training.learner import ProcessGroup
from pipeline.formats import encode_jpeg
from pipeline.inputs.sample import Failure, Sample
from pipeline.training.source import TrainingSource

_PANEL_PIXELS = 1_000_000

_JPEG_SIDE = 65_000

_QUALITY = 85


@dataclass(frozen=True)
class ValidationRequest:
    """What an evaluation looks at.

    Attributes:
        images: at most so many, the first ones; None: all.
        overlays: how many are drawn.
    """

    images: int | None = None
    overlays: int = 0


@dataclass(frozen=True)
class ValidationResult:
    """What it found.

    Attributes:
        scores: of all processes together.
        images: scored, by all processes.
        failures: samples that could not be scored, of this process.
        pictures: (key, JPEG of image, truth and mask side by side) of this process.
    """

    scores: Scores
    images: int
    failures: tuple[Failure, ...]
    pictures: tuple[tuple[str, bytes], ...] = field(repr=False)


def evaluate(
    predictor: Predictor, source: TrainingSource, question: ValidationRequest, group: ProcessGroup,
    stop: Callable[[], bool] = lambda: False,
) -> ValidationResult | None:  # fmt: skip
    """Scores of a network, each process taking its share of the images.

    Args:
        predictor: of the network.
        source: labelled images.
        question: see there.
        group: of processes that ask together.
        stop: looked at after every image, where there is one process.

    Returns:
        None if it was stopped.

    Raises:
        LabelError: a label holds a value that is no class.
        ShardError, StoreError: the input fails.
    """
    classes = source.labels.num_classes
    matrix, failures, pictures, images = ConfusionMatrix(classes), [], [], 0
    for place, item in enumerate(_labelled(source, question.images)):
        if place % group.size != group.rank:
            continue
        if group.size == 1 and stop():
            return None
        if isinstance(item, Failure):
            failures.append(item)
            continue
        try:
            image, truth = source.decode(item)
        except ImageError as error:
            failures.append(Failure.of(item.key, error, item.location))
            continue
        mask = predictor.predict([image])[0].mask
        matrix.update(truth, mask)
        images += 1
        if place < question.overlays:
            pictures.append((item.key, panels(image, truth, mask, source.labels)))
    summed = group.sum([images, *matrix.matrix.ravel().tolist()])
    whole = ConfusionMatrix(classes)
    whole.matrix += np.array(summed[1:]).astype(np.int64).reshape(classes, classes)
    return ValidationResult(whole.scores(), int(summed[0]), tuple(failures), tuple(pictures))


def _labelled(source: TrainingSource, most: int | None) -> Iterator[Sample | Failure]:
    for place, item in enumerate(source.samples()):
        if most is not None and place >= most:
            return
        yield item


def panels(
    image: NDArray[np.uint8], truth: NDArray[np.uint8], mask: NDArray[np.uint8], labels: LabelSet
) -> bytes:
    """A JPEG: the picture, the truth over it, the mask over it, side by side.

    Args:
        image: (H, W, 3) RGB; large ones are drawn smaller.
        truth: (H, W).
        mask: (H, W).
        labels: for the colours.
    """
    height, width = image.shape[:2]
    step = max(
        1, round((height * width / _PANEL_PIXELS) ** 0.5),
        math.ceil(height / _JPEG_SIDE), math.ceil(3 * width / _JPEG_SIDE),
    )  # fmt: skip
    image, truth, mask = (array[::step, ::step] for array in (image, truth, mask))
    painted = [overlay(image, classes, labels.palette) for classes in (truth, mask)]
    return encode_jpeg(np.hstack([image, *painted]), quality=_QUALITY)
