"""Reading parts of a large object in few requests: a file to walk through, or many ranges.

A request to an object store takes about 30 ms before the first byte, and one stream delivers about
100 MB/s. Therefore neighboring ranges are fetched in one request, several requests run in parallel,
and a reader that makes short jumps reads sequentially instead. `benchmarks/tar_index.py` measures
where that is faster.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.concurrency import map_ordered
from pipeline.errors import ShardError
from pipeline.storage.store import Store

STREAMS = 4
"""Parallel requests for one object."""


HOP = 64 * 2**10
"""Bytes per request after a jump: a header, and often a small file and the next header."""


AHEAD = 8 * 2**20
"""Bytes per request in sequential reading."""


BREAK_EVEN = 2**20
"""Mean length of jumps, in bytes, below which sequential reading is faster."""


_JUMPS = 32
"""Latest jumps of which the mean length is computed."""

MIN_JUMPS = 4
"""Jumps before sequential reading can begin."""


GAP = 256 * 2**10
"""Largest gap in bytes between two ranges of one request."""

SPAN = 16 * 2**20
"""Largest request in bytes for several ranges."""


_MOST = 64 * 2**20
"""Largest single read in bytes: no header is longer, so the length is damaged."""


class RangedObject:
    """One version of an object of the input, read in ranges.

    Args:
        store: INPUT.
        path: path of the object.
        size: bytes, as listed.

    Raises (on reading):
        StoreError: the store failed.
        ShardError: the object was replaced, or is shorter than listed.
    """

    def __init__(self, store: Store, path: str, size: int) -> None:
        self.size = size
        self._store = store
        self._path = path
        self._tag: str | None = None

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes in [start, end), at most up to the end of the object."""
        end = min(end, self.size)
        data, tag = self._store.read_tagged(self._path, start, end)
        self._tag = self._tag or tag
        if len(data) == end - start and tag == self._tag:
            return data
        replaced = "the object was replaced while it was read"
        raise ShardError(
            where=self._store.location(self._path),
            found=replaced if tag != self._tag else f"it ends at {start + len(data)}",
            expected=f"the {self.size} bytes that were listed",
            remedy="Do not change the input during a run. Run again.",
        )


class WalkedFile(io.RawIOBase):
    """An object as a file for a reader that jumps forward from header to header.

    The file measures the jumps. If their mean is below `BREAK_EVEN` bytes, it reads sequentially,
    with `STREAMS` pieces of `AHEAD` bytes fetched in parallel. Otherwise it fetches only what is
    requested. Memory holds at most `STREAMS` + 1 pieces.

    Raises (on reading):
        ValueError: a single read of more than 64 MiB.
        StoreError, ShardError: see `RangedObject`.
    """

    def __init__(self, whole: RangedObject) -> None:
        self._object = whole
        self._size = whole.size
        self._position = 0
        self._start, self._data = 0, b""
        self._jumps: deque[int] = deque(maxlen=_JUMPS)
        self._place = 0
        self._coming: deque[tuple[int, Future[bytes]]] = deque()
        self._pool = ThreadPoolExecutor(STREAMS)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a position and return it; nothing is fetched."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Return `size` bytes, or fewer at the end of the object; by default all that remain."""
        whole = size is None or size < 0
        end = self._size if whole or size is None else min(self._position + size, self._size)
        if end - self._position > _MOST:
            raise ValueError(f"a header of {end - self._position} bytes")
        parts = []
        while self._position < end:
            self._measure()
            skip = self._position - self._start
            if not 0 <= skip < len(self._data):
                self._start, self._data = self._piece(end)
                skip = self._position - self._start
            parts.append(self._data[skip : skip + end - self._position])
            self._position += len(parts[-1])
        return b"".join(parts)

    def close(self) -> None:
        """Cancel the requests that have not started, and close the file."""
        self._pool.shutdown(cancel_futures=True)
        super().close()

    def _measure(self) -> None:
        """Record a jump if a request after the last jump does not contain the position."""
        if not 0 <= self._position - self._place < HOP:
            self._jumps.append(abs(self._position - self._place))
            self._place = self._position

    def _is_sequential(self) -> bool:
        jumps = self._jumps
        return len(jumps) >= MIN_JUMPS and sum(jumps) < BREAK_EVEN * len(jumps)

    def _piece(self, end: int) -> tuple[int, bytes]:
        """Return (start, bytes) of a piece that contains the current position."""
        while self._coming:
            start, future = self._coming.popleft()
            if start <= self._position < start + AHEAD:
                self._read_ahead(self._coming[-1][0] if self._coming else start)
                return start, future.result()
            future.cancel()
        start = self._position
        if not self._is_sequential():
            return start, self._object.read(start, max(end, start + HOP))
        self._read_ahead(start)
        return start, self._object.read(start, start + AHEAD)

    def _read_ahead(self, last: int) -> None:
        """Start requests for the pieces after the one that begins at `last`."""
        while self._is_sequential() and len(self._coming) < STREAMS and last + AHEAD < self._size:
            last += AHEAD
            self._coming.append((last, self._pool.submit(self._object.read, last, last + AHEAD)))


def read_ranges(whole: RangedObject, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return the bytes of many (offset, size) ranges of an object, in the given order.

    Ranges with gaps of at most 256 KiB share a request of at most 16 MiB; a single larger range is
    one request.

    Raises:
        StoreError, ShardError: see `RangedObject`.
    """
    parts = [b""] * len(ranges)

    def read(span: list[int]) -> tuple[list[int], int, bytes]:
        start = ranges[span[0]][0]
        end = max(sum(ranges[index]) for index in span)
        return span, start, whole.read(start, end)

    for span, start, data in map_ordered(read, _spans(ranges), STREAMS):
        for index in span:
            offset, size = ranges[index]
            parts[index] = data[offset - start : offset - start + size]
    return parts


def _spans(ranges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return lists of indices of ranges that share a request; empty ranges are in none."""
    spans: list[list[int]] = []
    start = end = 0
    wanted = [index for index, (_, size) in enumerate(ranges) if size]
    for index in sorted(wanted, key=lambda index: ranges[index]):
        offset, size = ranges[index]
        if spans and offset - end <= GAP and max(end, offset + size) - start <= SPAN:
            spans[-1].append(index)
            end = max(end, offset + size)
        else:
            spans.append([index])
            start, end = offset, offset + size
    return spans
