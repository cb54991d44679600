"""Records of a chunk: results of the segment stage, and the receipt of the write stage."""

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
"""Longest side of a preview, in pixels."""


LOWEST_IOU, LEAST_CONFIDENT, RANDOM = "lowest mean IU", "least confident", "drawn by lot"
"""Reasons why an image has a preview. The texts are stored in the preview tables."""


@dataclass(frozen=True)
class ImageResult:
    """Results of the network for one image.

    Attributes:
        key: key of the image within its shard.
        mask: (H, W) uint8 class indices.
        mean_confidence: mean over the pixels of the confidence, 0-1.
        class_pixels: K predicted pixel counts.
        correct_pixels: labeled pixels whose prediction is correct; None without a label.
        labeled_pixels: pixels with a label other than void; None without a label.
        iou: K values of IoU, NaN for a class that is in neither label nor mask; None without a
            label.
        confidence: (H, W) uint8 confidence map, 255 = certain; None if no maps are written.
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
        """Return the mean IoU over the classes in label or mask; None if no pixel is labeled."""
        known = [value for value in self.iou or () if not math.isnan(value)]
        return math.fsum(known) / len(known) if known else None


@dataclass(frozen=True)
class Preview:
    """An image with its label and mask, which the report may show.

    Attributes:
        key: key of the image within its shard.
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8 class indices; None without a label.
        mask: (H, W) uint8 predicted class indices.
        why: reasons for the choice: some of `LOWEST_IOU`, `LEAST_CONFIDENT`, `RANDOM`.
    """

    key: str
    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    mask: NDArray[np.uint8]
    why: tuple[str, ...] = ()

    def shrunk(self) -> Preview:
        """Return the preview, reduced to at most `PREVIEW_SIDE` pixels per side."""
        height, width = self.mask.shape
        scale = PREVIEW_SIDE / max(height, width)
        if scale >= 1:
            return self
        size = (max(1, round(width * scale)), max(1, round(height * scale)))

        def nearest(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
            # Nearest neighbor: interpolation would invent class indices.
            return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.NEAREST))

        return replace(
            self,
            image=np.asarray(Image.fromarray(self.image).resize(size, Image.Resampling.BOX)),
            label=None if self.label is None else nearest(self.label),
            mask=nearest(self.mask),
        )


@dataclass(frozen=True)
class Candidate:
    """A candidate for the review queue: one of the worst images of a shard. It has a preview.

    A commit keeps the worst `review_images` images with a mean IoU, and as many without one.

    Attributes:
        key: key of the image within its shard.
        mean_confidence: mean confidence, 0-1; None where the network gave NaN.
        mean_iou: mean IoU against the label; None without a label.
        preview: path below OUTPUT of the table that holds the preview.
    """

    key: str
    mean_confidence: float | None
    mean_iou: float | None
    preview: str

    @property
    def score(self) -> float:
        """Return the mean IoU, or without a label the mean confidence. Lower is worse."""
        if self.mean_iou is not None:
            return self.mean_iou
        return -1.0 if self.mean_confidence is None else self.mean_confidence


@dataclass(frozen=True)
class SegmentedPart:
    """Results of some samples of a chunk.

    Attributes:
        images: results of the segmented samples, in the order of the samples.
        failures: quarantined samples, in the order of the samples.
        previews: previews that `choose_previews` chooses from these images.
        confusion: confusion matrix, summed over the images.
        seconds: seconds by activity ("decode", "forward").
    """

    images: tuple[ImageResult, ...]
    failures: tuple[Failure, ...]
    previews: tuple[Preview, ...]
    confusion: ConfusionMatrix
    seconds: dict[str, float]


@dataclass(frozen=True)
class SegmentedChunk:
    """Results of a whole chunk, merged from its parts.

    Attributes:
        shard: id of the shard.
        seq: number of the chunk within the shard, from 0.
        count: number of chunks of the shard.
        images: results of the segmented samples, in the order of the samples.
        failures: quarantined samples.
        previews: chosen previews of the chunk.
        confusion: confusion matrix, summed over the images.
        seconds: seconds by stage.
        store_retries: store requests that were sent again.
    """

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
    """An object that was written: its path below OUTPUT, size in bytes, and SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Receipt:
    """The report of a finished chunk to the driver: counts and file records, no pixels.

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
    """Return the record of an object with these bytes."""
    return FileRecord(path, len(data), hashlib.sha256(data).hexdigest())
