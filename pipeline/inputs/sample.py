"""Samples: what a shard holds, before and after it is fetched, and what failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fcn_core.errors import FcnError
from fcn_core.images import decode_label
from fcn_core.labels import LabelSet

Encoded = tuple[bytes, bytes | None]
"""An encoded image and perhaps its encoded label."""


@dataclass(frozen=True)
class Sample:
    """A key with its encoded image and perhaps its encoded label.

    `location` says where the image's bytes are in the input, for people.
    """

    key: str
    image: bytes
    label: bytes | None
    location: str

    @property
    def label_location(self) -> str:
        """Where the label is, for people."""
        return f"{self.location}, label of {self.key}"


def decode_truth(data: bytes, where: str, labels: LabelSet, max_pixels: int) -> NDArray[np.uint8]:
    """(H, W) class indices, 255 = void, of an encoded label.

    Raises:
        ImageError: it does not decode.
        LabelError: it holds values outside the label set.
    """
    raw = decode_label(data, where, max_pixels, colours=bool(labels.colours))
    return labels.encode(raw, where)


def check_label_size(
    sample: Sample, image: NDArray[np.uint8], label: NDArray[np.uint8], error: type[FcnError]
) -> None:
    """Refuse a label whose height and width differ from those of its image.

    Args:
        sample: the sample of both, for the message.
        image: (H, W, 3) pixels.
        label: (H, W) class indices.
        error: class of the error to raise.
    """
    if label.shape != image.shape[:2]:
        height, width = label.shape
        raise error(
            where=sample.label_location,
            found=f"label is {width}x{height}, image is {image.shape[1]}x{image.shape[0]}",
            expected="labels must match the image size",
            remedy="Drop the sample or fix the label.",
        )


@dataclass(frozen=True)
class Failure:
    """A sample that went to quarantine: a row of the quarantine table."""

    key: str
    reason: str
    error: str
    location: str

    @classmethod
    def of(cls, key: str, error: FcnError, location: str) -> Failure:
        """From the error that stopped the sample."""
        return cls(key, error.reason, type(error).__name__, location)


class Index(Protocol):
    """The samples of a shard, known but not fetched. Small: a shard may have millions.

    Attributes:
        keys: as found, not yet checked; a key may occur twice.
        sizes: encoded bytes of image and label.
    """

    @property
    def keys(self) -> Sequence[str]:
        """See above."""
        ...

    @property
    def sizes(self) -> Sequence[int]:
        """See above."""
        ...

    def location(self, number: int) -> str:
        """Where the image of a sample is, for people."""
        ...

    def fetch(self, numbers: Sequence[int]) -> Iterator[Encoded | FcnError]:
        """The bytes of some samples, in this (rising) order, or why one cannot be had.

        Raises:
            ShardError: the shard as a whole cannot be read any further.
            StoreError: the store fails.
        """
        ...
