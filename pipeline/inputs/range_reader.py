"""Parts of a large object: a file to walk through, and many ranges at once, in few requests.

A request to an object store costs some 30 ms before the first byte, and one stream brings about
100 MB/s. So ranges that lie close together are fetched as one, several requests are under way at
once, and whoever walks from header to header reads on instead of jumping when the jumps are short.
`benchmarks/tar_index.py` measures where that pays.
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
"""Requests under way at once, for one object."""


HOP = 64 * 2**10
"""Bytes fetched at the end of a jump: a header, and often a small file and the next header."""


AHEAD = 8 * 2**20
"""Bytes of one request when reading on."""


BREAK_EVEN = 2**20
"""Jumps that are shorter on average are not worth their round trips."""


_SEEN = 32

_ENOUGH = 4


_GAP = 256 * 2**10

_SPAN = 16 * 2**20


_MOST = 64 * 2**20
"""No header is as long: a single read of more is a damaged length."""


class RangedObject:
    """One version of an object of the input, whose parts are fetched.

    Raises (on reading):
        StoreError: the store fails.
        ShardError: the object was replaced, or is shorter than it was when it was listed.
    """

    def __init__(self, store: Store, path: str, size: int) -> None:
        self.size = size
        self._store = store
        self._path = path
        self._tag: str | None = None

    def read(self, start: int, end: int) -> bytes:
        """The bytes in [start, end), cut at the object's end."""
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
            remedy="Leave the input as it is during a run, and run again.",
        )


class WalkedFile(io.RawIOBase):
    """An object as a file for readers that go forwards from place to place.

    It measures how far apart the places are. Up to `BREAK_EVEN` bytes on average it fetches the
    object from there on, `STREAMS` pieces at once; beyond, only what is asked for. At most
    `STREAMS` + 1 pieces are held.

    Raises (on reading):
        ValueError: more than 64 MiB are asked for at once.
        StoreError, ShardError: see `RangedObject`.
    """

    def __init__(self, whole: RangedObject) -> None:
        self._object = whole
        self._size = whole.size
        self._position = 0
        self._start, self._data = 0, b""
        self._jumps: deque[int] = deque(maxlen=_SEEN)
        self._place = 0
        self._coming: deque[tuple[int, Future[bytes]]] = deque()
        self._pool = ThreadPoolExecutor(STREAMS)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The present position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move; nothing is fetched."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """That many bytes, fewer only at the end."""
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
        """Give up what is under way."""
        self._pool.shutdown(cancel_futures=True)
        super().close()

    def _measure(self) -> None:
        """Note a jump whenever what is read lies beyond what a jump to the last place brought."""
        if not 0 <= self._position - self._place < HOP:
            self._jumps.append(abs(self._position - self._place))
            self._place = self._position

    def _reads_on(self) -> bool:
        jumps = self._jumps
        return len(jumps) >= _ENOUGH and sum(jumps) < BREAK_EVEN * len(jumps)

    def _piece(self, end: int) -> tuple[int, bytes]:
        """(start, bytes) of a piece that holds the present position."""
        while self._coming:
            start, future = self._coming.popleft()
            if start <= self._position < start + AHEAD:
                self._read_ahead(self._coming[-1][0] if self._coming else start)
                return start, future.result()
            future.cancel()
        start = self._position
        if not self._reads_on():
            return start, self._object.read(start, max(end, start + HOP))
        self._read_ahead(start)
        return start, self._object.read(start, start + AHEAD)

    def _read_ahead(self, last: int) -> None:
        """Have the pieces behind the one that begins at `last` fetched."""
        while self._reads_on() and len(self._coming) < STREAMS and last + AHEAD < self._size:
            last += AHEAD
            self._coming.append((last, self._pool.submit(self._object.read, last, last + AHEAD)))


def read_ranges(whole: RangedObject, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of many (offset, size) ranges of an object, in the order they are named.

    Neighbours are fetched in one request, up to 256 KiB that nobody wants between two; requests
    are of at most 16 MiB, but for a single range that is larger.

    Raises:
        StoreError, ShardError: see `RangedObject`.
    """
    found = [b""] * len(ranges)

    def read(span: list[int]) -> tuple[list[int], int, bytes]:
        start = ranges[span[0]][0]
        end = max(sum(ranges[index]) for index in span)
        return span, start, whole.read(start, end)

    for span, start, data in map_ordered(read, _spans(ranges), STREAMS):
        for index in span:
            offset, size = ranges[index]
            found[index] = data[offset - start : offset - start + size]
    return found


def _spans(ranges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Indices of the ranges that are fetched together. Empty ranges are not fetched at all."""
    spans: list[list[int]] = []
    start = end = 0
    wanted = [index for index, (_, size) in enumerate(ranges) if size]
    for index in sorted(wanted, key=lambda index: ranges[index]):
        offset, size = ranges[index]
        if spans and offset - end <= _GAP and max(end, offset + size) - start <= _SPAN:
            spans[-1].append(index)
            end = max(end, offset + size)
        else:
            spans.append([index])
            start, end = offset, offset + size
    return spans
