"""What the network found out about a chunk: plain data between the segment and the write stage."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn_core.metrics import ConfusionMatrix
from pipeline.samples import Failure

PREVIEW_SIDE = 320
"""Longest side of a preview, px."""

LOWEST, UNSURE, BY_LOT = "lowest mean IU", "least confident", "drawn by lot"
"""Why a picture has a preview."""

MOST_OF_A_KIND = 3
"""Previews of a chunk that are chosen for one reason, if the review queue needs no more."""

_IMAGES_PER_PREVIEW = 32


@dataclass(frozen=True)
class PreviewCounts:
    """How many previews are chosen.

    Attributes:
        review: the images of lowest mean IU, and of those without one the least confident: at least
            so many of each, or else the review queue of a run would not be its worst images.
        of_each: for each of the reasons, so that the report has something to show.
    """

    review: int
    of_each: int = MOST_OF_A_KIND

    def of_chunk(self, images: int) -> PreviewCounts:
        """Those of a chunk of so many images.

        >>> [PreviewCounts(16).of_chunk(images).of_each for images in (10, 64, 512)]
        [1, 2, 3]
        """
        return replace(self, of_each=min(self.of_each, max(1, images // _IMAGES_PER_PREVIEW)))


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
        why: what it was chosen for: some of `LOWEST`, `UNSURE`, `BY_LOT`.
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
class Piece:
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


def merge(
    keys: Sequence[str], pieces: Sequence[Piece], num_classes: int, counts: PreviewCounts
) -> Piece:
    """One piece of several, as if the samples had never been taken apart.

    Args:
        keys: of the chunk's samples, in order; no key twice.
        pieces: each key in at most one of them, in any order.
        num_classes: K.
        counts: of the previews to keep.
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
    chosen = choose_previews(images, previews, counts)
    return Piece(tuple(images), tuple(failures), chosen, confusion, dict(seconds))


def choose_previews(
    images: Sequence[ImageResult], previews: Sequence[Preview], counts: PreviewCounts
) -> tuple[Preview, ...]:
    """Previews for each reason there is to look at a picture, in turn, with these reasons.

    What is chosen of a whole is chosen of its parts as well, if these are asked for as many.

    Args:
        images: in the order of the samples.
        previews: of some of them.
        counts: how many to choose.
    """
    by_key = {preview.key: preview for preview in previews}
    why = _reasons([image for image in images if image.key in by_key], counts)
    return tuple(replace(by_key[key], why=tuple(reasons)) for key, reasons in why.items())


class PreviewChoice:
    """Keeps, while images pass, what `choose_previews` would choose of them all, and no more."""

    def __init__(self, counts: PreviewCounts) -> None:
        self._counts = counts
        self._images: list[ImageResult] = []
        self._previews: dict[str, Preview] = {}
        self._rankings = _rankings([], counts)

    def consider(self, result: ImageResult, preview: Preview) -> None:
        """One more image, at its full size."""
        if not any(ranking.would_take(result) for ranking in self._rankings):
            return
        rankings = _rankings([*self._images, result], self._counts)
        keys = {image.key for ranking in rankings for image in ranking.first}
        # At once: full-size pictures of many megapixels would fill the memory.
        self._previews[result.key] = preview.shrunk()
        self._images = [image for image in (*self._images, result) if image.key in keys]
        self._previews = {image.key: self._previews[image.key] for image in self._images}
        self._rankings = rankings

    def chosen(self) -> tuple[Preview, ...]:
        """The previews of the choice."""
        return choose_previews(self._images, list(self._previews.values()), self._counts)


@dataclass(frozen=True)
class _Ranking:
    """The first of some images, in an order.

    Attributes:
        why: an image is chosen that is among them.
        key: to sort by; of equals the earlier image comes first.
        takes: whether an image takes part.
        most: of them.
        first: they.
    """

    why: str
    key: Callable[[ImageResult], Any]
    takes: Callable[[ImageResult], bool]
    most: int
    first: tuple[ImageResult, ...] = ()

    def of(self, images: Sequence[ImageResult]) -> _Ranking:
        """The ranking of images."""
        found = sorted(filter(self.takes, images), key=self.key)
        return replace(self, first=tuple(found[: self.most]))

    def would_take(self, image: ImageResult) -> bool:
        """Whether an image that comes after all of these would be among the first."""
        if not self.takes(image) or self.most == 0:
            return False
        return len(self.first) < self.most or self.key(image) < self.key(self.first[-1])


def _rankings(images: Sequence[ImageResult], counts: PreviewCounts) -> tuple[_Ranking, ...]:
    each, worst = counts.of_each, max(counts.of_each, counts.review)
    rankings = (
        _Ranking(LOWEST, lambda image: image.mean_iou, _is_scored, worst),
        _Ranking(UNSURE, _confidence, lambda image: True, each),
        _Ranking(UNSURE, _confidence, lambda image: not _is_scored(image), counts.review),
        _Ranking(BY_LOT, _lot, lambda image: True, each),
    )
    return tuple(ranking.of(images) for ranking in rankings)


def _reasons(images: Sequence[ImageResult], counts: PreviewCounts) -> dict[str, list[str]]:
    """Reasons by the key of each image that is chosen; the earlier of equals."""
    first: dict[str, dict[str, None]] = defaultdict(dict)
    for ranking in _rankings(images, counts):
        first[ranking.why].update(dict.fromkeys(image.key for image in ranking.first))
    why: dict[str, list[str]] = defaultdict(list)
    for turn in zip_longest(*first.values()):
        for reason, key in zip(first, turn, strict=True):
            if key is not None:
                why[key].append(reason)
    return why


def _is_scored(image: ImageResult) -> bool:
    return image.mean_iou is not None


def _lot(image: ImageResult) -> bytes:
    return hashlib.sha256(image.key.encode("utf-8", "surrogatepass")).digest()


def _confidence(image: ImageResult) -> float:
    return -1.0 if math.isnan(image.mean_confidence) else image.mean_confidence
