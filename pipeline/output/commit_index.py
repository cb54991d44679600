"""The index of all commits of an output, read without opening every commit.

The table of shards, `stats/shards.parquet`, is a cache of the commits. One listing of `_commits/`
shows which of its rows are still valid (`TableIndex`); only commits without a valid row are read,
and their rows are kept in a temporary file (`SpilledRows`). In memory the index (`CommitIndex`)
holds about 40 bytes per commit: hashes of the shard's id and of the input's tag, and the number of
its row. Everything else is read again, batch by batch, when it is needed.
"""

from __future__ import annotations

import tempfile
import weakref
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.concurrency import map_ordered
from pipeline.errors import OutputError
from pipeline.output.commits import Commit
from pipeline.output.shard_table import (
    ROWS,
    SCHEMA,
    DamagedError,
    Entry,
    Table,
    batch_of,
    entries_of,
    open_table,
)
from pipeline.paths import COMMITS, commit_path, committed_shard, is_commit
from pipeline.storage.backend import ObjectInfo
from pipeline.storage.store import Store

_READERS = 16

BatchItem = TypeVar("BatchItem")


class CommitIndex:
    """All commits of an output. Methods name commits by their positions in the index.

    Attributes:
        is_equal_to_table: whether the table in the output has exactly the rows of this index.
    """

    def __init__(self, table: Table | None = None) -> None:
        self._table = table
        self._base = table.rows if table is not None else 0
        self._spill = SpilledRows()
        self._kinds: Kinds = {}
        self._keys = np.zeros(0, np.int64)
        self._tags = np.zeros(0, np.int64)
        self._samples = np.zeros(0, np.int64)
        self._kind = np.zeros(0, np.int64)
        self._row = np.zeros(0, np.int64)
        self._added = array("q")
        self.is_equal_to_table = table is not None

    def __len__(self) -> int:
        return len(self._keys) + len(self._added) // 5

    def __contains__(self, shard: str) -> bool:
        return bool(self.find(hashes((shard,), 1))[0] >= 0)

    def find(self, keys: Ints) -> Ints:
        """Return the positions of the commits of shards, by hashes of their ids; -1: none."""
        self._merge_added()
        if not len(self._keys):
            return np.full(len(keys), -1)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[places] == keys, places, -1)

    def has_input(self, places: Ints, tags: Ints) -> Bools:
        """Return which commits belong to an input with this tag hash. Position -1 gives False."""
        if not len(self._keys):
            return np.zeros(len(places), np.bool_)
        matches: Bools = (places >= 0) & (self._tags[places] == tags)
        return matches

    def holds(self, places: Ints, fingerprint: str | None, masks: Iterable[str]) -> Bools:
        """Return which commits have this fingerprint and all of these mask formats.

        Args:
            places: positions of commits; -1 gives False.
            fingerprint: expected fingerprint; None accepts any.
            masks: names of the required mask formats.
        """
        if not len(self._keys):
            return np.zeros(len(places), np.bool_)
        wanted = set(masks)
        good = [fingerprint in (None, of) and wanted <= has for of, has in self._kinds]
        matches: Bools = (places >= 0) & np.array(good)[self._kind[places]]
        return matches

    def samples(self, places: Ints) -> int:
        """Return the number of images of these commits, including quarantined images."""
        return int(self._samples[places].sum())

    def masks_of(self, places: Ints) -> frozenset[str]:
        """Return the mask formats that any of these commits has."""
        kinds = list(self._kinds)
        return frozenset().union(*(kinds[k][1] for k in np.unique(self._kind[places])))

    def others(self, keys: Ints) -> Ints:
        """Return the positions of all commits except those of these shards, given by hashes."""
        self._merge_added()
        if not len(keys):
            return np.arange(len(self._keys))
        known = np.sort(keys)  # np.isin would need ten times the memory
        places = np.minimum(np.searchsorted(known, self._keys), len(known) - 1)
        return np.flatnonzero(known[places] != self._keys)

    def names(self, places: Ints) -> list[str]:
        """Return the ids of the shards of these commits, sorted."""
        batches = self._select(["shard"], self._row[places])
        return sorted(name for batch in batches for name in batch["shard"].to_pylist())

    def commit_tags(self, shards: Collection[str]) -> dict[str, str]:
        """Return the tags of the commit objects of these shards, if they have one, by shard."""
        places = self.find(hashes(shards, len(shards)))
        rows = self._row[places[places >= 0]]
        tags: dict[str, str] = {}
        for batch in self._select(["shard", "commit_etag"], rows):
            tags.update(zip(*(column.to_pylist() for column in batch.columns), strict=True))
        return {shard: tags[shard] for shard in shards if shard in tags}

    def with_failures(self) -> dict[str, str]:
        """Return the tags of the commits of all shards with quarantined images, by shard."""
        self._merge_added()
        tags: dict[str, str] = {}
        for batch in self._select(["shard", "commit_etag", "failures"], self._row):
            bad = batch.filter(pc.greater(batch["failures"], 0))
            tags.update(zip(bad["shard"].to_pylist(), bad["commit_etag"].to_pylist(), strict=True))
        return dict(sorted(tags.items()))

    def add(self, entry: Entry) -> None:
        """Add a commit. It replaces the earlier commit of the same shard."""
        kind = (entry.fingerprint, frozenset(entry.masks))
        values = (
            hash(entry.shard),
            hash(entry.input_etag),
            entry.images + entry.failures,
            self._kinds.setdefault(kind, len(self._kinds)),
            self._base + len(self._spill),
        )
        self._spill.append(entry)
        self.is_equal_to_table = False
        place = self._old_place(values[0])
        if place is None:
            self._added.extend(values)
        else:
            self._tags[place], self._samples[place], self._kind[place], self._row[place] = values[
                1:
            ]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows of all commits, in the order of their shards.

        Raises:
            DamagedError: the table is damaged; so far only its small columns were checked. Start
                again with `read_commit_index(output, trust_table=False)`.
        """
        self._merge_added()
        new = np.sort(self._row[self._row >= self._base]) - self._base
        if not len(new):
            yield from self._rows_of_table()
            return
        names = [batch["shard"] for batch in self._select(["shard"], self._row)]
        order = pc.sort_indices(pa.chunked_array(names)).to_numpy().astype(np.int64)
        old = len(order) - len(new)
        stream = _EntryStream(self._rows_of_table())
        for start in range(0, len(order), ROWS):
            part = order[start : start + ROWS]
            is_old = part < old
            kept = int(is_old.sum())
            pieces = stream.take(kept)
            if kept < len(part):
                pieces += self._spill.take(new[part[~is_old] - old]).to_batches()
            source = np.empty(len(part), np.int64)
            source[is_old] = np.arange(kept)
            source[~is_old] = np.arange(kept, len(part))
            rows = pa.Table.from_batches(pieces).combine_chunks().take(pa.array(source))
            yield from rows.combine_chunks().to_batches()

    def entries(self) -> Iterator[Entry]:
        """Yield all commits, in the order of their shards.

        Raises:
            DamagedError: as `batches`.
        """
        for batch in self.batches():
            yield from entries_of(batch)

    def keep(self, index: TableIndex, places: Ints) -> None:
        """Add valid rows of the table, by their positions in its index."""
        values = (index.keys, index.tags, index.samples, index.kind, index.rows)
        self._added.frombytes(np.stack([v[places] for v in values], axis=1).tobytes())

    def _old_place(self, key: int) -> int | None:
        place = int(np.searchsorted(self._keys, key))
        return place if place < len(self._keys) and self._keys[place] == key else None

    def _merge_added(self) -> None:
        """Sort the commits that were added since the last call into the arrays."""
        if not len(self._added):
            return
        added = np.frombuffer(self._added, np.int64).reshape(-1, 5).T
        columns = (self._keys, self._tags, self._samples, self._kind, self._row)
        joined = [np.concatenate(pair) for pair in zip(columns, added, strict=True)]
        order = np.argsort(joined[0], kind="stable")
        self._keys, self._tags, self._samples, self._kind, self._row = (c[order] for c in joined)
        self._added = array("q")

    def _select(self, columns: list[str], rows: Ints) -> Iterator[pa.RecordBatch]:
        """Yield columns of rows, in the order of the row numbers.

        Valid only for columns that were checked when the index was read.
        """
        if not len(rows):
            return
        wanted = np.zeros(self._base + len(self._spill), np.bool_)
        wanted[rows] = True
        start = 0
        table = self._table.batches(columns) if wanted[: self._base].any() and self._table else ()
        for batch in table:
            yield batch.filter(pa.array(wanted[start : start + len(batch)]))
            start += len(batch)
        start = self._base
        for batch in self._spill.batches() if wanted[self._base :].any() else ():
            yield batch.select(columns).filter(pa.array(wanted[start : start + len(batch)]))
            start += len(batch)

    def _rows_of_table(self) -> Iterator[pa.RecordBatch]:
        alive, start = np.zeros(self._base, np.bool_), 0
        alive[self._row[self._row < self._base]] = True
        for batch in self._table.batches() if self._table is not None else ():
            kept = batch.filter(pa.array(alive[start : start + len(batch)]))
            start += len(batch)
            if len(kept):
                yield kept


class _EntryStream:
    """A stream of batches from which any number of rows can be taken."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._rest: pa.RecordBatch | None = None

    def take(self, count: int) -> list[pa.RecordBatch]:
        pieces = []
        while count:
            batch = self._rest if self._rest is not None else next(self._batches)
            pieces.append(batch.slice(0, count))
            self._rest = batch.slice(count) if len(batch) > count else None
            count -= len(pieces[-1])
        return pieces


