"""Which rows of the table of shards still hold: told by hashes, in tens of bytes a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.bookkeeping.shard_table import DamagedError, Table
from pipeline.commits import PREFIX
from pipeline.store import ObjectInfo

SUFFIX = ".json"
_LIGHT = ("shard", "images", "failures", "masks", "input_etag", "fingerprint", "commit_etag")

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Kinds = dict[tuple[str, frozenset[str]], int]
"""Numbers of the pairs of fingerprint and mask formats that commits have: a few."""


def hashes(texts: Iterable[str], count: int) -> Ints:
    """64 bits of each text, the same within this process.

    Whether a shard is done is decided by two of them at once, its id's and its tag's: of a million
    shards, one is mistaken for another in one of 10^26 runs.
    """
    return np.fromiter(map(hash, texts), np.int64, count)


def committed_shard(path: str) -> str:
    """The shard whose commit is at a path; the other way round, `commit_path`."""
    return path[len(PREFIX) + 1 : -len(SUFFIX)]


class TableIndex:
    """The columns of a table that tell which of its rows hold, sorted by the hash of the shard."""

    def __init__(self, table: Table | None, kinds: Kinds) -> None:
        """Reads the light columns of a table; the kinds of its commits are added to `kinds`.

        Raises:
            DamagedError: they are not as they were written.
        """
        self.rows = np.zeros(0, np.int64)
        parts: list[Ints] = []
        last = None
        for batch in table.batches(_LIGHT) if table is not None else ():
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
        """Places of the rows of listed commits, and which of these rows are of that very commit."""
        count = len(infos)
        if not len(self.keys):
            return np.zeros(count, np.int64), np.zeros(count, np.bool_)
        keys = hashes((committed_shard(info.path) for info in infos), count)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        tags = hashes((info.etag for info in infos), count)
        return places, (self.keys[places] == keys) & (self.commits[places] == tags)
