"""The read stage: split a shard into chunks that fit in memory, and fetch their samples.

A chunk is the unit of work and of retry. Images are not decoded here. A problem of one sample
becomes a `Failure` in its chunk; a problem of the whole shard raises `ShardError`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from fcn_core.errors import FcnError
from pipeline.concurrency import map_ordered
from pipeline.errors import MissingError, SampleError
from pipeline.inputs.listing import check_key
from pipeline.inputs.parquet import ParquetIndex
from pipeline.inputs.range_reader import STREAMS
from pipeline.inputs.sample import EncodedSample, Failure, Sample, SampleIndex
from pipeline.inputs.shard import ChunkLimits, Shard, Sources
from pipeline.inputs.tar import TarIndex
from pipeline.storage import retry


@dataclass(frozen=True)
class Chunk:
    """Encoded samples of a part of a shard.

    Attributes:
        shard: id of the shard.
        seq: number of the chunk within the shard, from 0.
        count: number of chunks of the shard.
        samples: samples that were read, in the order of the shard.
        failures: samples that could not be read, or whose keys are refused.
        seconds: time that reading took.
        store_retries: store requests that were sent again.
    """

    shard: str
    seq: int
    count: int
    samples: tuple[Sample, ...]
    failures: tuple[Failure, ...] = ()
    seconds: float = 0.0
    store_retries: int = 0


def read_chunks(shard: Shard, sources: Sources, limits: ChunkLimits) -> Iterator[Chunk]:
    """Yield the chunks of a shard, in order; at least one, even for an empty shard.

    Raises:
        ShardError: the shard as a whole cannot be read.
        StoreError: the store fails.
    """
    with ExitStack() as files:
        started = time.perf_counter()
        index = _index(shard, sources, limits, files)
        refuse = _Refusals(index)
        pieces = split(index.sizes, limits)
        for seq, piece in enumerate(pieces):
            # No local name for the chunk: it would stay in memory while the next one is read.
            yield _read_piece(Chunk(shard.id, seq, len(pieces), ()), index, piece, refuse, started)
            started = time.perf_counter()


def count_images(shard: Shard, sources: Sources) -> int:
    """Return the number of samples in a shard, from tar headers or Parquet metadata alone.

    Raises:
        ShardError: the shard cannot be read.
    """
    with ExitStack() as files:
        return len(_index(shard, sources, ChunkLimits(images=1, bytes=0), files).keys)


def split(sizes: Sequence[int], limits: ChunkLimits) -> list[range]:
    """Split items into consecutive index ranges within both limits.

    An item that alone exceeds `limits.bytes` gets a range of its own.

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


def _read_piece(
    empty: Chunk, index: SampleIndex, piece: range, refuse: _Refusals, started: float
) -> Chunk:
    problems = {number: refuse.problem(number) for number in piece}
    fetched = index.fetch([number for number, problem in problems.items() if problem is None])
    samples, failures = [], []
    for number, problem in problems.items():
        result = next(fetched) if problem is None else problem
        key, location = index.keys[number], index.location(number)
        if isinstance(result, FcnError):
            failures.append(Failure.of(key, result, location))
        else:
            samples.append(Sample(key, *result, location))
    seconds = time.perf_counter() - started
    return replace(
        empty,
        samples=tuple(samples),
        failures=tuple(failures),
        seconds=seconds,
        store_retries=retry.drain(),
    )


class _Refusals:
    """Samples whose keys cannot become object names: keys that collide, and invalid paths."""

    def __init__(self, index: SampleIndex) -> None:
        self.index = index
        self.first: dict[str, int] = {}
        for number, key in enumerate(index.keys):
            self.first.setdefault(key, number)

    def problem(self, number: int) -> SampleError | None:
        """Return the error for the key of a sample; None if the key is valid."""
        key = self.index.keys[number]
        if self.first[key] != number:
            found, expected = f"a second sample with the key {key!r}", "one sample per key"
            return self._error(number, found, f"{expected} in a shard", "Rename one of them.")
        folder = self._nested(key)
        if folder is not None:
            found = f"the key {key!r} lies below the mask of {folder!r}"
            expected = "keys whose masks do not collide"
            return self._error(number, found, expected, "Rename one of them.")
        problem = check_key(key)
        if problem is not None:
            expected = "a relative path becomes an object's name"
            return self._error(number, f"{problem} ({key!r})", expected, "Rename the sample.")
        return None

    def _nested(self, key: str) -> str | None:
        """Return the key whose mask would have to be a folder for the mask of this key.

        Masks are `<key>.png`, so the mask of `a` is the folder of the mask of `a.png/b`.
        """
        parts = key.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder.endswith(".png") and folder.removesuffix(".png") in self.first:
                return folder.removesuffix(".png")
        return None

    def _error(self, number: int, found: str, expected: str, remedy: str) -> SampleError:
        return SampleError(
            where=self.index.location(number), found=found, expected=expected, remedy=remedy
        )


def _index(shard: Shard, sources: Sources, limits: ChunkLimits, files: ExitStack) -> SampleIndex:
    in_memory = shard.size <= limits.bytes
    if shard.kind == "tar":
        return TarIndex(shard, sources.images, in_memory=in_memory)
    if shard.kind == "parquet":
        return ParquetIndex(shard, sources.images, files, in_memory=in_memory)
    return _FolderIndex(shard, sources)


class _FolderIndex:
    """The images of a virtual shard, each an object of its own."""

    def __init__(self, shard: Shard, sources: Sources) -> None:
        self.members, self.sources = shard.members, sources
        self.keys = [member.key for member in shard.members]
        # The index lacks the sizes of single images. Their mean depends on the content alone, too.
        self.sizes = [shard.size // max(1, len(shard.members))] * len(shard.members)

    def location(self, number: int) -> str:
        return self.sources.images.location(self.members[number].image)

    def fetch(self, numbers: Sequence[int]) -> Iterator[EncodedSample | FcnError]:
        return map_ordered(self._read, numbers, STREAMS)

    def _read(self, number: int) -> EncodedSample | FcnError:
        member, sources = self.members[number], self.sources
        try:
            label = sources.labels.read(member.label) if member.label is not None else None
            return sources.images.read(member.image), label
        except MissingError as error:
            return error
