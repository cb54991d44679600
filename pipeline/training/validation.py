"""Validation during training: scores on VAL, and overlays of some masks."""

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
    """Size of one validation.

    Attributes:
        images: number of images, the first ones of VAL; None: all.
        overlays: number of images drawn with their masks.
    """

    images: int | None = None
    overlays: int = 0


@dataclass(frozen=True)
class ValidationResult:
    """The result of one validation.

    Attributes:
        scores: scores over the images of all processes.
        images: number of images scored by all processes.
        failures: samples of this process that could not be scored.
        overlays: (key, JPEG of image, truth and mask side by side) of this process.
    """

    scores: Scores
    images: int
    failures: tuple[Failure, ...]
    overlays: tuple[tuple[str, bytes], ...] = field(repr=False)


def validate(
    predictor: Predictor, source: TrainingSource, request: ValidationRequest, group: ProcessGroup,
    stop: Callable[[], bool] = lambda: False,
) -> ValidationResult | None:  # fmt: skip
    """Score a network on VAL; each process scores its share of the images.

    Args:
        predictor: predictor of the network.
        source: labeled images.
        request: number of images and overlays.
        group: processes that validate together; all must call this function.
        stop: whether to stop; checked before every image, only in a group of one process.

    Returns:
        The scores of all processes; None if stopped.

    Raises:
        LabelError: a label holds a value outside the label set.
        ShardError, StoreError: the input fails.
    """
    classes = source.labels.num_classes
    matrix, failures, overlays, images = ConfusionMatrix(classes), [], [], 0
    for place, item in enumerate(_labeled_samples(source, request.images)):
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
        if place < request.overlays:
            overlays.append((item.key, panels(image, truth, mask, source.labels)))
    summed = group.sum([images, *matrix.matrix.ravel().tolist()])
    whole = ConfusionMatrix(classes)
    whole.matrix += np.array(summed[1:]).astype(np.int64).reshape(classes, classes)
    return ValidationResult(whole.scores(), int(summed[0]), tuple(failures), tuple(overlays))


def _labeled_samples(source: TrainingSource, most: int | None) -> Iterator[Sample | Failure]:
    for place, item in enumerate(source.samples()):
        if most is not None and place >= most:
            return
        yield item


def panels(
    image: NDArray[np.uint8], truth: NDArray[np.uint8], mask: NDArray[np.uint8], labels: LabelSet
) -> bytes:
    """Return a JPEG with the image, the truth overlay and the mask overlay side by side.

    Args:
        image: (H, W, 3) uint8 RGB; large images are drawn smaller.
        truth: (H, W) uint8 class indices, 255 = void.
        mask: (H, W) uint8 predicted class indices.
        labels: label set with the palette.
    """
    height, width = image.shape[:2]
    step = max(
        1, round((height * width / _PANEL_PIXELS) ** 0.5),
        math.ceil(height / _JPEG_SIDE), math.ceil(3 * width / _JPEG_SIDE),
    )  # fmt: skip
    image, truth, mask = (array[::step, ::step] for array in (image, truth, mask))
    painted = [overlay(image, classes, labels.palette) for classes in (truth, mask)]
    return encode_jpeg(np.hstack([image, *painted]), quality=_QUALITY)