def read_commit_index(output: Store, *, trust_table: bool = True) -> CommitIndex:
    """Return the index of all commits of an output.

    Args:
        output: store of OUTPUT.
        trust_table: whether valid rows of the table of shards replace reading their commits.

    Raises:
        OutputError: a commit cannot be read, or has a later format.
        StoreError: the store fails.
    """
    table = open_table(output) if trust_table else None
    index = CommitIndex(table)
    try:
        cached = TableIndex(table, index._kinds)
    except DamagedError:
        return read_commit_index(output, trust_table=False)

    def list_missing() -> Iterator[ObjectInfo]:
        for infos in _in_batches(_list_commits(output)):
            places, held = cached.held(infos)
            index.keep(cached, places[held])
            yield from (info for info, is_held in zip(infos, held, strict=True) if not is_held)

    def fetch(info: ObjectInfo) -> tuple[ObjectInfo, bytes]:
        return info, output.read(info.path)

    for info, data in map_ordered(fetch, list_missing(), _READERS):
        index.add(Entry.of(_parse_commit(output, info, data), info.etag))
    index.is_equal_to_table &= len(index) == index._base
    return index


def read_commits(output: Store) -> Iterator[Commit]:
    """Yield every commit with the records of its files, in the order of the listing."""
    for info in _list_commits(output):
        yield _parse_commit(output, info, output.read(info.path))


