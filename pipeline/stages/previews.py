"""Choose the images of a chunk that get a preview.

Images are ranked by reason: lowest mean IoU, lowest confidence, and a fixed random sample (by the
hash of the key, so that a repeated run chooses the same images).
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from pipeline.stages.records import LEAST_CONFIDENT, LOWEST_IOU, RANDOM, ImageResult, Preview

MAX_PER_REASON = 3
"""Most previews of a chunk per reason, unless the review queue needs more."""


_IMAGES_PER_PREVIEW = 32


@dataclass(frozen=True)
class PreviewCounts:
    """Numbers of previews to choose.

    Attributes:
        review: least number of images with the lowest mean IoU, and of images without a mean IoU
            with the lowest confidence. It is the length of the review queue, which must hold the
            worst images of the whole run.
        of_each: number of previews for each reason, for the report.
    """

    review: int
    of_each: int = MAX_PER_REASON

    def of_chunk(self, images: int) -> PreviewCounts:
        """Return the counts for a chunk with this number of images.

        >>> [PreviewCounts(16).of_chunk(images).of_each for images in (10, 64, 512)]
        [1, 2, 3]
        """
        return replace(self, of_each=min(self.of_each, max(1, images // _IMAGES_PER_PREVIEW)))


def choose_previews(
    images: Sequence[ImageResult], previews: Sequence[Preview], counts: PreviewCounts
) -> tuple[Preview, ...]:
    """Return the chosen previews with their reasons, taken in turn from each reason.

    An image that is chosen from a whole chunk is also chosen from any part of the chunk that holds
    it, with the same counts.

    Args:
        images: results in the order of the samples.
        previews: previews of some of these images; only these can be chosen.
        counts: numbers of previews to choose.
    """
    by_key = {preview.key: preview for preview in previews}
    why = _reasons([image for image in images if image.key in by_key], counts)
    return tuple(replace(by_key[key], why=tuple(reasons)) for key, reasons in why.items())


class PreviewChoice:
    """Keeps only the previews that `choose_previews` would choose from all images so far."""

    def __init__(self, counts: PreviewCounts) -> None:
        self._counts = counts
        self._images: list[ImageResult] = []
        self._previews: dict[str, Preview] = {}
        self._rankings = _rankings([], counts)

    def consider(self, result: ImageResult, preview: Preview) -> None:
        """Add an image and its preview at full size, if it is among the best of any reason."""
        if not any(ranking.would_take(result) for ranking in self._rankings):
            return
        rankings = _rankings([*self._images, result], self._counts)
        keys = {image.key for ranking in rankings for image in ranking.first}
        # Shrink now: full-size images of many megapixels would fill the memory.
        self._previews[result.key] = preview.shrunk()
        self._images = [image for image in (*self._images, result) if image.key in keys]
        self._previews = {image.key: self._previews[image.key] for image in self._images}
        self._rankings = rankings

    def chosen(self) -> tuple[Preview, ...]:
        """Return the chosen previews of all images so far."""
        return choose_previews(self._images, list(self._previews.values()), self._counts)


@dataclass(frozen=True)
class _Ranking:
    """The first images by one criterion.

    Attributes:
        why: reason for choosing the images in `first`.
        key: sort key; of equal images the earlier one comes first.
        takes: whether an image is ranked at all.
        most: maximum length of `first`.
        first: first images in the order of `key`.
    """

    why: str
    key: Callable[[ImageResult], Any]
    takes: Callable[[ImageResult], bool]
    most: int
    first: tuple[ImageResult, ...] = ()

    def of(self, images: Sequence[ImageResult]) -> _Ranking:
        """Return this ranking with the first of these images."""
        ranked = sorted(filter(self.takes, images), key=self.key)
        return replace(self, first=tuple(ranked[: self.most]))

    def would_take(self, image: ImageResult) -> bool:
        """Return whether an image that comes after all others would be among the first."""
        if not self.takes(image) or self.most == 0:
            return False
        return len(self.first) < self.most or self.key(image) < self.key(self.first[-1])


def _rankings(images: Sequence[ImageResult], counts: PreviewCounts) -> tuple[_Ranking, ...]:
    each, worst = counts.of_each, max(counts.of_each, counts.review)
    rankings = (
        _Ranking(LOWEST_IOU, lambda image: image.mean_iou, _is_scored, worst),
        _Ranking(LEAST_CONFIDENT, _confidence, lambda image: True, each),
        _Ranking(LEAST_CONFIDENT, _confidence, lambda image: not _is_scored(image), counts.review),
        _Ranking(RANDOM, _hash_key, lambda image: True, each),
    )
    return tuple(ranking.of(images) for ranking in rankings)


def _reasons(images: Sequence[ImageResult], counts: PreviewCounts) -> dict[str, list[str]]:
    """Return the reasons for each chosen image, by its key."""
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


def _hash_key(image: ImageResult) -> bytes:
    return hashlib.sha256(image.key.encode("utf-8", "surrogatepass")).digest()


def _confidence(image: ImageResult) -> float:
    return -1.0 if math.isnan(image.mean_confidence) else image.mean_confidence
