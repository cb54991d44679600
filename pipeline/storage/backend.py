"""The interface of storage backends. `pipeline.storage.store` adds retries and error messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol, TypeVar

T = TypeVar("T")


class Attempt(Protocol):
    """A function that runs one request and repeats it after temporary failures."""

    def __call__(self, call: Callable[[], T]) -> T:
        """Return the result of the request."""


@dataclass(frozen=True, order=True, slots=True)
class ObjectInfo:
    """An object of a store, as a listing describes it.

    Attributes:
        path: path below the URL of the store.
        size: bytes.
        etag: tag that changes with the content: the ETag of the store without quotes, or size and
            modification time in stores without ETags.
        modified: seconds since the epoch; None if the store has no modification times.
    """

    path: str
    size: int
    etag: str
    modified: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Leftover:
    """An unfinished write: a temporary file, or a multipart upload.

    Attributes:
        path: path below the URL of the store.
        size: bytes; 0 if unknown.
        modified: time of the last change, or of the start of the upload; seconds since the epoch.
        handle: id of the multipart upload; "" for a file.
    """

    path: str
    size: int
    modified: float
    handle: str = ""


class Backend(Protocol):
    """The operations of one kind of store: each call is one attempt, with the library's errors.

    Attributes:
        atomic_create: True if exactly one of several concurrent `create` calls succeeds.
        atomic_replace: True if exactly one of several concurrent `replace` calls of the same
            version succeeds.
    """

    atomic_create: bool
    atomic_replace: bool

    def listing(self, prefix: str, attempt: Attempt) -> Iterator[ObjectInfo]:
        """Yield all objects below a folder in byte order of their paths.

        Args:
            prefix: path of the folder below the store; "" for the whole store.
            attempt: runs one request, such as one page of the listing, with retries.
        """

    def stat(self, path: str) -> ObjectInfo:
        """Return size, tag and modification time of an object."""

    def read(self, path: str, start: int | None, end: int | None) -> tuple[bytes, str]:
        """Return the bytes in [start, end), as a Python slice, and the tag of the version read.

        Raises:
            TruncatedError: the store sent fewer bytes than it announced.
        """

    def open(self, path: str) -> IO[bytes] | None:
        """Return an open file if the object is a local file, or None: the caller reads ranges."""

    def write(self, path: str, data: bytes) -> str:
        """Write an object atomically and return its new tag."""

    def upload(self, path: str, source: Path) -> None:
        """Write a local file as an object, atomically, without holding it in memory."""

    def create(self, path: str, data: bytes) -> str | None:
        """Write a new object and return its tag, or None if the object exists."""

    def replace(self, path: str, data: bytes, tag: str) -> str | None:
        """Write over the version with this tag; return the new tag, or None if it is missing."""

    def delete(self, path: str, tag: str | None) -> None:
        """Delete an object if it exists and has this tag (None: any tag)."""

    def sweep(self) -> None:
        """Delete temporary files of writers of this project that were killed."""

    def leftovers(self, attempt: Attempt) -> Iterator[Leftover]:
        """Yield the unfinished writes of any program."""

    def discard(self, leftover: Leftover) -> None:
        """Delete an unfinished write; a missing one is not an error."""


class TruncatedError(OSError):
    """A response ended before the announced number of bytes."""