def _list_commits(output: Store) -> Iterator[ObjectInfo]:
    return (info for info in output.listing(COMMITS) if is_commit(info.path))


def _parse_commit(output: Store, info: ObjectInfo, data: bytes) -> Commit:
    where = output.location(info.path)
    commit = Commit.from_json(data, where)
    if commit_path(commit.shard) != info.path:
        raise OutputError(
            where=where,
            found=f"the commit of shard {commit.shard!r}",
            expected=f"the commit of shard {committed_shard(info.path)!r}",
            remedy="Delete it: its shard will be segmented again.",
        )
    return commit


def _in_batches(infos: Iterable[BatchItem]) -> Iterator[list[BatchItem]]:
    batch: list[BatchItem] = []
    for info in infos:
        batch.append(info)
        if len(batch) == ROWS:
            yield batch
            batch = []
    yield batch


_SMALL_COLUMNS = (
    "shard",
    "images",
    "failures",
    "masks",
    "input_etag",
    "fingerprint",
    "commit_etag",
)


Ints = NDArray[np.int64]

Bools = NDArray[np.bool_]

Kinds = dict[tuple[str, frozenset[str]], int]
"""A number for every pair of fingerprint and mask formats that occurs; there are only a few."""


def hashes(texts: Iterable[str], count: int) -> Ints:
    """Return a 64-bit hash of each text, constant within this process.

    A shard counts as done only if two hashes match, of its id and of its tag. For a million shards
    the probability of a false match is about 10^-26.
    """
    return np.fromiter(map(hash, texts), np.int64, count)


