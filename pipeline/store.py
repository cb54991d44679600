"""Objects under one URL: list, read, write, create, delete. All modules speak only these verbs.

A store is a URL; the filesystem object behind it is made in the process that uses it, so that
stores travel to Ray workers. No listing is cached: what another process wrote is seen.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

import fsspec
from fsspec.utils import get_protocol

from pipeline.errors import ConfigError, MissingError, StoreError

_TEMPORARY = ".fcnseg-tmp-"
_CONFLICT_TRIES = 5


@dataclass(frozen=True, order=True)
class ObjectInfo:
    """An object: its path below the store's URL, its size, a tag that changes with its content.

    The tag is the store's ETag, or size and modification time where there is none.
    """

    path: str
    size: int
    etag: str


@dataclass
class Store:
    """The objects below one URL.

    Raises (every verb):
        MissingError: the object, prefix or bucket does not exist.
        StoreError: anything else the store refuses: permissions, a full disk, no credentials.
    """

    url: str
    _fs: Any = field(default=None, repr=False, compare=False)
    _root: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        protocol = get_protocol(self.url)
        if protocol in ("file", "local"):
            path = self.url.removeprefix(f"{protocol}://")
            self.url = os.path.abspath(os.path.expanduser(path))
        elif protocol not in fsspec.available_protocols():
            raise ConfigError(self.url, f"protocol {protocol!r}", "file, s3, gs, az, memory, …")
        else:
            self.url = self.url.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_fs": None, "_root": ""}

    @property
    def is_local(self) -> bool:
        """Whether objects are files of this machine."""
        return bool(get_protocol(self.url) == "file")

    def location(self, path: str) -> str:
        """The full address of an object, for people."""
        return f"{self.url}/{path}" if path else self.url

    def objects(self, prefix: str = "") -> list[ObjectInfo]:
        """All objects below a prefix (a folder), by path; empty when there is none."""
        fs, root = self._open()
        base = f"{root}/{prefix.strip('/')}".rstrip("/")
        with _explained(self.location(prefix)):
            if self.is_local:
                return sorted(_local_objects(base or "/", len(root) + 1))
            try:
                found = fs.find(base, detail=True)
            except FileNotFoundError:
                return []
        return sorted(
            _info(name[len(root) + 1 :], details)
            for name, details in found.items()
            # `a/` is what consoles put to show an empty folder.
            if details["type"] == "file" and name.startswith(f"{base}/") and name[-1] != "/"
        )

    def stat(self, path: str) -> ObjectInfo:
        """One object's size and tag."""
        fs, root = self._open()
        with _explained(self.location(path)):
            if self.is_local:
                return _local_info(path, os.stat(f"{root}/{path}"))
            return _info(path, fs.info(f"{root}/{path}"))

    def read(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """The object's bytes, or those in [start, end)."""
        fs, root = self._open()
        with _explained(self.location(path)):
            return bytes(fs.cat_file(f"{root}/{path}", start=start, end=end))

    def open(self, path: str) -> IO[bytes]:
        """A seekable, read-only file object."""
        fs, root = self._open()
        with _explained(self.location(path)):
            return cast(IO[bytes], _Reader(fs.open(f"{root}/{path}", "rb"), self.location(path)))

    def write(self, path: str, data: bytes) -> None:
        """Put an object, whole or not at all, over whatever is there."""
        fs, root = self._open()
        with _explained(self.location(path)):
            if self.is_local:
                _replace(Path(root, path), data)
            else:
                fs.pipe_file(f"{root}/{path}", data)

    def create(self, path: str, data: bytes) -> bool:
        """Put an object if there is none; False if there is one already.

        Where the store can (`If-None-Match: *`, hard links), exactly one of several writers wins.
        """
        fs, root = self._open()
        with _explained(self.location(path)):
            if self.is_local:
                return _link_new(Path(root, path), data)
            for attempt in range(_CONFLICT_TRIES):
                try:
                    fs.pipe_file(f"{root}/{path}", data, mode="create")
                    return True
                except OSError as error:
                    code = _response_code(error)
                    if isinstance(error, FileExistsError) or code == 412:
                        return False
                    if code != 409 or attempt == _CONFLICT_TRIES - 1:
                        raise
                time.sleep(0.1 * 2**attempt)  # 409: another conditional put is under way
        raise AssertionError("unreachable")

    def delete(self, path: str) -> None:
        """Remove an object; one that is not there is no error."""
        fs, root = self._open()
        with _explained(self.location(path)), contextlib.suppress(FileNotFoundError):
            fs.rm_file(f"{root}/{path}")

    def sweep(self) -> None:
        """Remove what writers that were killed left half-written. Only local stores have such."""
        if self.is_local:
            for leftover in Path(self.url).rglob(f"{_TEMPORARY}*"):
                leftover.unlink(missing_ok=True)

    def _open(self) -> tuple[Any, str]:
        if self._fs is None:
            with _explained(self.url):
                options = {} if self.is_local else {"use_listings_cache": False}
                fs, root = fsspec.url_to_fs(self.url, **options)
                # In this order: another thread may look between the two.
                self._root = root.rstrip("/")
                self._fs = fs
        return self._fs, self._root


class _Reader(io.RawIOBase):
    """A file object whose failures are explained as those of the verbs are."""

    def __init__(self, handle: IO[bytes], where: str) -> None:
        self._handle = handle
        self._where = where

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        with _explained(self._where):
            return self._handle.read(-1 if size is None else size)

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._handle.seek(offset, whence)

    def tell(self) -> int:
        return self._handle.tell()

    def close(self) -> None:
        if not self.closed:
            self._handle.close()
        super().close()


def read_url(url: str) -> bytes:
    """The bytes of one object named by its whole URL.

    Raises:
        MissingError: it does not exist.
        StoreError: it cannot be read.
    """
    parent, _, name = url.rpartition("/")
    return Store(parent or ("/" if url.startswith("/") else ".")).read(name)


def _info(path: str, details: dict[str, Any]) -> ObjectInfo:
    size = int(details["size"] or 0)
    tag = details.get("ETag") or details.get("etag")
    if not tag:
        moment = details.get("mtime") or details.get("LastModified") or details.get("created")
        # The memory filesystem has numbers in listings and datetimes elsewhere.
        tag = f"{size:x}-{moment.timestamp() if isinstance(moment, datetime) else moment}"
    return ObjectInfo(path, size, str(tag).strip('"'))


def _local_info(path: str, stat: os.stat_result) -> ObjectInfo:
    return ObjectInfo(path, stat.st_size, f"{stat.st_size:x}-{stat.st_mtime_ns:x}")


def _local_objects(folder: str, cut: int, above: tuple[str, ...] = ()) -> Iterator[ObjectInfo]:
    """Files below a folder, links followed.

    Not `fs.find`, which knows no links and takes a folder that it may not read for an empty one.
    """
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that it is in
        return
    try:
        with os.scandir(folder) as listed:
            entries = list(listed)
    except (FileNotFoundError, NotADirectoryError):  # none, or just removed
        return
    for entry in entries:
        if entry.is_dir():
            yield from _local_objects(entry.path, cut, (*above, real))
        elif entry.is_file() and not entry.name.startswith(_TEMPORARY):
            with contextlib.suppress(FileNotFoundError):
                yield _local_info(entry.path[cut:], entry.stat())


def _write_temporary(target: Path, data: bytes) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    # The name does not grow with the target's: a key may be as long as a file name can be.
    temporary = target.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
    try:
        with open(temporary, "xb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _replace(target: Path, data: bytes) -> None:
    temporary = _write_temporary(target, data)
    try:
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _link_new(target: Path, data: bytes) -> bool:
    temporary = _write_temporary(target, data)
    try:
        os.link(temporary, target)
        return True
    except FileExistsError:
        return False
    finally:
        temporary.unlink()


def _response_code(error: BaseException) -> int | None:
    """The HTTP status behind a filesystem error: s3fs maps one status to several classes."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return int(status) if status else None
        cause = cause.__cause__ or cause.__context__
    return None


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn what filesystems raise into our errors, once, here."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingError(
            where, "nothing there", "an existing object", "Check the spelling and the bucket."
        ) from error
    except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise StoreError(
            where,
            f"a file where a folder is needed, or the other way round ({error})",
            "a path of the right kind",
            "Name another place.",
        ) from error
    except PermissionError as error:
        raise StoreError(
            where,
            f"permission denied ({error})",
            "the right to do this",
            "Check the credentials in the environment and the policy of the bucket or folder.",
        ) from error
    except OSError as error:
        raise StoreError(
            where,
            f"the store failed ({error})",
            "a working store",
            "Run the same command again when it works: nothing committed is lost.",
        ) from error
    except ImportError as error:
        raise StoreError(
            where,
            f"{error}",
            "the filesystem package for this protocol",
            "Install it: pip install 'fcn-pipeline[gcs]' or 'fcn-pipeline[azure]'.",
        ) from error
    except Exception as error:
        # botocore's own errors (no credentials, no endpoint) share no base class with OSError.
        if type(error).__module__.split(".")[0] not in ("botocore", "aiobotocore", "aiohttp"):
            raise
        raise StoreError(
            where,
            f"{type(error).__name__}: {error}",
            "a reachable store and credentials",
            "Set them in the environment (for S3: AWS_PROFILE or AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL).",
        ) from error
