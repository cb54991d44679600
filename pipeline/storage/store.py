"""`Store`: the objects below one URL, with retries and error messages.

All modules list, read, write, create and delete objects through this class. A `Store` holds a URL
and options only. Each process creates its own client on first use, so that stores can be sent to
Ray workers. Nothing is cached: a listing shows what other processes have written.

`preflight` checks before a run which guarantees the store of an output gives.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from pipeline.errors import ConfigError, StoreError
from pipeline.paths import PROBE
from pipeline.redact import has_secret, masked
from pipeline.storage.backend import Backend, Leftover, ObjectInfo
from pipeline.storage.errors import explained
from pipeline.storage.options import StoreOptions
from pipeline.storage.remote_file import RangeReader
from pipeline.storage.retry import RetryPolicy, with_retries

__all__ = ["Guarantees", "ObjectInfo", "Store", "StoreOptions", "read_url", "write_url"]


T = TypeVar("T")

log = logging.getLogger("fcnseg")


@dataclass(frozen=True)
class Guarantees:
    """Guarantees that a store has shown in a test.

    Attributes:
        create_only: `Store.create` does not overwrite an existing object.
        compare_and_swap: `Store.replace` replaces only the version that was named.
    """

    create_only: bool
    compare_and_swap: bool


@dataclass
class Store:
    """The objects below one URL.

    Args:
        url: path or URL of any fsspec protocol; a local path becomes absolute.
        options: options of the connection.

    Raises (every method that reaches the store):
        MissingError: the object, prefix or bucket does not exist.
        StoreError: the store refuses the request (permissions, full disk, no credentials), or
            temporary failures lasted longer than `options.attempts` and `options.retry_seconds`.
    """

    url: str
    options: StoreOptions = field(default_factory=StoreOptions)
    _backend: tuple[int, Backend] | None = field(default=None, repr=False, compare=False)
    _guard: Callable[[], None] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.url:
            raise ConfigError(
                where="an address",
                found="an empty string",
                expected="a path or URL",
                remedy="If the address comes from a variable, set the variable.",
            )
        protocol = get_protocol(self.url)
        if protocol in ("file", "local"):
            path = self.url.removeprefix(f"{protocol}://")
            self.url = os.path.abspath(os.path.expanduser(path))
        elif not _is_known(protocol):
            raise ConfigError(
                where=masked(self.url),
                found=f"protocol {protocol!r}",
                expected="file, s3, gs, az, memory, …",
            )
        elif has_secret(self.url) and protocol not in ("http", "https"):
            raise ConfigError(
                where=masked(self.url),
                found="credentials in a URL",
                expected="a URL without credentials",
                remedy="Put them into the environment: URLs appear in logs and commits.",
            )
        else:
            self.url = self.url.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "options": self.options, "_backend": None, "_guard": None}

    @property
    def is_local(self) -> bool:
        """Whether the objects are local files."""
        return get_protocol(self.url) == "file"

    def overlaps(self, other: Store) -> bool:
        """Return whether two stores are the same place, or one contains the other.

        Symbolic links in local paths are followed.
        """
        here, there = (
            f"{os.path.realpath(store.url) if store.is_local else store.url}/"
            for store in (self, other)
        )
        return here.startswith(there) or there.startswith(here)

    def location(self, path: str) -> str:
        """Return the full address of an object for messages, with credentials masked."""
        return masked(f"{self.url}/{path}" if path else self.url)

    def guarded(self, check: Callable[[], None]) -> Store:
        """Return the same store with a check before every change.

        Args:
            check: called before every attempt of every method that changes objects; raises an
                exception to refuse the change. It is not sent to other processes.
        """
        other = copy.copy(self)
        other._backend, other._guard = self._backend, check
        return other

    def listing(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield all objects below a folder in byte order of their paths; none if it is missing.

        Local folders and S3 are listed page by page. Other stores are listed at once.

        Args:
            prefix: path of the folder below the store; "" for the whole store.
        """
        with explained(self.location(prefix)):
            backend = self._open()
            yield from backend.listing(prefix.strip("/"), self._retry)

    def objects(self, prefix: str = "") -> list[ObjectInfo]:
        """Return all objects below a folder as a list; see `listing`."""
        return list(self.listing(prefix))

    def stat(self, path: str) -> ObjectInfo:
        """Return size, tag and modification time of an object."""
        return self._do(path, lambda backend: backend.stat(path))

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes of an object, or those in [start, end), as a Python slice."""
        return self.read_tagged(path, start, end)[0]

    def read_tagged(
        self, path: str, start: int | None = None, end: int | None = None
    ) -> tuple[bytes, str]:
        """Return the bytes as `read` does, and the tag of the version read."""
        return self._do(path, lambda backend: backend.read(path, start, end))

    def open(self, path: str) -> IO[bytes]:
        """Return an object as a seekable, read-only file; remote objects are fetched in ranges."""
        handle = self._do(path, lambda backend: backend.open(path))
        info = self.stat(path)
        fetch = lambda start, end: self.read_tagged(path, start, end)  # noqa: E731
        return cast(IO[bytes], RangeReader(self.location(path), info, fetch, handle))

    def write(self, path: str, data: bytes) -> str:
        """Write an object atomically, over any existing one, and return its tag."""
        return self._do(path, lambda backend: backend.write(path, data), changes=True)

    def upload(self, path: str, source: Path) -> None:
        """Write a local file as an object, atomically, without holding it in memory."""
        self._do(path, lambda backend: backend.upload(path, source), changes=True)

    def create(self, path: str, data: bytes) -> str | None:
        """Write a new object; return its tag, or None if another object exists at the path.

        If the store supports it (`If-None-Match: *`, hard links), exactly one of several
        concurrent writers of different bytes succeeds. An existing object of equal bytes counts
        as success: it may be ours, written by an attempt whose response was lost. Callers that
        must know whether they were first include a unique value in the bytes.
        """

        def create(backend: Backend) -> str | None:
            return backend.create(path, data) or _tag_of_own(backend, path, data)

        return self._do(path, create, changes=True)

    def replace(self, path: str, data: bytes, tag: str) -> str | None:
        """Write over the version with this tag; return the new tag, or None if it is missing.

        If the store supports it (`If-Match`, locks), exactly one of several concurrent writers of
        different bytes succeeds. Equal bytes count as success, as in `create`.
        """

        def replace(backend: Backend) -> str | None:
            return backend.replace(path, data, tag) or _tag_of_own(backend, path, data)

        return self._do(path, replace, changes=True)

    def delete(self, path: str, tag: str | None = None) -> None:
        """Delete an object if it has this tag (None: any tag); a missing object is not an error."""
        self._do(path, lambda backend: backend.delete(path, tag), changes=True)

    def sweep(self) -> None:
        """Delete temporary files that killed writers left. Only local stores have any."""
        self._do("", lambda backend: backend.sweep(), changes=True)

    def leftovers(self) -> Iterator[Leftover]:
        """Yield unfinished writes of any program: temporary files and multipart uploads."""
        with explained(self.location("")):
            yield from self._open().leftovers(self._retry)

    def discard(self, leftover: Leftover) -> None:
        """Delete an unfinished write; a missing one is not an error."""
        self._do(leftover.path, lambda backend: backend.discard(leftover), changes=True)

    def probe(self) -> Guarantees:
        """Test the guarantees of this store on a temporary object, and use only those from now on.

        Raises:
            StoreError: the store is not writable.
        """
        try:
            return self._probed(f"{PROBE}{uuid.uuid4().hex}")
        except StoreError as error:  # name the store: users do not know the temporary object
            raise error.at(self.location("")) from error

    def _probed(self, path: str) -> Guarantees:
        backend = self._open_explained()
        self.create(path, b"1")
        try:
            backend.atomic_create &= self.create(path, b"2") is None
            tag = self.stat(path).etag
            if backend.atomic_replace:
                kept = self.replace(path, b"3", "0" * len(tag)) is None
                swapped = self.replace(path, b"4", tag) is not None
                backend.atomic_replace &= kept and swapped
        finally:
            self.delete(path)
        return Guarantees(backend.atomic_create, backend.atomic_replace)

    def _do(self, path: str, action: Callable[[Backend], T], *, changes: bool = False) -> T:
        with explained(self.location(path), writes=changes):
            backend = self._open()
            return self._retry(lambda: action(backend), changes=changes)

    def _retry(self, call: Callable[[], T], *, changes: bool = False) -> T:
        policy = RetryPolicy(self.options.attempts, self.options.retry_seconds)
        place = (os.getpid(), *self.url.split("/")[:3])
        before = self._guard if changes else None
        result = with_retries(call, policy, reached=place in _REACHED, before=before)
        _REACHED.add(place)
        return result

    def _open_explained(self) -> Backend:
        with explained(self.location("")):
            return self._open()

    def _open(self) -> Backend:
        # A forked child cannot use the client of its parent: the client's thread was not forked.
        if self._backend is None or self._backend[0] != os.getpid():
            self._backend = (os.getpid(), _connect(self.url, self.options))
        return self._backend[1]


def get_protocol(url: str) -> str:
    """Return the protocol of a URL as fsspec sees it; "file" for a path.

    fsspec's own function is not used, because importing fsspec takes long.

    >>> get_protocol("s3://bucket/a"), get_protocol("a/b.tar"), get_protocol("zip::s3://b/a.zip")
    ('s3', 'file', 'zip')
    """
    parts = re.split("::|://", url, maxsplit=1)
    return parts[0] if len(parts) > 1 else "file"


def _is_known(protocol: str) -> bool:
    if protocol in ("s3", "gs", "az", "memory", "http", "https"):
        return True
    import fsspec

    return protocol in fsspec.available_protocols()


_REACHED: set[tuple[object, ...]] = set()
"""(process id, scheme, "", host) of stores that have answered this process."""


def _connect(url: str, options: StoreOptions) -> Backend:
    # Each client library takes long to import, so only the one that is needed is imported.
    protocol = get_protocol(url)
    if protocol == "file":
        from pipeline.storage.local import LocalBackend

        return LocalBackend(url)
    if protocol in ("s3", "s3a"):
        from pipeline.storage.s3 import S3Backend

        return S3Backend(url, options)
    from pipeline.storage.fsspec import FsspecBackend

    return FsspecBackend(url, options)


def _tag_of_own(backend: Backend, path: str, data: bytes) -> str | None:
    """Return the tag of the object if it has our bytes: the response to our write was lost.

    That can happen without a failed attempt of ours: HTTP clients (aiohttp, by RFC 9112) silently
    repeat a PUT whose connection closed before the response.
    """
    try:
        existing, tag = backend.read(path, None, None)
    except FileNotFoundError:
        return None
    return tag if existing == data else None


def refuse_overlap(target_name: str, target: Store, source_name: str, source: Store) -> None:
    """Refuse a target that contains a source, or that lies within it.

    Args:
        target_name: what the user calls the place that is written: OUTPUT or DEST.
        target: the place that is written.
        source_name: what the user calls the place that is read: INPUT or OUTPUT.
        source: the place that is read.

    Raises:
        ConfigError: the two places overlap.
    """
    if target.overlaps(source):
        raise ConfigError(
            where=target.location(""),
            found=f"{target_name} and {source_name} ({source.location('')}) overlap",
            expected="two separate places, or written files would become input of the next run",
            remedy=f"Choose another {target_name}.",
        )


def read_url(url: str, options: StoreOptions | None = None) -> bytes:
    """Return the bytes of one object, named by its full URL.

    Raises:
        MissingError: the object does not exist.
        StoreError: the object cannot be read.
    """
    place, name = _split(url)
    return Store(place, options or StoreOptions()).read(name)


def write_url(url: str, data: bytes, options: StoreOptions | None = None) -> None:
    """Write one object, named by its full URL, over any existing one.

    Raises:
        ConfigError: the URL names a folder.
        StoreError: the object cannot be written.
    """
    place, name = _split(url)
    if not name:
        raise ConfigError(
            where=url,
            found="a folder",
            expected="the full name of an object",
            remedy="Add a file name.",
        )
    Store(place, options or StoreOptions()).write(name, data)


def _split(url: str) -> tuple[str, str]:
    """Return (URL of the folder, name) of one object."""
    parent, _, name = url.rpartition("/")
    return parent or ("/" if url.startswith("/") else "."), name


def preflight(output: Store) -> None:
    """Test the guarantees that runs rely on, and warn about the missing ones.

    Raises:
        StoreError: the output is not writable.
    """
    guarantees = output.probe()
    if not guarantees.create_only:
        log.warning(
            "%s overwrites an object that should only be created (no If-None-Match): two drivers "
            "that start at the same moment may both run; make sure that only one is started",
            output.location(""),
        )
    if not guarantees.compare_and_swap:
        log.warning(
            "%s cannot replace only one version of an object (no If-Match): two drivers that see "
            "the lease of a dead driver expire at the same moment may both run; make sure that "
            "only one is started",
            output.location(""),
        )
