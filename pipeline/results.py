"""What the network found out about a chunk: plain data between the segment and the write stage."""

from __future__ import annotations

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
