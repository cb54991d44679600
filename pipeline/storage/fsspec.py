"""Objects of other stores through fsspec: memory, Google, Azure, HTTP. Guarantees vary."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.utils import get_protocol

from pipeline.storage.backend import Attempt, Leftover, ObjectInfo, TruncatedError
from pipeline.storage.options import StoreOptions

# Comparing and writing are two steps: this lock keeps the threads of one process apart.
_LOCK = threading.RLock()

_MOMENTS = ("mtime", "LastModified", "last_modified", "updated", "created")


class FsspecBackend:
    """Backend for the objects below a URL of any fsspec protocol."""

    def __init__(self, url: str, options: StoreOptions) -> None:
        protocol = get_protocol(url)
        self.fs, root = fsspec.url_to_fs(url, use_listings_cache=False, **_arguments(url, options))
        self.root = root.rstrip("/")
        self.atomic_create = True  # until `Store.probe` disproves it
        self.atomic_replace = protocol == "memory"  # lives in one process, so _LOCK suffices

    def listing(self, prefix: str, attempt: Attempt) -> Iterator[ObjectInfo]:
        """Yield all objects below a folder in byte order; memory holds the whole listing."""
        base = f"{self.root}/{prefix}".rstrip("/")
        cut = len(self.root) + 1

        def find() -> dict[str, Any]:
            try:
                below = dict(self.fs.find(base, detail=True))
                if not below:  # find() ignores errors, ls() raises them
                    self.fs.ls(base)
                return below
            except FileNotFoundError:
                return {}

        found = attempt(find)
        for name in sorted(found):
            # Consoles create an empty object `a/` to show an empty folder.
            if found[name]["type"] == "file" and name.startswith(f"{base}/") and name[-1] != "/":
                yield _info(name[cut:], found[name])

    def stat(self, path: str) -> ObjectInfo:
        """Return size, tag and modification time of an object."""
        return _info(path, self.fs.info(self._at(path)))

    def read(self, path: str, start: int | None, end: int | None) -> tuple[bytes, str]:
        """Return the bytes in [start, end), and the tag that the object had just before."""
        info = self.stat(path)
        data = bytes(self.fs.cat_file(self._at(path), start=start, end=end))
        if len(data) != len(range(*slice(start, end).indices(info.size))):
            raise TruncatedError(f"received {len(data)} bytes of an object of {info.size}")
        return data, info.etag

    def open(self, path: str) -> None:
        """Return None: objects are read in ranges."""

    def write(self, path: str, data: bytes) -> str:
        """Write an object and return its tag; atomic if the file system is."""
        with _LOCK:
            self.fs.pipe_file(self._at(path), data)
            return self.stat(path).etag

    def upload(self, path: str, source: Path) -> None:
        """Write a local file with `put_file` of the file system, which may send it in parts."""
        with _LOCK:
            self.fs.put_file(str(source), self._at(path))

    def create(self, path: str, data: bytes) -> str | None:
        """Write a new object with the create mode of the file system."""
        with _LOCK:
            try:
                self.fs.pipe_file(self._at(path), data, mode="create")
            except FileExistsError:
                return None
            return self.stat(path).etag

    def replace(self, path: str, data: bytes, tag: str) -> str | None:
        """Compare the tag, then write: two steps."""
        with _LOCK:
            return self.write(path, data) if self._tag(path) == tag else None

    def delete(self, path: str, tag: str | None) -> None:
        """Compare the tag, then delete: two steps."""
        with _LOCK, contextlib.suppress(FileNotFoundError):
            if tag is None or self._tag(path) == tag:
                self.fs.rm_file(self._at(path))

    def sweep(self) -> None:
        """Do nothing: there are no temporary files."""

    def leftovers(self, attempt: Attempt) -> Iterator[Leftover]:
        """Yield nothing: fsspec does not list unfinished uploads."""
        del attempt
        yield from ()

    def discard(self, leftover: Leftover) -> None:
        """Do nothing: `leftovers` yields nothing."""

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}"

    def _tag(self, path: str) -> str | None:
        try:
            return self.stat(path).etag
        except FileNotFoundError:
            return None


def _arguments(url: str, options: StoreOptions) -> dict[str, Any]:
    """Return our options under the names of the file system of a URL."""
    protocol = get_protocol(url)
    if protocol in ("gs", "gcs"):
        named: dict[str, Any] = {
            "token": "anon" if options.anonymous else None,
            "endpoint_url": options.endpoint_url,
        }
    elif protocol in ("az", "abfs", "abfss", "adl"):
        named = {"anon": True if options.anonymous else None}
    else:
        named = {}
    return {name: value for name, value in named.items() if value is not None}


def _info(path: str, details: dict[str, Any]) -> ObjectInfo:
    size = int(details["size"] or 0)
    moments = (details.get(name) for name in _MOMENTS)
    moment = next((found for found in moments if found), None)
    # The memory file system has numbers in listings and datetimes elsewhere; GCS has strings.
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    modified = moment.timestamp() if isinstance(moment, datetime) else moment
    tag = details.get("ETag") or details.get("etag") or f"{size:x}-{modified}"
    return ObjectInfo(path, size, str(tag).strip('"'), modified)
