"""The local executor: the stages of a run as threads with short queues between them. No Ray.

It starts in a second, needs no cluster, and is the oracle that the Ray executor is held against.
The segment stage's threads only wait: each owns a worker process with a copy of the network.
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


_DEPTH = 2
"""Items waiting between two stages: enough to keep the network busy, and a bound on memory."""


_READERS = 2

_WRITERS = 2

_END = object()

_NOBODY = ExecutorHooks()


def run_local(
    spec: RunSpec,
    weights: WeightsFile,
    shards: Iterable[Shard],
    *,
    driver: ExecutorHooks = _NOBODY,
) -> Iterator[Receipt | ShardFailure]:
    """Receipts of all chunks, in the order they are finished.

    Args:
        spec: of the run.
        weights: of the network.
        shards: what to label.
        driver: whoever wants the receipts.

    Raises:
        StoreError: a store fails; whatever else a stage raises ends the run as well.
    """
    yield from run_around_network(
        spec,
        weights,
        takewhile(lambda _: not driver.is_stopping(), shards),
        read=lambda shard: _until(
            driver.is_stopping, read_chunks(shard, spec.sources, spec.manifest.chunk_limits)
        ),
        finish=lambda segmented: write_chunk(segmented, spec),
        driver=driver,
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
    driver: ExecutorHooks = _NOBODY,
) -> Generator[Finished | ShardFailure, None, None]:
    """The network between any two ends: `run` writes masks, `evaluate` counts pixels.

    Args:
        spec: for the network.
        weights: of the network.
        shards: what to read, in order.
        read: the chunks of a shard; called in threads of this process.
        finish: what becomes of a chunk's masks; called in threads of this process.
        driver: of the run; once it is stopping, the network is given nothing more.

    Raises:
        FcnError: whatever a stage raises, but for shards that cannot be read.
    """
    crew = _WorkerPool(spec, weights)

    def chunks(shard: Shard) -> Iterator[StageItem]:
        try:
            yield from read(shard)
        except (ShardError, StoreError) as error:
            yield ShardFailure.of(shard.id, error)

    def segment(item: StageItem) -> Iterator[StageItem]:
        if not driver.is_stopping():
            yield item if isinstance(item, ShardFailure) else crew.segment(item)

    def end(item: StageItem) -> Iterator[StageItem]:
        yield item if isinstance(item, ShardFailure) else finish(item)

    try:
        copies = crew.size()
        driver.on_copies(copies)
        stages = [(chunks, _READERS), (segment, copies), (end, _WRITERS)]
        yield from run_stages(shards, stages, crew.stop)
    finally:
        crew.close()


class _WorkerPool:
    """The worker processes of a run; each works for one thread at a time."""

    def __init__(self, spec: RunSpec, weights: WeightsFile) -> None:
        per_core = max(1, (os.cpu_count() or 1) // spec.config.compute.threads_per_worker)
        self.spec = spec
        self.most = spec.config.compute.workers or per_core
        share = (spec.config.limits.memory or usable_memory(machine_memory())) // self.most
        self.weights = SharedWeights(weights)
        self.members = [IsolatedSegmenter(spec, self.weights, share) for _ in range(self.most)]
        self.free: queue.SimpleQueue[IsolatedSegmenter] = queue.SimpleQueue()
        for member in self.members:
            self.free.put(member)

    def size(self) -> int:
        """How many to use: one per core or so on a CPU, one on a GPU, unless the config says."""
        compute = self.spec.config.compute
        if compute.workers is None and compute.device != "cpu":
            if self.members[0].worker.start() != "cpu":
                return 1
        return self.most

    def segment(self, chunk: Chunk) -> SegmentedChunk | ShardFailure:
        member = self.free.get()
        try:
            return member(chunk)
        finally:
            self.free.put(member)

    def stop(self) -> None:
        for member in self.members:
            member.stop()

    def close(self) -> None:
        for member in self.members:
            member.close()
        self.weights.close()


def run_stages(
    items: Iterable[StageItem],
    stages: Sequence[tuple[StageFunction, int]],
    on_stop: Callable[[], None] = lambda: None,
) -> Generator[StageItem, None, None]:
    """Pass items through the stages; leaving the iterator early stops every thread.

    Args:
        items: taken one by one, as the first stage has room.
        stages: each with its number of threads.
        on_stop: frees threads that wait for something else than their queues.
    """
    stop = threading.Event()
    errors: list[BaseException] = []
    queues: list[queue.Queue[StageItem]] = [queue.Queue(_DEPTH) for _ in range(len(stages) + 1)]
    fed = chain(items, [_END] * stages[0][1])
    threads = [threading.Thread(target=_feed, args=(fed, queues[0], stop, errors))]
    for index, (stage, count) in enumerate(stages):
        followers = stages[index + 1][1] if index + 1 < len(stages) else 1
        ends = _Countdown(count)
        work = _Work(stage, queues[index], queues[index + 1], ends, followers)
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
    """Tells the last of several threads that it is the last."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.lock = threading.Lock()

    def is_last(self) -> bool:
        with self.lock:
            self.left -= 1
            return self.left == 0


class _Work:
    """One stage: what its threads do until they are told to stop."""

    def __init__(
        self,
        stage: StageFunction,
        source: queue.Queue[StageItem],
        sink: queue.Queue[StageItem],
        ends: _Countdown,
        followers: int,
    ) -> None:
        self.stage = stage
        self.source = source
        self.sink = sink
        self.ends = ends
        self.followers = followers

    def run(self, stop: threading.Event, errors: list[BaseException]) -> None:
        try:
            while (item := _get(self.source, stop)) is not _END:
                for result in self.stage(item):
                    if not _put(self.sink, result, stop):
                        return
            if self.ends.is_last():
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
    except BaseException as error:  # of the items themselves
        errors.append(error)
        stop.set()


def _put(sink: queue.Queue[StageItem], item: StageItem, stop: threading.Event) -> bool:
    """Whether there was room before the stop."""
    while not stop.is_set():
        try:
            sink.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


def _get(source: queue.Queue[StageItem], stop: threading.Event) -> StageItem:
    """The next item; the end when there is none before the stop."""
    while not stop.is_set():
        try:
            return source.get(timeout=0.1)
        except queue.Empty:
            continue
    return _END
