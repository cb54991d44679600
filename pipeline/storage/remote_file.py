"""A remote object as a seekable file that fetches ranges on demand and reads ahead."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import IO, Any

from pipeline.errors import StoreError
from pipeline.storage.backend import ObjectInfo
from pipeline.storage.errors import explained

AHEAD = 4 * 2**20
"""Bytes per request during sequential reading."""


class RangeReader(io.RawIOBase):
    """One version of an object as a read-only file.

    Args:
        where: address of the object, for messages.
        info: size and tag of the version; another tag during reading is an error.
        fetch: returns the bytes in [start, end) and the tag of their version.
        handle: open file of a local object; None for a remote one.

    Raises (every method):
        MissingError: the object was deleted.
        StoreError: the store failed, or the object was replaced.
    """

    def __init__(
        self,
        where: str,
        info: ObjectInfo,
        fetch: Callable[[int, int], tuple[bytes, str]],
        handle: IO[bytes] | None = None,
    ) -> None:
        self._where = where
        self._info = info
        self._fetch = fetch
        self._handle = handle
        self._position = 0
        self._start = 0
        self._buffer = b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return at most `size` bytes, by default all remaining ones; b"" at the end."""
        wanted = -1 if size is None else size
        if self._handle is not None:
            with explained(self._where):
                return self._handle.read(wanted)
        left = max(0, self._info.size - self._position)
        wanted = left if wanted < 0 else min(wanted, left)
        data = self._take(wanted)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """Return all remaining bytes."""
        return self.read()

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer with the next bytes and return their number."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a position and return it, in bytes from the start."""
        if self._handle is not None:
            return self._handle.seek(offset, whence)
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._info.size}
        self._position = max(0, base[whence] + offset)
        return self._position

    def tell(self) -> int:
        """Return the position in bytes from the start."""
        return self._position if self._handle is None else self._handle.tell()

    def close(self) -> None:
        """Close the local file, if any, and free the buffer."""
        self._buffer = b""
        if self._handle is not None:
            self._handle.close()
        super().close()

    def _take(self, size: int) -> bytes:
        begin = self._position - self._start
        if 0 <= begin and begin + size <= len(self._buffer):
            return self._buffer[begin : begin + size]
        if not size:
            return b""
        # Read ahead only in sequential reading; after a jump, fetch exactly the requested bytes.
        is_sequential = self._position == self._start + len(self._buffer)
        end = self._position + (max(size, AHEAD) if is_sequential else size)
        data, tag = self._fetch(self._position, min(end, self._info.size))
        if tag != self._info.etag:
            raise StoreError(
                where=self._where,
                found="the object was replaced while it was read",
                expected="inputs that do not change during a run",
                remedy="Run the same command again.",
            )
        self._start, self._buffer = self._position, data
        return data[:size]
