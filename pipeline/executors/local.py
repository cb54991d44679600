"""The local executor: runs the stages in threads with short queues between them, without Ray.

It starts in a second and needs no cluster. Tests compare the Ray executor's output with its output.
The threads of the segment stage only wait: each uses a worker process that holds a replica of the
network.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import chain, takewhile
from typing import Any, TypeVar

from fcn_core.weights.weights_file import WeightsFile
from pipeline.errors import ShardError, StoreError
from pipeline.executors.hooks import ExecutorHooks
from pipeline.inputs.shard import Shard
from pipeline.stages.read import Chunk, read_chunks
from pipeline.stages.records import Receipt, SegmentedChunk
from pipeline.stages.spec import RunSpec, ShardFailure
from pipeline.stages.write import write_chunk
from pipeline.workers.segmenter import IsolatedSegmenter
from pipeline.workers.shared_weights import SharedWeights
from pipeline.workers.supervisor import machine_memory, usable_memory

StageItem = Any

StageFunction = Callable[[StageItem], Iterator[StageItem]]

Finished = TypeVar("Finished")


QUEUE_DEPTH = 2
"""Most items that wait between two stages: keeps the network busy and bounds the memory."""


_READERS = 2

_WRITERS = 2

_END = object()

_NO_HOOKS = ExecutorHooks()


def run_local(
    spec: RunSpec,
    weights: WeightsFile,
    shards: Iterable[Shard],
    *,
    hooks: ExecutorHooks = _NO_HOOKS,
) -> Iterator[Receipt | ShardFailure]:
    """Run all stages; yield a receipt of each finished chunk, in the order of finishing.

    Args:
        spec: run settings shared by all stages.
        weights: weights of the network.
        shards: shards to segment, in order.
        hooks: functions of the driver.

    Raises:
        StoreError: a store fails. Any other exception of a stage also ends the run.
    """
    yield from run_around_network(
        spec,
        weights,
        takewhile(lambda _: not hooks.is_stopping(), shards),
        read=lambda shard: _until(
            hooks.is_stopping, read_chunks(shard, spec.sources, spec.manifest.chunk_limits)
        ),
        finish=lambda segmented: write_chunk(segmented, spec),
        hooks=hooks,
    )


def _until(is_stopping: Callable[[], bool], chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    return takewhile(lambda _: not is_stopping(), chunks)


def run_around_network(
    spec: RunSpec,
    weights: WeightsFile,
    shards: Iterable[Shard],
    *,
    read: Callable[[Shard], Iterator[Chunk]],
    finish: Callable[[SegmentedChunk], Finished],
    hooks: ExecutorHooks = _NO_HOOKS,
) -> Generator[Finished | ShardFailure, None, None]:
    """Run the network between any two stages; yield what `finish` returns for each chunk.

    `run` reads images and writes masks; `evaluate` counts pixels instead.

    Args:
        spec: run settings shared by all stages.
        weights: weights of the network.
        shards: shards to read, in order.
        read: returns the chunks of a shard; called in threads of this process.
        finish: takes a segmented chunk; called in threads of this process.
        hooks: functions of the driver. While the run is stopping, the network gets no more chunks.

    Raises:
        FcnError: a stage fails. A shard that cannot be read is a `ShardFailure` instead.
    """
    pool = WorkerPool(spec, weights)

    def chunks(shard: Shard) -> Iterator[StageItem]:
        try:
            yield from read(shard)
        except (ShardError, StoreError) as error:
            yield ShardFailure.of(shard.id, error)

    def segment(item: StageItem) -> Iterator[StageItem]:
        if not hooks.is_stopping():
            yield item if isinstance(item, ShardFailure) else pool.segment(item)

    def end(item: StageItem) -> Iterator[StageItem]:
        yield item if isinstance(item, ShardFailure) else finish(item)

    try:
        replicas = pool.size()
        hooks.on_replicas(replicas)
        stages = [(chunks, _READERS), (segment, replicas), (end, _WRITERS)]
        yield from run_stages(shards, stages, pool.stop)
    finally:
        pool.close()


class WorkerPool:
    """The worker processes of a run; each serves one thread at a time."""

    def __init__(self, spec: RunSpec, weights: WeightsFile) -> None:
        per_core = max(1, (os.cpu_count() or 1) // spec.config.compute.threads_per_worker)
        self.spec = spec
        self.most = spec.config.compute.workers or per_core
        share = (spec.config.limits.memory or usable_memory(machine_memory())) // self.most
        self.weights = SharedWeights(weights)
        self.segmenters = [IsolatedSegmenter(spec, self.weights, share) for _ in range(self.most)]
        self.free: queue.SimpleQueue[IsolatedSegmenter] = queue.SimpleQueue()
        for segmenter in self.segmenters:
            self.free.put(segmenter)

    def size(self) -> int:
        """Return how many workers to use: `compute.workers`, or 1 on a GPU, or the CPU default.

        The CPU default is the number of cores divided by `compute.threads_per_worker`.
        """
        compute = self.spec.config.compute
        if compute.workers is None and compute.device != "cpu":
            if self.segmenters[0].worker.start() != "cpu":
                return 1
        return self.most

    def segment(self, chunk: Chunk) -> SegmentedChunk | ShardFailure:
        """Segment a chunk in the next free worker process."""
        segmenter = self.free.get()
        try:
            return segmenter(chunk)
        finally:
            self.free.put(segmenter)

    def stop(self) -> None:
        """End the chunks in progress, from any thread."""
        for segmenter in self.segmenters:
            segmenter.stop()

    def close(self) -> None:
        """End all worker processes and release the weights."""
        for segmenter in self.segmenters:
            segmenter.close()
        self.weights.close()


def run_stages(
    items: Iterable[StageItem],
    stages: Sequence[tuple[StageFunction, int]],
    on_stop: Callable[[], None] = lambda: None,
) -> Generator[StageItem, None, None]:
    """Pass items through the stages; yield the items of the last stage in any order.

    Closing the generator early stops every thread.

    Args:
        items: input of the first stage; the next item is taken when the first queue has room.
        stages: functions (one item in, any number of items out), each with its number of threads.
        on_stop: called when the threads stop; must end any wait that is not for a queue.

    Raises:
        BaseException: the first exception that a stage or `items` raised.
    """
    stop = threading.Event()
    errors: list[BaseException] = []
    queues: list[queue.Queue[StageItem]] = [
        queue.Queue(QUEUE_DEPTH) for _ in range(len(stages) + 1)
    ]
    inputs = chain(items, [_END] * stages[0][1])
    threads = [threading.Thread(target=_feed, args=(inputs, queues[0], stop, errors))]
    for index, (stage, count) in enumerate(stages):
        followers = stages[index + 1][1] if index + 1 < len(stages) else 1
        countdown = _Countdown(count)
        work = _StageWork(stage, queues[index], queues[index + 1], countdown, followers)
        threads += [
            threading.Thread(target=work.run, args=(stop, errors), name=f"stage-{index}-{n}")
            for n in range(count)
        ]
    for thread in threads:
        thread.start()
    try:
        while not stop.is_set():
            item = _get(queues[-1], stop)
            if item is _END:
                break
            yield item
    finally:
        stop.set()
        on_stop()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


class _Countdown:
    """Counts the threads of a stage that have ended."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.lock = threading.Lock()

    def is_last(self) -> bool:
        """Count the calling thread; return whether it is the last one."""
        with self.lock:
            self.left -= 1
            return self.left == 0


