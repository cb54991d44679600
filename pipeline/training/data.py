"""Labelled samples as a training takes them: streamed, shuffled, the same again after a resume.

The shards of an epoch are read in an order drawn from (seed, epoch). Consecutive chunks of them
make windows of about `shuffle_samples`, and a window is shuffled as a whole: at most two are in
memory, this one and the next. So the place in the stream is four numbers (`Cursor`), and nothing
before it needs to be read again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np

from fcn_core.errors import ImageError
from fcn_core.preprocessing import Preprocessing
from fcn_core.training.batch import NOTHING, Pixels, TrainingBatch, augment, stack
from fcn_core.training.recipes import Recipe
from pipeline.concurrency import map_ordered, prefetch
from pipeline.inputs.sample import Failure, Sample
from pipeline.training.source import TrainingSource, unlabelled

_WINDOW_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Cursor:
    """A place in the stream of samples.

    Attributes:
        epoch: from 0.
        shard: place of the window's first shard in the epoch's order.
        chunk: of that shard, where the window begins.
        offset: samples of the window that have been taken.
    """

    epoch: int = 0
    shard: int = 0
    chunk: int = 0
    offset: int = 0


@dataclass(frozen=True)
class _Window:
    samples: tuple[Sample, ...]
    start: Cursor
    end: Cursor


def stream(
    source: TrainingSource, seed: int, shuffle_samples: int, start: Cursor
) -> Generator[tuple[Sample, Cursor], None, None]:
    """Labelled samples without end, each with the place behind it.

    Raises:
        InputError: an epoch without a single one.
        ShardError, StoreError: the input fails.
    """
    with closing(prefetch(_windows(source, seed, shuffle_samples, start))) as windows:
        skip = start.offset
        for window in windows:
            place = window.start
            order = _shuffled(len(window.samples), seed, place.epoch, place.shard, place.chunk)
            for offset in range(skip, len(order)):
                is_last = offset + 1 == len(order)
                here = Cursor(place.epoch, place.shard, place.chunk, offset + 1)
                yield window.samples[order[offset]], window.end if is_last else here
            skip = 0


def _windows(source: TrainingSource, seed: int, least: int, start: Cursor) -> Iterator[_Window]:
    epoch, first, chunk = start.epoch, start.shard, start.chunk
    while True:
        order = _shuffled(len(source.shards), seed, epoch)
        windows = _epoch(source, order, Cursor(epoch, first, chunk), least)
        found = 0
        for window in windows:
            found += len(window.samples)
            yield window
        if not found and not (first or chunk):
            raise unlabelled(source)
        epoch, first, chunk = epoch + 1, 0, 0


def _epoch(
    source: TrainingSource, order: Sequence[int], start: Cursor, least: int
) -> Iterator[_Window]:
    samples: list[Sample] = []
    size, begin = 0, start
    for place in range(start.shard, len(order)):
        for chunk in source.chunks(source.shards[order[place]]):
            if place == start.shard and chunk.seq < start.chunk:
                continue
            labelled = [sample for sample in chunk.samples if sample.label is not None]
            samples += labelled
            size += sum(len(s.image) + len(s.label or b"") for s in labelled)
            if len(samples) >= least or size >= _WINDOW_BYTES:
                last = chunk.seq + 1 == chunk.count
                end = Cursor(start.epoch, place + last, 0 if last else chunk.seq + 1)
                if last and place + 1 == len(order):
                    end = Cursor(start.epoch + 1)
                yield _Window(tuple(samples), begin, end)
                samples, size, begin = [], 0, end
    if samples:
        yield _Window(tuple(samples), begin, Cursor(start.epoch + 1))


def _shuffled(count: int, *key: int) -> list[int]:
    order: list[int] = np.random.default_rng(key).permutation(count).tolist()
    return order


@dataclass(frozen=True)
class Share:
    """What one of several processes takes of every step, and how it prepares it."""

    recipe: Recipe
    preprocessing: Preprocessing
    seed: int
    rank: int = 0
    size: int = 1
    loaders: int = 2


@dataclass(frozen=True)
class Step:
    """The pictures of a step.

    Attributes:
        number: of all stages together, counted from 1.
        batches: this process's share.
        keys: of all pictures of the step, by slot.
        locations: of all, likewise.
        failures: of this process's share by slot; nothing is learnt from these.
        pixels: that this process's share feeds to the network.
        cursor: the place behind them.
    """

    number: int
    batches: tuple[TrainingBatch, ...]
    keys: tuple[str, ...]
    locations: tuple[str, ...]
    failures: Mapping[int, Failure]
    pixels: int
    cursor: Cursor


@dataclass(frozen=True)
class _Draft:
    number: int
    samples: tuple[Sample, ...]
    cursor: Cursor


def steps(
    source: TrainingSource, samples: Iterator[tuple[Sample, Cursor]], share: Share, first: int
) -> Generator[Step, None, None]:
    """Steps without end: decoded and augmented by threads, a little ahead.

    Args:
        source: decodes.
        samples: of `stream`; taken a batch per step.
        share: of this process.
        first: number of the first step.

    Raises:
        LabelError: a label holds a value that is no class; nothing was learnt from it.
        InputError, ShardError, StoreError: the input fails.
    """
    size, slots = share.recipe.batch_size, range(share.rank, share.recipe.batch_size, share.size)

    def tasks() -> Iterator[tuple[_Draft, int]]:
        number = first
        while True:
            taken = list(islice(samples, size))
            draft = _Draft(number, tuple(sample for sample, _ in taken), taken[-1][1])
            yield from ((draft, slot) for slot in slots)
            number += 1

    def load(task: tuple[_Draft, int]) -> tuple[_Draft, Pixels, Failure | None]:
        draft, slot = task
        sample, failure = draft.samples[slot], None
        try:
            arrays = source.decode(sample)
        except ImageError as error:
            arrays, failure = NOTHING, Failure.of(sample.key, error, sample.location)
        rng = np.random.default_rng((share.seed, draft.number, slot))
        return draft, augment(arrays, share.recipe.augmentation, rng), failure

    with closing(map_ordered(load, tasks(), share.loaders)) as loaded:
        while True:
            mine = list(islice(loaded, len(slots)))
            draft = mine[0][0]
            views = [view for _, view, _ in mine]
            batches = stack(views, slots, share.recipe.augmentation, share.preprocessing)
            yield Step(
                draft.number,
                tuple(batches),
                tuple(sample.key for sample in draft.samples),
                tuple(sample.location for sample in draft.samples),
                {slot: f for slot, (*_, f) in zip(slots, mine, strict=True) if f is not None},
                sum(label.size for _, label in views),
                draft.cursor,
            )
