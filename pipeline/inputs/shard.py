"""Shards, and many of them in little memory: a `Shard` is made when it is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.storage.backend import ObjectInfo
from pipeline.storage.store import Store

Kind = Literal["tar", "parquet", "folder"]

_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Member:
    """One image of a virtual shard: its key and the paths of its files below INPUT and LABELS."""

    key: str
    image: str
    label: str | None


@dataclass(frozen=True, slots=True)
class Shard:
    """A unit of commit.

    Attributes:
        id: path below INPUT without the extension, or the name of a virtual shard.
        kind: how its bytes are laid out.
        path: the object below INPUT (empty for a virtual shard).
        size: bytes; of a virtual shard, those of all its images and labels.
        etag: changes when the content does.
        members: of a virtual shard.
    """

    id: str
    kind: Kind
    path: str
    size: int
    etag: str
    members: tuple[Member, ...] = ()


class ShardList(Sequence[Shard]):
    """Objects that are a shard each, by id: about a hundred bytes for one, shared by selections."""

    def __init__(
        self, kind: Literal["tar", "parquet"], columns: pa.RecordBatch, places: NDArray[np.int64]
    ) -> None:
        self._kind = kind
        self._columns = columns
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Shard]:
        cut = -len(self._kind) - 1
        for start in range(0, len(self), _ROWS):
            rows = self._columns.take(pa.array(self._places[start : start + _ROWS]))
            columns = (rows[name].to_pylist() for name in ("path", "size", "etag"))
            for path, size, etag in zip(*columns, strict=True):
                yield Shard(path[:cut], self._kind, path, size, etag)

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> ShardList: ...
    def __getitem__(self, index: int | slice) -> Shard | ShardList:
        if isinstance(index, slice):
            return ShardList(self._kind, self._columns, self._places[index])
        place = self._places[index]
        return next(iter(ShardList(self._kind, self._columns, np.array([place]))))

    @property
    def modified(self) -> NDArray[np.float64]:
        """When each object was last changed, seconds since the epoch; NaN where unknown."""
        found: NDArray[np.float64] = self._columns["modified"].to_numpy()[self._places]
        return found

    def where(self, mask: NDArray[np.bool_]) -> ShardList:
        """Some of them."""
        return ShardList(self._kind, self._columns, self._places[mask])


class ShardListBuilder:
    """Takes objects one by one."""

    def __init__(self, kind: Literal["tar", "parquet"]) -> None:
        self.kind = kind
        self._waiting: list[ObjectInfo] = []
        self._batches: list[pa.RecordBatch] = []
        self._ids: list[pa.Array] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, info: ObjectInfo) -> None:
        """One more."""
        self._count += 1
        self._waiting.append(info)
        if len(self._waiting) == _ROWS:
            self._flush()

    def build(self) -> ShardList:
        """All of them, sorted by id."""
        self._flush()
        order = pc.sort_indices(pa.chunked_array(self._ids, pa.string())).to_numpy()
        columns = pa.concat_batches(self._batches)
        self._ids, self._batches = [], []
        return ShardList(self.kind, columns, order.astype(np.int64))

    def _flush(self) -> None:
        if not self._waiting:
            return
        infos, self._waiting = self._waiting, []
        self._ids.append(pa.array([i.path[: -len(self.kind) - 1] for i in infos], pa.string()))
        moments = [np.nan if info.modified is None else info.modified for info in infos]
        columns = {
            "path": pa.array([info.path for info in infos], pa.string()),
            "size": pa.array([info.size for info in infos], pa.int64()),
            "etag": pa.array([info.etag for info in infos], pa.string()),
            "modified": pa.array(moments, pa.float64()),
        }
        self._batches.append(pa.RecordBatch.from_pydict(columns))


@dataclass(frozen=True)
class ChunkLimits:
    """A shard over either number is split; the split depends on nothing else."""

    images: int
    bytes: int


@dataclass(frozen=True)
class Sources:
    """Where the bytes of a run come from: INPUT and, for a folder of images, its labels."""

    images: Store
    labels: Store
