"""TODO docstring."""

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
    of_each: int = MAX_PER_REASON

    def of_chunk(self, images: int) -> PreviewCounts:
        """Those of a chunk of so many images.

        >>> [PreviewCounts(16).of_chunk(images).of_each for images in (10, 64, 512)]
        [1, 2, 3]
        """
        return replace(self, of_each=min(self.of_each, max(1, images // _IMAGES_PER_PREVIEW)))


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
        _Ranking(LOWEST_IOU, lambda image: image.mean_iou, _is_scored, worst),
        _Ranking(LEAST_CONFIDENT, _confidence, lambda image: True, each),
        _Ranking(LEAST_CONFIDENT, _confidence, lambda image: not _is_scored(image), counts.review),
        _Ranking(RANDOM, _lot, lambda image: True, each),
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
