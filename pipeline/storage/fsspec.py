"""Objects of whatever else fsspec opens: memory, Google, Azure, HTTP. Guarantees vary with it."""

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

# Comparing and writing are two steps here: at least threads of one process must not mix them.
_LOCK = threading.RLock()

_MOMENTS = ("mtime", "LastModified", "last_modified", "updated", "created")


class FsspecObjects:
    """Objects below a URL of any protocol."""

    def __init__(self, url: str, options: StoreOptions) -> None:
        protocol = get_protocol(url)
        self.fs, root = fsspec.url_to_fs(url, use_listings_cache=False, **_arguments(url, options))
        self.root = root.rstrip("/")
        self.atomic_create = True  # until a probe finds otherwise
        self.atomic_replace = protocol == "memory"  # which lives in one process

    def listing(self, prefix: str, attempt: Attempt) -> Iterator[ObjectInfo]:
        """All objects below a folder; the listing is held in memory to be sorted."""
        base = f"{self.root}/{prefix}".rstrip("/")
        cut = len(self.root) + 1

        def find() -> dict[str, Any]:
            try:
                below = dict(self.fs.find(base, detail=True))
                if not below:  # a walk passes over errors: no connection is no empty folder
                    self.fs.ls(base)
                return below
            except FileNotFoundError:
                return {}

        found = attempt(find)
        for name in sorted(found):
            # `a/` is what consoles put to show an empty folder.
            if found[name]["type"] == "file" and name.startswith(f"{base}/") and name[-1] != "/":
                yield _info(name[cut:], found[name])

    def stat(self, path: str) -> ObjectInfo:
        """Size and tag."""
        return _info(path, self.fs.info(self._at(path)))

    def read(self, path: str, start: int | None, end: int | None) -> tuple[bytes, str]:
        """Bytes in [start, end), and the tag at the time."""
        info = self.stat(path)
        data = bytes(self.fs.cat_file(self._at(path), start=start, end=end))
        if len(data) != len(range(*slice(start, end).indices(info.size))):
            raise TruncatedError(f"{len(data)} bytes of an object of {info.size}")
        return data, info.etag

    def open(self, path: str) -> None:
        """Ranges are read."""

    def write(self, path: str, data: bytes) -> str:
        """Put; whole or not at all where the filesystem does so."""
        with _LOCK:
            self.fs.pipe_file(self._at(path), data)
            return self.stat(path).etag

    def upload(self, path: str, source: Path) -> None:
        """Put as the filesystem puts files: in parts, where it knows any."""
        with _LOCK:
            self.fs.put_file(str(source), self._at(path))

    def create(self, path: str, data: bytes) -> str | None:
        """Put with the filesystem's create mode."""
        with _LOCK:
            try:
                self.fs.pipe_file(self._at(path), data, mode="create")
            except FileExistsError:
                return None
            return self.stat(path).etag

    def replace(self, path: str, data: bytes, tag: str) -> str | None:
        """Compare, then put: two steps."""
        with _LOCK:
            return self.write(path, data) if self._tag(path) == tag else None

    def delete(self, path: str, tag: str | None) -> None:
        """Compare, then remove: two steps."""
        with _LOCK, contextlib.suppress(FileNotFoundError):
            if tag is None or self._tag(path) == tag:
                self.fs.rm_file(self._at(path))

    def sweep(self) -> None:
        """Nothing is ever half-written."""

    def leftovers(self, attempt: Attempt) -> Iterator[Leftover]:
        """None that fsspec could show."""
        del attempt
        yield from ()

    def discard(self, leftover: Leftover) -> None:
        """There are none."""

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}"

    def _tag(self, path: str) -> str | None:
        try:
            return self.stat(path).etag
        except FileNotFoundError:
            return None


def _arguments(url: str, options: StoreOptions) -> dict[str, Any]:
    """What the filesystem of this protocol calls our options."""
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
    # The memory filesystem has numbers in listings and datetimes elsewhere; GCS has texts.
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    modified = moment.timestamp() if isinstance(moment, datetime) else moment
    tag = details.get("ETag") or details.get("etag") or f"{size:x}-{modified}"
    return ObjectInfo(path, size, str(tag).strip('"'), modified)
