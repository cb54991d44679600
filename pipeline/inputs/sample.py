"""Samples of a shard, their index before they are fetched, and failed samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fcn_core.errors import FcnError
from fcn_core.images import decode_label
from fcn_core.labels import LabelSet

EncodedSample = tuple[bytes, bytes | None]
"""(encoded image, encoded label or None)."""


@dataclass(frozen=True)
class Sample:
    """An image of the input, with its label if it has one.

    Attributes:
        key: key of the sample, unique in its shard.
        image: bytes of the encoded image.
        label: bytes of the encoded label; None without a label.
        location: address of the image in the input, for messages.
    """

    key: str
    image: bytes
    label: bytes | None
    location: str

    @property
    def label_location(self) -> str:
        """Address of the label in the input, for messages."""
        return f"{self.location}, label of {self.key}"


def decode_truth(data: bytes, where: str, labels: LabelSet, max_pixels: int) -> NDArray[np.uint8]:
    """Return the class indices of an encoded label, (H, W), 255 = void.

    Args:
        data: bytes of the label.
        where: address of the label, for messages.
        labels: meaning of the values.
        max_pixels: larger labels are refused before they are decoded.

    Raises:
        ImageError: the label cannot be decoded.
        LabelError: the label has values outside the label set.
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
    """A quarantined sample: a row of the quarantine table.

    Attributes:
        key: key of the sample.
        reason: message of the error without its location.
        error: class name of the error.
        location: address of the sample in the input.
    """

    key: str
    reason: str
    error: str
    location: str

    @classmethod
    def of(cls, key: str, error: FcnError, location: str) -> Failure:
        """Return the failure of a sample from its error."""
        return cls(key, error.reason, type(error).__name__, location)


class SampleIndex(Protocol):
    """The samples of a shard before their bytes are fetched; small even for millions of samples."""

    @property
    def keys(self) -> Sequence[str]:
        """Keys in the order of the shard; not validated, and a key may occur twice."""
        ...

    @property
    def sizes(self) -> Sequence[int]:
        """Encoded bytes of image and label of each sample."""
        ...

    def location(self, number: int) -> str:
        """Return the address of a sample's image, for messages."""
        ...

    def fetch(self, numbers: Sequence[int]) -> Iterator[EncodedSample | FcnError]:
        """Yield the bytes of some samples, or the error of a sample that cannot be read.

        Args:
            numbers: positions in `keys`, in increasing order.

        Raises:
            ShardError: the rest of the shard cannot be read.
            StoreError: the store failed.
        """
        ...
