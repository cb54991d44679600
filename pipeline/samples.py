"""Samples: what a shard holds, before and after it is fetched, and what failed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fcn_core.errors import FcnError


@dataclass(frozen=True)
class Sample:
    """A key with its encoded image and perhaps its encoded label.

    `location` says where the image's bytes are in the input, for people.
    """

    key: str
    image: bytes
    label: bytes | None
    location: str


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


@dataclass(frozen=True)
class Entry:
    """A sample that is known but not fetched.

    Attributes:
        key: as found; not yet checked.
        size: encoded bytes of image and label.
        location: where the image is.
        load: fetches (image, label); raises FcnError for a sample that cannot be had.
    """

    key: str
    size: int
    location: str
    load: Callable[[], tuple[bytes, bytes | None]]
