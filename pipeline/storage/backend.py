"""What every kind of store must be able to do. `pipeline.storage.store` adds retries and explanations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol, TypeVar

T = TypeVar("T")


class Attempt(Protocol):
    """Runs one request, again while its failures may pass."""

    def __call__(self, call: Callable[[], T]) -> T:
        """What the request gives."""


@dataclass(frozen=True, order=True, slots=True)
class ObjectInfo:
    """An object: its path below the store's URL, its size, a tag that changes with its content.

    The tag is the store's ETag without quotes, or size and modification time where there is none.
    `modified` is in seconds since the epoch, None where the store does not tell.
    """

    path: str
    size: int
    etag: str
    modified: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a writer left unfinished: where, bytes, seconds since the epoch, the store's handle."""

    path: str
    size: int
    modified: float
    handle: str = ""


class Objects(Protocol):
    """The verbs on one kind of store, one attempt each; they raise what the library raises.

    Attributes:
        atomic_create: whether exactly one of several creators wins.
        atomic_replace: whether exactly one of several replacers of one version wins.
    """

    atomic_create: bool
    atomic_replace: bool

    def listing(self, prefix: str, attempt: Attempt) -> Iterator[ObjectInfo]:
        """All objects below a folder in byte order; `attempt` runs one request with retries."""

    def stat(self, path: str) -> ObjectInfo:
        """Size and tag."""

    def read(self, path: str, start: int | None, end: int | None) -> tuple[bytes, str]:
        """Bytes in [start, end) as Python slices them, and the tag of the object they are from.

        Raises:
            TruncatedError: fewer bytes came than the store announced.
        """

    def open(self, path: str) -> IO[bytes] | None:
        """A file of this machine; None where there is none, and ranges are to be read."""

    def write(self, path: str, data: bytes) -> str:
        """Put whole or not at all; the new tag."""

    def upload(self, path: str, source: Path) -> None:
        """Put a local file whole or not at all, in little memory."""

    def create(self, path: str, data: bytes) -> str | None:
        """Put if there is nothing; None if there is."""

    def replace(self, path: str, data: bytes, tag: str) -> str | None:
        """Put if the object there has this tag; None if it has another, or there is none."""

    def delete(self, path: str, tag: str | None) -> None:
        """Remove, if there and of this tag (None: any)."""

    def sweep(self) -> None:
        """Remove what killed writers left half-written."""

    def leftovers(self, attempt: Attempt) -> Iterator[Leftover]:
        """What killed writers, of whatever program, left half-written."""

    def discard(self, leftover: Leftover) -> None:
        """Remove one of them; gone is no error."""


class TruncatedError(OSError):
    """An answer ended before the announced length."""