class TableIndex:
    """The small columns of a table, sorted by shard hash: they show which rows are valid."""

    def __init__(self, table: Table | None, kinds: Kinds) -> None:
        """Read the small columns of a table, and add the kinds of its commits to `kinds`.

        Raises:
            DamagedError: the columns differ from those that were written.
        """
        self.rows = np.zeros(0, np.int64)
        parts: list[Ints] = []
        last = None
        for batch in table.batches(_SMALL_COLUMNS) if table is not None else ():
            shards = batch["shard"].to_pylist()
            if shards != sorted(set(shards)) or (last is not None and shards[0] <= last):
                raise DamagedError
            last = shards[-1]
            parts.append(self._part(batch, shards, kinds))
        columns = np.concatenate(parts, axis=1) if parts else np.zeros((5, 0), np.int64)
        order = np.argsort(columns[0], kind="stable")
        self.keys, self.tags, self.samples, self.kind, self.commits = columns[:, order]
        self.rows = order

    def _part(self, batch: pa.RecordBatch, shards: list[str], kinds: Kinds) -> Ints:
        count = len(shards)
        of = zip(batch["fingerprint"].to_pylist(), batch["masks"].to_pylist(), strict=True)
        names = [(fingerprint, tuple(masks)) for fingerprint, masks in of]
        codes = {
            name: kinds.setdefault((name[0], frozenset(name[1])), len(kinds)) for name in set(names)
        }
        columns: Ints = np.stack(
            [
                hashes(shards, count),
                hashes(batch["input_etag"].to_pylist(), count),
                pc.add(batch["images"], batch["failures"]).to_numpy(),
                np.fromiter((codes[name] for name in names), np.int64, count),
                hashes(batch["commit_etag"].to_pylist(), count),
            ]
        )
        return columns

    def held(self, infos: Sequence[ObjectInfo]) -> tuple[Ints, Bools]:
        """Return the positions of the rows of listed commits, and which of these rows are valid."""
        count = len(infos)
        if not len(self.keys):
            return np.zeros(count, np.int64), np.zeros(count, np.bool_)
        keys = hashes((committed_shard(info.path) for info in infos), count)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        tags = hashes((info.etag for info in infos), count)
        return places, (self.keys[places] == keys) & (self.commits[places] == tags)


SPILL_ROWS = 1024

_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


class SpilledRows:
    """Rows of the table of shards in temporary files. Appends rows, and reads any of them again.

    The Arrow files have no names: they disappear when the process ends, even if it is killed. A row
    takes about 2.3 KB with 21 classes.
    """

    def __init__(self) -> None:
        self._unwritten: list[Entry] = []
        self._writer: Any = None
        self._file: Any = None
        self._batches: list[tuple[Any, int]] = []
        self._written = 0
        self._ends: list[int] = []

    def __len__(self) -> int:
        return (self._ends[-1] if self._ends else 0) + len(self._unwritten)

    def append(self, entry: Entry) -> None:
        """Append a row."""
        # All rows of a batch have the same number of classes: their scores are computed together.
        if (
            self._unwritten
            and self._unwritten[0].confusion.num_classes != entry.confusion.num_classes
        ):
            self._flush()
        self._unwritten.append(entry)
        if len(self._unwritten) == SPILL_ROWS:
            self._flush()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows, in the order in which they were appended."""
        self._seal()
        for reader, number in self._batches:
            yield reader.get_batch(number)

    def take(self, rows: NDArray[np.int64]) -> pa.Table:
        """Return the rows with these numbers, in this order."""
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
        if not self._unwritten:
            return
        if self._writer is None:
            self._file = tempfile.TemporaryFile(prefix="fcnseg-")
            weakref.finalize(self, self._file.close)
            self._writer = pa.ipc.new_file(self._file, SCHEMA, options=_OPTIONS)
        self._writer.write_batch(batch_of(self._unwritten))
        self._written += 1
        self._ends.append(len(self))
        self._unwritten = []

    def _seal(self) -> None:
        """Make all rows so far readable; later rows go to another file."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
            reader = pa.ipc.open_file(self._file)
            self._batches += [(reader, number) for number in range(self._written)]
            self._writer, self._file, self._written = None, None, 0
