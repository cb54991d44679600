"""Shards, the units of commit, and `ShardList`, which holds millions of them in little memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, overload

import numpy as np

from pipeline.storage.backend import ObjectInfo
from pipeline.storage.store import Store

if TYPE_CHECKING:
    import pyarrow as pa  # imported in the functions that need it: that takes long
    from numpy.typing import NDArray

Kind = Literal["tar", "parquet", "folder"]

ROWS_PER_BATCH = 8192


@dataclass(frozen=True, slots=True)
class Member:
    """One image of a virtual shard.

    Attributes:
        key: key of the sample.
        image: path of the image below INPUT.
        label: path of the label below the store of labels; None without a label.
    """

    key: str
    image: str
    label: str | None


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of an input that is segmented and committed as a whole.

    A shard is one object, or a virtual shard: a fixed group of images in a folder.

    Attributes:
        id: path below INPUT without the extension, or the name of a virtual shard.
        kind: file format: "tar", "parquet", or "folder" for a virtual shard.
        path: path of the object below INPUT; "" for a virtual shard.
        size: bytes of the object, or of all images and labels of a virtual shard.
        etag: tag that changes with the content.
        members: images of a virtual shard; empty for an object.
    """

    id: str
    kind: Kind
    path: str
    size: int
    etag: str
    members: tuple[Member, ...] = ()


class ShardList(Sequence[Shard]):
    """Shards of one object each, sorted by id, as an immutable sequence.

    Arrow columns hold about 100 bytes per shard. A `Shard` is created on access. Slices and
    selections share the columns of the whole list.

    Args:
        kind: kind of all shards.
        columns: path, size, etag and modified of each object, in any order.
        places: rows of `columns` that are in this list, in the order of the list.
    """

    def __init__(
        self, kind: Literal["tar", "parquet"], columns: pa.RecordBatch, places: NDArray[np.int64]
    ) -> None:
        self._kind = kind
        self._columns = columns
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Shard]:
        import pyarrow as pa

        cut = -len(self._kind) - 1
        for start in range(0, len(self), ROWS_PER_BATCH):
            rows = self._columns.take(pa.array(self._places[start : start + ROWS_PER_BATCH]))
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
        """Modification time of each object in seconds since the epoch, (N,); NaN if unknown."""
        modified: NDArray[np.float64] = self._columns["modified"].to_numpy()[self._places]
        return modified

    def where(self, mask: NDArray[np.bool_]) -> ShardList:
        """Return the shards for which a mask, (N,), is True."""
        return ShardList(self._kind, self._columns, self._places[mask])


class ShardListBuilder:
    """Builds a `ShardList` from objects that are added one by one.

    Args:
        kind: kind of the shards; also the extension of the objects.
    """

    def __init__(self, kind: Literal["tar", "parquet"]) -> None:
        self.kind = kind
        self._waiting: list[ObjectInfo] = []
        self._batches: list[pa.RecordBatch] = []
        self._ids: list[pa.Array] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, info: ObjectInfo) -> None:
        """Add an object."""
        self._count += 1
        self._waiting.append(info)
        if len(self._waiting) == ROWS_PER_BATCH:
            self._flush()

    def build(self) -> ShardList:
        """Return all added objects as shards, sorted by id."""
        import pyarrow as pa
        import pyarrow.compute as pc

        self._flush()
        order = pc.sort_indices(pa.chunked_array(self._ids, pa.string())).to_numpy()
        columns = pa.concat_batches(self._batches)
        self._ids, self._batches = [], []
        return ShardList(self.kind, columns, order.astype(np.int64))

    def _flush(self) -> None:
        import pyarrow as pa

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
    """Largest chunk. A shard above either limit is split; the split depends only on the limits.

    Attributes:
        images: images per chunk.
        bytes: encoded bytes per chunk.
    """

    images: int
    bytes: int


@dataclass(frozen=True)
class Sources:
    """Stores that a run reads samples from.

    Attributes:
        images: INPUT.
        labels: store of the labels of a folder of images; else INPUT.
    """

    images: Store
    labels: Store
