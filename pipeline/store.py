"""Objects under one URL: list, read, write, create, delete. All modules speak only these verbs.

A store is a URL; the filesystem object behind it is made in the process that uses it, so that
stores travel to Ray workers. No listing is cached: what another process wrote is seen.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

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
        if protocol == "file":
            path = self.url.removeprefix("file://")
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
            try:
                found = fs.find(base, detail=True)
            except FileNotFoundError:
                return []
        infos = (
            _info(name[len(root) :].lstrip("/"), details)
            for name, details in found.items()
            if details["type"] == "file" and _TEMPORARY not in name
        )
        return sorted(info for info in infos if info.path)

    def stat(self, path: str) -> ObjectInfo:
        """One object's size and tag."""
        fs, root = self._open()
        with _explained(self.location(path)):
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
            handle: IO[bytes] = fs.open(f"{root}/{path}", "rb")
        return handle

    def write(self, path: str, data: bytes) -> None:
        """Put an object, whole or not at all, over whatever is there."""
        fs, root = self._open()
        with _explained(self.location(path)):
            if self.is_local:
                temporary = _write_temporary(Path(root, path), data)
                os.replace(temporary, Path(root, path))
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

    def _open(self) -> tuple[Any, str]:
        if self._fs is None:
            with _explained(self.url):
                options = {} if self.is_local else {"use_listings_cache": False}
                self._fs, self._root = fsspec.url_to_fs(self.url, **options)
                self._root = self._root.rstrip("/")
        return self._fs, self._root


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
        tag = f"{size:x}-{moment}"
    return ObjectInfo(path, size, str(tag).strip('"'))


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
