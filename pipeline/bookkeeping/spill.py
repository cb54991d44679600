"""Rows of the table of shards that no table holds yet: in a temporary file, not in memory."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.bookkeeping.shard_table import SCHEMA, Entry, batch_of

_ROWS = 1024
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


class Spill:
    """Grows row by row; any rows can be taken from it again.

    The files (Arrow, in the directory for temporary files) have no name, so that nothing stays
    behind, however the process ends. About 2.3 KB a row with 21 classes.
    """

    def __init__(self) -> None:
        self._waiting: list[Entry] = []
        self._writer: Any = None
        self._file: Any = None
        self._batches: list[tuple[Any, int]] = []
        self._written = 0
        self._ends: list[int] = []

    def __len__(self) -> int:
        return (self._ends[-1] if self._ends else 0) + len(self._waiting)

    def append(self, entry: Entry) -> None:
        """One more row, the last."""
        # One batch, one number of classes: its scores are computed at once.
        if self._waiting and self._waiting[0].confusion.num_classes != entry.confusion.num_classes:
            self._flush()
        self._waiting.append(entry)
        if len(self._waiting) == _ROWS:
            self._flush()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows."""
        self._seal()
        for reader, number in self._batches:
            yield reader.get_batch(number)

    def take(self, rows: NDArray[np.int64]) -> pa.Table:
        """Some rows, in this order, by their numbers."""
        self._seal()
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        ends = np.array(self._ends, np.int64)
        which = np.searchsorted(ends, ascending, side="right")
        pieces = []
        for index in np.unique(which):
            reader, number = self._batches[index]
            first = ends[index - 1] if index else 0
            pieces.append(
                reader.get_batch(number).take(pa.array(ascending[which == index] - first))
            )
        inverse = np.empty(len(rows), np.int64)
        inverse[order] = np.arange(len(rows))
        return pa.Table.from_batches(pieces, SCHEMA).combine_chunks().take(pa.array(inverse))

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._writer is None:
            self._file = tempfile.TemporaryFile(prefix="fcnseg-")
            weakref.finalize(self, self._file.close)
            self._writer = pa.ipc.new_file(self._file, SCHEMA, options=_OPTIONS)
        self._writer.write_batch(batch_of(self._waiting))
        self._written += 1
        self._ends.append(len(self))
        self._waiting = []

    def _seal(self) -> None:
        """What was written so far can be read; what comes goes to another file."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
            reader = pa.ipc.open_file(self._file)
            self._batches += [(reader, number) for number in range(self._written)]
            self._writer, self._file, self._written = None, None, 0