class _StageWork:
    """The loop of the threads of one stage.

    Args:
        stage: function of the stage.
        source: queue of input items.
        sink: queue of output items.
        countdown: shared by the threads of the stage; the last thread ends the next stage.
        followers: number of threads that read from `sink`; each gets one end marker.
    """

    def __init__(
        self,
        stage: StageFunction,
        source: queue.Queue[StageItem],
        sink: queue.Queue[StageItem],
        countdown: _Countdown,
        followers: int,
    ) -> None:
        self.stage = stage
        self.source = source
        self.sink = sink
        self.countdown = countdown
        self.followers = followers

    def run(self, stop: threading.Event, errors: list[BaseException]) -> None:
        try:
            while (item := _get(self.source, stop)) is not _END:
                for result in self.stage(item):
                    if not _put(self.sink, result, stop):
                        return
            if self.countdown.is_last():
                for _ in range(self.followers):
                    _put(self.sink, _END, stop)
        except BaseException as error:
            errors.append(error)
            stop.set()


def _feed(
    items: Iterable[StageItem],
    sink: queue.Queue[StageItem],
    stop: threading.Event,
    errors: list[BaseException],
) -> None:
    try:
        for item in items:
            if not _put(sink, item, stop):
                return
    except BaseException as error:  # raised by the iterator of items
        errors.append(error)
        stop.set()


def _put(sink: queue.Queue[StageItem], item: StageItem, stop: threading.Event) -> bool:
    """Put an item into a queue; return False if the run stops first."""
    while not stop.is_set():
        try:
            sink.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


def _get(source: queue.Queue[StageItem], stop: threading.Event) -> StageItem:
    """Return the next item of a queue; the end marker if the run stops first."""
    while not stop.is_set():
        try:
            return source.get(timeout=0.1)
        except queue.Empty:
            continue
    return _END
