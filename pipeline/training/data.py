"""Stream labeled samples to a training: shuffled, and in the same order after a resume.

The shards of an epoch are read in a random order that depends on (seed, epoch). Consecutive chunks
form windows of about `shuffle_samples` samples, and each window is shuffled as a whole. At most two
windows are in memory, the current one and the next. A position in the stream is four numbers
(`Cursor`), so a resume reads nothing before this position.
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
from pipeline.training.source import TrainingSource, no_labels_error

_WINDOW_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Cursor:
    """A position in the stream of samples.

    Attributes:
        epoch: number of the epoch, from 0.
        shard: index of the window's first shard in the order of the epoch.
        chunk: first chunk of the window in this shard.
        offset: number of samples already taken from the window.
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
    """Yield labeled samples forever, each with the cursor of the next sample.

    Raises:
        InputError: a whole epoch holds no labeled sample.
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
        count = 0
        for window in windows:
            count += len(window.samples)
            yield window
        if not count and not (first or chunk):
            raise no_labels_error(source)
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
            labeled = [sample for sample in chunk.samples if sample.label is not None]
            samples += labeled
            size += sum(len(s.image) + len(s.label or b"") for s in labeled)
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
    """The share of one process in every step, and how the process prepares its samples.

    Attributes:
        recipe: recipe with batch size and augmentation.
        preprocessing: conversion of RGB images to network inputs.
        seed: seed of the augmentation.
        rank: number of the process, from 0.
        size: number of processes.
        loaders: threads that decode and augment.
    """

    recipe: Recipe
    preprocessing: Preprocessing
    seed: int
    rank: int = 0
    size: int = 1
    loaders: int = 2


@dataclass(frozen=True)
class Step:
    """The samples of one step.

    Attributes:
        number: number of the step over all stages, from 1.
        batches: batches of this process.
        keys: keys of all samples of the step, by slot.
        locations: locations of all samples of the step, by slot.
        failures: bad samples of this process, by slot; their slots hold no pixels.
        pixels: number of pixels in the batches of this process.
        cursor: position in the stream after this step.
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
    """Yield training steps forever; threads decode and augment a few samples ahead.

    Args:
        source: data set, decodes the samples.
        samples: samples of `stream`; one batch per step.
        share: share of this process.
        first: number of the first step.

    Raises:
        LabelError: a label holds a value outside the label set; raised before its step is trained.
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
            share_of_step = list(islice(loaded, len(slots)))
            draft = share_of_step[0][0]
            views = [view for _, view, _ in share_of_step]
            batches = stack(views, slots, share.recipe.augmentation, share.preprocessing)
            yield Step(
                draft.number,
                tuple(batches),
                tuple(sample.key for sample in draft.samples),
                tuple(sample.location for sample in draft.samples),
                {
                    slot: f
                    for slot, (*_, f) in zip(slots, share_of_step, strict=True)
                    if f is not None
                },
                sum(label.size for _, label in views),
                draft.cursor,
            )
