"""Local files as objects: hard links for create-only, locks for compare-and-swap."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.storage.backend import Attempt, Leftover, ObjectInfo

TEMPORARY = ".fcnseg-tmp-"

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LocalBackend:
    """Backend for the files below a folder."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.atomic_create = True
        self.atomic_replace = True

    def listing(self, prefix: str, attempt: Attempt) -> Iterator[ObjectInfo]:
        """Yield the files below a folder in byte order of their paths; symbolic links are followed.

        Memory holds only the names in the folders on the current path. `find` of fsspec is not
        used: it ignores symbolic links and takes an unreadable folder for an empty one.
        """
        del attempt  # errors of a local file system are not temporary
        folder = f"{self.root}/{prefix}".rstrip("/") or "/"
        yield from _walk(os.fsencode(folder), len(os.fsencode(self.root)) + 1, ())

    def stat(self, path: str) -> ObjectInfo:
        """Return size, tag and modification time of a file."""
        return _info(path, os.stat(self._at(path)))

    def read(self, path: str, start: int | None, end: int | None) -> tuple[bytes, str]:
        """Return the bytes in [start, end) and the tag of the open file, even if it is replaced."""
        with open(self._at(path), "rb") as handle:
            status = os.fstat(handle.fileno())
            first, last, _ = slice(start, end).indices(status.st_size)
            if first:
                handle.seek(first)
            whole = start is None and end is None
            return handle.read() if whole else handle.read(max(0, last - first)), _tag(status)

    def open(self, path: str) -> IO[bytes]:
        """Open the file for reading."""
        return open(self._at(path), "rb")

    def write(self, path: str, data: bytes) -> str:
        """Write a temporary file in the same folder and rename it."""
        target = Path(self._at(path))
        with _temporary(target, data) as (temporary, tag):
            os.replace(temporary, target)
        return tag

    def upload(self, path: str, source: Path) -> None:
        """Copy to a temporary file in the same folder and rename it."""
        target = Path(self._at(path))
        with _temporary(target, source) as (temporary, _):
            os.replace(temporary, target)

    def create(self, path: str, data: bytes) -> str | None:
        """Write a temporary file and hard-link it to the path, which fails if the path exists."""
        target = Path(self._at(path))
        with _temporary(target, data) as (temporary, tag):
            try:
                os.link(temporary, target)
            except FileExistsError:
                return None
            except OSError as error:
                if error.errno not in _NO_LINKS or not self._lacks_links(target):
                    raise
                if target.exists():
                    return None
                os.replace(temporary, target)
        return tag

    def replace(self, path: str, data: bytes, tag: str) -> str | None:
        """Compare and rename under a lock on the old file, which every replacing process takes.

        After the rename, the path no longer names the locked file. A process that waited for the
        lock detects that and does not replace the new file.
        """
        target = Path(self._at(path))
        with _temporary(target, data) as (temporary, new), contextlib.ExitStack() as files:
            try:
                old = files.enter_context(open(target, "r+b"))
            except FileNotFoundError:
                return None
            fcntl.flock(old, fcntl.LOCK_EX)
            if not _is_still(old, target, tag):
                return None
            os.replace(temporary, target)
        return new

    def delete(self, path: str, tag: str | None) -> None:
        """Delete the file; compare its tag under the lock that `replace` takes."""
        target = Path(self._at(path))
        with contextlib.suppress(FileNotFoundError):
            if tag is None:
                os.remove(target)
                return
            with open(target, "r+b") as old:
                fcntl.flock(old, fcntl.LOCK_EX)
                if _is_still(old, target, tag):
                    os.remove(target)

    def sweep(self) -> None:
        """Delete all temporary files below the folder."""
        for leftover in Path(self.root or "/").rglob(f"{TEMPORARY}*"):
            leftover.unlink(missing_ok=True)

    def leftovers(self, attempt: Attempt) -> Iterator[Leftover]:
        """Yield the temporary files of killed writers."""
        del attempt
        for found in Path(self.root or "/").rglob(f"{TEMPORARY}*"):
            with contextlib.suppress(FileNotFoundError):
                status = found.stat()
                path = found.relative_to(self.root or "/").as_posix()
                yield Leftover(path, status.st_size, status.st_mtime)

    def discard(self, leftover: Leftover) -> None:
        """Delete a temporary file."""
        Path(self._at(leftover.path)).unlink(missing_ok=True)

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}"

    def _lacks_links(self, target: Path) -> bool:
        """Note that creating is not atomic; return False if the cause is a read-only folder.

        EPERM means that the file system has no hard links, or that the folder is not writable.
        """
        self.atomic_create = False
        return os.access(target.parent, os.W_OK)


def _walk(folder: bytes, cut: int, above: tuple[bytes, ...]) -> Iterator[ObjectInfo]:
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that contains it
        return
    for name in _sorted_names(folder):
        path = os.path.join(folder, name)
        if name.endswith(b"/"):
            yield from _walk(path[:-1], cut, (*above, real))
            continue
        with contextlib.suppress(FileNotFoundError):
            yield _info(os.fsdecode(path[cut:]), os.stat(path))


def _sorted_names(folder: bytes) -> list[bytes]:
    """Return the names in a folder in the byte order of full paths.

    Folders end with a slash, so that `a.b` comes before `a/b`.
    """
    names = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    names.append(entry.name + b"/")
                elif entry.is_file() and not entry.name.startswith(TEMPORARY.encode()):
                    names.append(entry.name)
    except (FileNotFoundError, NotADirectoryError):  # missing, or deleted by another process
        return []
    return sorted(names)


def _info(path: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(path, status.st_size, _tag(status), status.st_mtime)


def _tag(status: os.stat_result) -> str:
    return f"{status.st_size:x}-{status.st_mtime_ns:x}"


def _is_still(old: IO[bytes], target: Path, tag: str) -> bool:
    """Return whether the locked file is still at the path and has this tag."""
    locked = os.fstat(old.fileno())
    try:
        there = os.stat(target)
    except FileNotFoundError:
        return False
    return os.path.samestat(locked, there) and _tag(locked) == tag


@contextlib.contextmanager
def _temporary(target: Path, data: bytes | Path) -> Iterator[tuple[Path, str]]:
    """Write a temporary file beside the target, yield it with its tag, and delete it after."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of fixed length: the target's name may have the maximum length of a file name.
    temporary = target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        with open(temporary, "xb") as handle:
            if isinstance(data, Path):
                with open(data, "rb") as source:
                    shutil.copyfileobj(source, handle, 2**20)
            else:
                handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
            tag = _tag(os.fstat(handle.fileno()))
        yield temporary, tag
    finally:
        temporary.unlink(missing_ok=True)
