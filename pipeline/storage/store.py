"""Objects under one URL: list, read, write, create, delete. All modules speak only these verbs.

A store is a URL and options; the client behind it is made in the process that uses it, so that
stores travel to Ray workers. No listing is cached: what another process wrote is seen.

Before a run writes anything: what does the store of its output really hold?
"""

from __future__ import annotations

import copy
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import fsspec
from fsspec.utils import get_protocol

from pipeline.errors import ConfigError, StoreError
from pipeline.paths import PROBE
from pipeline.redact import has_secret, masked
from pipeline.storage.backend import Leftover, ObjectInfo, Objects
from pipeline.storage.errors import explained
from pipeline.storage.options import StoreOptions
from pipeline.storage.remote_file import RangeReader
from pipeline.storage.retry import RetryPolicy, with_retries

__all__ = ["Guarantees", "ObjectInfo", "Store", "StoreOptions", "read_url", "write_url"]


T = TypeVar("T")


@dataclass(frozen=True)
class Guarantees:
    """What a store was seen to hold.

    Attributes:
        create_only: a put that may only create does not overwrite.
        compare_and_swap: a put that may only replace one version replaces no other.
    """

    create_only: bool
    compare_and_swap: bool


@dataclass
class Store:
    """The objects below one URL.

    Raises (every verb):
        MissingError: the object, prefix or bucket does not exist.
        StoreError: anything else the store refuses: permissions, a full disk, no credentials; or
            what may pass, and did not within the options' attempts and seconds.
    """

    url: str
    options: StoreOptions = field(default_factory=StoreOptions)
    _objects: tuple[int, Objects] | None = field(default=None, repr=False, compare=False)
    _guard: Callable[[], None] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.url:
            raise ConfigError(
                where="an address",
                found="nothing",
                expected="a path or URL",
                remedy="If it is from a variable, that is empty.",
            )
        protocol = get_protocol(self.url)
        if protocol in ("file", "local"):
            path = self.url.removeprefix(f"{protocol}://")
            self.url = os.path.abspath(os.path.expanduser(path))
        elif protocol not in fsspec.available_protocols():
            where, found = masked(self.url), f"protocol {protocol!r}"
            raise ConfigError(where=where, found=found, expected="file, s3, gs, az, memory, …")
        elif has_secret(self.url) and protocol not in ("http", "https"):
            raise ConfigError(
                where=masked(self.url),
                found="credentials in a URL",
                expected="a URL alone",
                remedy="Put them into the environment: URLs end up in logs and commits.",
            )
        else:
            self.url = self.url.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "options": self.options, "_objects": None, "_guard": None}

    @property
    def is_local(self) -> bool:
        """Whether objects are files of this machine."""
        return bool(get_protocol(self.url) == "file")

    def overlaps(self, other: Store) -> bool:
        """Whether one of the two places lies within the other (links followed), or is it."""
        here, there = (
            f"{os.path.realpath(store.url) if store.is_local else store.url}/"
            for store in (self, other)
        )
        return here.startswith(there) or there.startswith(here)

    def location(self, path: str) -> str:
        """The full address of an object, for people; without credentials."""
        return masked(f"{self.url}/{path}" if path else self.url)

    def guarded(self, check: Callable[[], None]) -> Store:
        """The same store for a writer that may lose its right.

        Args:
            check: called before every try of every verb that changes something; raises to refuse.
                Does not travel to other processes.
        """
        other = copy.copy(self)
        other._objects, other._guard = self._objects, check
        return other

    def listing(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects below a folder, in byte order of their whole paths; none if there is none.

        A stream, page by page. Filesystems that are neither S3 nor local are listed at once.
        """
        with explained(self.location(prefix)):
            objects = self._open()
            yield from objects.listing(prefix.strip("/"), self._tried)

    def objects(self, prefix: str = "") -> list[ObjectInfo]:
        """All objects below a folder, at once."""
        return list(self.listing(prefix))

    def stat(self, path: str) -> ObjectInfo:
        """One object's size and tag."""
        return self._do(path, lambda objects: objects.stat(path))

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """The object's bytes, or those in [start, end)."""
        return self.read_tagged(path, start, end)[0]

    def read_tagged(
        self, path: str, start: int | None = None, end: int | None = None
    ) -> tuple[bytes, str]:
        """Bytes as `read` gives them, and the tag of the version they are from."""
        return self._do(path, lambda objects: objects.read(path, start, end))

    def open(self, path: str) -> IO[bytes]:
        """A seekable, read-only file object; remote objects are fetched in ranges."""
        handle = self._do(path, lambda objects: objects.open(path))
        info = self.stat(path)
        fetch = lambda start, end: self.read_tagged(path, start, end)  # noqa: E731
        return cast(IO[bytes], RangeReader(self.location(path), info, fetch, handle))

    def write(self, path: str, data: bytes) -> str:
        """Put an object, whole or not at all, over whatever is there; its new tag."""
        return self._do(path, lambda objects: objects.write(path, data), changes=True)

    def upload(self, path: str, source: Path) -> None:
        """Put a local file as an object, whole or not at all, without holding it in memory."""
        self._do(path, lambda objects: objects.upload(path, source), changes=True)

    def create(self, path: str, data: bytes) -> str | None:
        """Put an object if there is none; its tag, or None if there is another one already.

        Where the store can (`If-None-Match: *`, hard links), exactly one of several writers of
        different bytes wins. Equal bytes are taken for one's own, put by a try whose answer was
        lost: who must know that he was the first puts something of his own into them.
        """

        def create(objects: Objects) -> str | None:
            return objects.create(path, data) or _own(objects, path, data)

        return self._do(path, create, changes=True)

    def replace(self, path: str, data: bytes, tag: str) -> str | None:
        """Put an object over the version of this tag; None if there is another, or none.

        Where the store can (`If-Match`, locks), exactly one of several writers of different bytes
        wins; equal ones as in `create`.
        """

        def replace(objects: Objects) -> str | None:
            return objects.replace(path, data, tag) or _own(objects, path, data)

        return self._do(path, replace, changes=True)

    def delete(self, path: str, tag: str | None = None) -> None:
        """Remove an object, if it has this tag (None: any); one that is not there is no error."""
        self._do(path, lambda objects: objects.delete(path, tag), changes=True)

    def sweep(self) -> None:
        """Remove what writers that were killed left half-written. Only local stores have such."""
        self._do("", lambda objects: objects.sweep(), changes=True)

    def leftovers(self) -> Iterator[Leftover]:
        """What writers, of whatever program, left half-written: files, multipart uploads."""
        with explained(self.location("")):
            yield from self._open().leftovers(self._tried)

    def discard(self, leftover: Leftover) -> None:
        """Remove one of them; one that is not there any more is no error."""
        self._do(leftover.path, lambda objects: objects.discard(leftover), changes=True)

    def probe(self) -> Guarantees:
        """Find out, on an object of its own, what this store holds; that much is used from then on.

        Raises:
            StoreError: nothing can be written here.
        """
        try:
            return self._probed(f"{PROBE}{uuid.uuid4().hex}")
        except StoreError as error:  # of the place: nobody asked for an object of this name
            raise error.at(self.location("")) from error

    def _probed(self, path: str) -> Guarantees:
        objects = self._open_explained()
        self.create(path, b"1")
        try:
            objects.atomic_create &= self.create(path, b"2") is None
            tag = self.stat(path).etag
            if objects.atomic_replace:
                kept = self.replace(path, b"3", "0" * len(tag)) is None
                swapped = self.replace(path, b"4", tag) is not None
                objects.atomic_replace &= kept and swapped
        finally:
            self.delete(path)
        return Guarantees(objects.atomic_create, objects.atomic_replace)

    def _do(self, path: str, action: Callable[[Objects], T], *, changes: bool = False) -> T:
        with explained(self.location(path), writes=changes):
            objects = self._open()
            return self._tried(lambda: action(objects), changes=changes)

    def _tried(self, call: Callable[[], T], *, changes: bool = False) -> T:
        policy = RetryPolicy(self.options.attempts, self.options.retry_seconds)
        place = (os.getpid(), *self.url.split("/")[:3])
        before = self._guard if changes else None
        result = with_retries(call, policy, reached=place in _REACHED, before=before)
        _REACHED.add(place)
        return result

    def _open_explained(self) -> Objects:
        with explained(self.location("")):
            return self._open()

    def _open(self) -> Objects:
        # A forked child must not use its parent's client, whose thread it does not have.
        if self._objects is None or self._objects[0] != os.getpid():
            self._objects = (os.getpid(), _connect(self.url, self.options))
        return self._objects[1]


_REACHED: set[tuple[object, ...]] = set()
"""Stores that answered this process."""


def _connect(url: str, options: StoreOptions) -> Objects:
    # Clients load where they are used: each takes a while.
    protocol = get_protocol(url)
    if protocol == "file":
        from pipeline.storage.local import LocalObjects

        return LocalObjects(url)
    if protocol in ("s3", "s3a"):
        from pipeline.storage.s3 import S3Objects

        return S3Objects(url, options)
    from pipeline.storage.fsspec import FsspecObjects

    return FsspecObjects(url, options)


def _own(objects: Objects, path: str, data: bytes) -> str | None:
    """The tag of an object if it is the very one that was to be put: an answer was lost.

    Not only after a try of ours that failed: HTTP clients (aiohttp, RFC 9112) silently repeat a
    put whose connection closed before the answer.
    """
    try:
        there, tag = objects.read(path, None, None)
    except FileNotFoundError:
        return None
    return tag if there == data else None


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
    """The bytes of one object named by its whole URL.

    Raises:
        MissingError: it does not exist.
        StoreError: it cannot be read.
    """
    place, name = _split(url)
    return Store(place, options or StoreOptions()).read(name)


def write_url(url: str, data: bytes, options: StoreOptions | None = None) -> None:
    """Put one object named by its whole URL, over whatever is there.

    Raises:
        ConfigError: the URL names a folder.
        StoreError: it cannot be written.
    """
    place, name = _split(url)
    if not name:
        raise ConfigError(
            where=url,
            found="a folder",
            expected="the whole name of an object",
            remedy="Add a file name.",
        )
    Store(place, options or StoreOptions()).write(name, data)


def _split(url: str) -> tuple[str, str]:
    """The place and the name of one object."""
    parent, _, name = url.rpartition("/")
    return parent or ("/" if url.startswith("/") else "."), name


log = logging.getLogger("fcnseg")


def preflight(output: Store) -> None:
    """Try the guarantees that runs rest on, and warn of those that the store does not give.

    Raises:
        StoreError: nothing can be written there.
    """
    held = output.probe()
    if not held.create_only:
        log.warning(
            "%s does not refuse to create an object that exists already (no If-None-Match): two "
            "drivers that start in the same moment may both work; keep to one by other means",
            output.location(""),
        )
    if not held.compare_and_swap:
        log.warning(
            "%s cannot replace one version of an object only (no If-Match): two drivers that find "
            "the lease of a dead one run out in the same moment may both take it; keep to one by "
            "other means",
            output.location(""),
        )
