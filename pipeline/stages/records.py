"""What the network found out about a chunk: plain data between the segment and the write stage."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn_core.metrics import ConfusionMatrix
from pipeline.inputs.sample import Failure
from pipeline.stages.shard_stats import ShardStats

PREVIEW_SIDE = 320
"""Longest side of a preview, px."""


LOWEST_IOU, LEAST_CONFIDENT, RANDOM = "lowest mean IU", "least confident", "drawn by lot"
"""Why a picture has a preview."""


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
        confidence: (H, W) uint8, 255 = certain; None if no maps are written.
    """

    key: str
    mask: NDArray[np.uint8]
    mean_confidence: float
    class_pixels: tuple[int, ...]
    correct_pixels: int | None = None
    labeled_pixels: int | None = None
    iou: tuple[float, ...] | None = None
    confidence: NDArray[np.uint8] | None = None

    @cached_property
    def mean_iou(self) -> float | None:
        """Over the classes in its label or mask; None without a label, or if all of it is void."""
        known = [value for value in self.iou or () if not math.isnan(value)]
        return math.fsum(known) / len(known) if known else None


@dataclass(frozen=True)
class Preview:
    """A picture that the report may show.

    Attributes:
        key: of the image.
        image: (H, W, 3) uint8 RGB.
        label, mask: (H, W) uint8 class indices.
        why: what it was chosen for: some of `LOWEST_IOU`, `LEAST_CONFIDENT`, `RANDOM`.
    """

    key: str
    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    mask: NDArray[np.uint8]
    why: tuple[str, ...] = ()

    def shrunk(self) -> Preview:
        """The same with at most `PREVIEW_SIDE` px a side."""
        height, width = self.mask.shape
        scale = PREVIEW_SIDE / max(height, width)
        if scale >= 1:
            return self
        size = (max(1, round(width * scale)), max(1, round(height * scale)))

        def nearest(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
            # Class indices must not be mixed.
            return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.NEAREST))

        return replace(
            self,
            image=np.asarray(Image.fromarray(self.image).resize(size, Image.Resampling.BOX)),
            label=None if self.label is None else nearest(self.label),
            mask=nearest(self.mask),
        )


@dataclass(frozen=True)
class Candidate:
    """An image that a person should perhaps look at; it has a preview.

    Those of a commit are the worst `review_images` with a mean IU and as many without one.

    Attributes:
        key: within its shard.
        mean_confidence: 0-1; None where the network gave NaN.
        mean_iou: against its label; None without one.
        preview: path of the table that holds its preview, below OUTPUT.
    """

    key: str
    mean_confidence: float | None
    mean_iou: float | None
    preview: str

    @property
    def score(self) -> float:
        """The lower, the worse: mean IU, or the confidence of an image without a label."""
        if self.mean_iou is not None:
            return self.mean_iou
        return -1.0 if self.mean_confidence is None else self.mean_confidence


@dataclass(frozen=True)
class SegmentedPart:
    """Some samples of a chunk after the network.

    Attributes:
        images: those that were labelled, in the order of the samples.
        failures: the others, in that order.
        previews: those that `choose_previews` chooses of its images.
        confusion: summed over the images.
        seconds: by activity.
    """

    images: tuple[ImageResult, ...]
    failures: tuple[Failure, ...]
    previews: tuple[Preview, ...]
    confusion: ConfusionMatrix
    seconds: dict[str, float]


@dataclass(frozen=True)
class SegmentedChunk:
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


@dataclass(frozen=True)
class FileRecord:
    """An object that was written: path below OUTPUT, bytes, hex sha256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Receipt:
    """What the driver receives about a finished chunk: counts and file records, no pixels.

    Attributes:
        shard: id of the shard.
        seq: number of the chunk within the shard, from 0.
        count: number of chunks of the shard.
        files: records of the objects that were written.
        stats: counts over the images of the chunk.
        failures: images that were quarantined.
        candidates: the worst images, proposed for the review queue.
        seconds: seconds by stage.
        store_retries: store requests that were sent again.
    """

    shard: str
    seq: int
    count: int
    files: tuple[FileRecord, ...]
    stats: ShardStats
    failures: tuple[Failure, ...]
    candidates: tuple[Candidate, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    store_retries: int = 0


def record(path: str, data: bytes) -> FileRecord:
    """The record of an object's bytes."""
    return FileRecord(path, len(data), hashlib.sha256(data).hexdigest())
