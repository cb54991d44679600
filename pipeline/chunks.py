"""Chunks: a shard's samples, fetched in pieces that fit memory. The unit of work and of retry.

Reading never decodes a picture. What is wrong with a single sample becomes a `Failure` beside the
others; what makes the whole shard unreadable is a `ShardError`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from pipeline.errors import MissingError, SampleError
from pipeline.parquet_input import parquet_entries
from pipeline.samples import Entry, Failure, Sample
from pipeline.shards import Shard, check_key
from pipeline.store import Store
from pipeline.tar_input import tar_entries


@dataclass(frozen=True)
class Chunk:
    """Some samples of one shard: number `seq` of `count`."""

    shard: str
    seq: int
    count: int
    samples: tuple[Sample, ...]
    failures: tuple[Failure, ...] = ()
    seconds: float = 0.0


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


def read_chunks(shard: Shard, sources: Sources, limits: ChunkLimits) -> Iterator[Chunk]:
    """The chunks of a shard, in order; at least one, even of an empty shard.

    Raises:
        ShardError: the shard as a whole cannot be read.
        StoreError: the store fails.
    """
    with ExitStack() as files:
        started = time.perf_counter()
        entries = _entries(shard, sources, limits, files)
        first_with_key = {entry.key: index for index, entry in reversed(list(enumerate(entries)))}
        pieces = split([entry.size for entry in entries], limits)
        for seq, piece in enumerate(pieces):
            samples, failures = [], []
            for index in piece:
                entry = entries[index]
                try:
                    _refuse_duplicate(entry, first=first_with_key[entry.key] == index)
                    _refuse_nested(entry, first_with_key)
                    samples.append(_fetch(entry))
                except (SampleError, MissingError) as error:
                    failures.append(Failure.of(entry.key, error, entry.location))
            seconds = time.perf_counter() - started
            yield Chunk(shard.id, seq, len(pieces), tuple(samples), tuple(failures), seconds)
            started = time.perf_counter()


def count_images(shard: Shard, sources: Sources) -> int:
    """Samples of a shard, from its index alone: tar headers, Parquet metadata.

    Raises:
        ShardError: the shard cannot be read.
    """
    with ExitStack() as files:
        return len(_entries(shard, sources, ChunkLimits(images=1, bytes=0), files))


def split(sizes: Sequence[int], limits: ChunkLimits) -> list[range]:
    """Consecutive index ranges within both limits; a single item over the limit stands alone.

    >>> split([3, 3, 3, 9, 1], ChunkLimits(images=2, bytes=8))
    [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    """
    pieces, start, total = [], 0, 0
    for index, size in enumerate(sizes):
        if index > start and (total + size > limits.bytes or index - start >= limits.images):
            pieces.append(range(start, index))
            start, total = index, 0
        total += size
    if start < len(sizes) or not pieces:
        pieces.append(range(start, len(sizes)))
    return pieces


def _refuse_duplicate(entry: Entry, *, first: bool) -> None:
    if not first:
        raise SampleError(
            entry.location,
            f"a second sample with the key {entry.key!r}",
            "one sample per key in a shard",
            "Rename one of them.",
        )


def _refuse_nested(entry: Entry, keys: Mapping[str, int]) -> None:
    """Masks are `<key>.png`: below key `a.png/b` that would have to be a folder for key `a`."""
    parts = entry.key.split("/")
    for depth in range(1, len(parts)):
        folder = "/".join(parts[:depth])
        if folder.endswith(".png") and folder.removesuffix(".png") in keys:
            raise SampleError(
                entry.location,
                f"the key {entry.key!r} lies below the mask of {folder.removesuffix('.png')!r}",
                "keys whose masks do not collide",
                "Rename one of them.",
            )


def _fetch(entry: Entry) -> Sample:
    problem = check_key(entry.key)
    if problem:
        raise SampleError(
            entry.location,
            f"{problem} ({entry.key!r})",
            "a relative path becomes an object's name",
            "Rename the sample.",
        )
    image, label = entry.load()
    return Sample(entry.key, image, label, entry.location)


def _entries(shard: Shard, sources: Sources, limits: ChunkLimits, files: ExitStack) -> list[Entry]:
    if shard.kind == "tar":
        return tar_entries(shard, sources.images, files, in_memory=shard.size <= limits.bytes)
    if shard.kind == "parquet":
        return parquet_entries(shard, sources.images, files)
    return _folder_entries(shard, sources)


def _folder_entries(shard: Shard, sources: Sources) -> list[Entry]:
    # Sizes are not in the index one by one; the shard's mean is a function of its content too.
    mean = shard.size // max(1, len(shard.members))

    def loader(image: str, label: str | None) -> Callable[[], tuple[bytes, bytes | None]]:
        return lambda: (
            sources.images.read(image),
            sources.labels.read(label) if label is not None else None,
        )

    return [
        Entry(m.key, mean, sources.images.location(m.image), loader(m.image, m.label))
        for m in shard.members
    ]
