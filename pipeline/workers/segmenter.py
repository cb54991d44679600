"""Segment chunks in a worker process, and find the images that crash it.

The worker process gets a whole chunk. If it dies, the chunk is split around the samples that the
worker was working on, until the sample that kills it is alone. A sample that kills three processes
alone is quarantined. The results of all other samples are merged, and equal those of a chunk
without the bad image.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from fcn_core.metrics import ConfusionMatrix
from pipeline import logs
from pipeline.errors import PoisonError, WorkerError
from pipeline.inputs.sample import Failure, Sample
from pipeline.limits import is_over
from pipeline.stages.previews import PreviewCounts, choose_previews
from pipeline.stages.read import Chunk
from pipeline.stages.records import SegmentedChunk, SegmentedPart
from pipeline.stages.spec import NetworkSettings, RunSpec, ShardFailure
from pipeline.workers.shared_weights import SharedWeights
from pipeline.workers.supervisor import WorkerFailure, WorkerLimits, WorkerProcess

log = logging.getLogger("fcnseg")


ATTEMPTS = 3
"""Number of worker processes that a sample must kill, alone, to be quarantined."""


_PAUSES = (0.5, 2.0)
"""Seconds to wait after a SIGKILL before attempts 2 and 3: the machine may be short of memory."""


ChunkAttempt = Callable[[Sequence[Sample]], SegmentedPart | WorkerFailure]


class IsolatedSegmenter:
    """The segment stage: turns chunks into masks and counts, in a worker process that it owns."""

    def __init__(self, spec: RunSpec, weights: SharedWeights, memory: int) -> None:
        """Prepare the stage; the worker process starts with the first chunk.

        Args:
            spec: run settings shared by all stages.
            weights: weights of the network; the caller closes them.
            memory: memory limit of the worker in bytes, unless `limits.worker_memory` is set.
        """
        self.spec = spec
        compute, limits = spec.config.compute, spec.config.limits
        memory = limits.worker_memory or memory
        self.worker = WorkerProcess(
            NetworkSettings(
                labels=spec.labels,
                confidence="confidence" in spec.masks,
                precision=spec.config.model.precision,
                device=compute.device,
                threads=compute.threads_per_worker,
                batch_size=compute.batch_size,
                max_image_pixels=limits.max_image_pixels,
                plain_forward=compute.plain_forward,
                review_images=spec.config.drift.review_images,
                decoders=compute.decoders,
                memory=memory,
            ),
            weights,
            WorkerLimits(
                stall_seconds=limits.stall_seconds,
                memory=memory,
                is_default_memory=limits.worker_memory is None,
            ),
        )

    def __call__(self, chunk: Chunk) -> SegmentedChunk | ShardFailure:
        """Segment a chunk; return its masks, counts and failures.

        Returns:
            The segmented chunk, or a failure of its shard: too many images end the worker.

        Raises:
            WorkerError: the worker process cannot start, or has a fault that no image causes.
            FcnError: the network cannot be built.
        """
        with logs.about(shard=chunk.shard, chunk=chunk.seq):
            return self._segment(chunk)

    def _segment(self, chunk: Chunk) -> SegmentedChunk | ShardFailure:
        search = PoisonSearch(self.worker.run, lambda count: self._is_over_limit(chunk, count))
        parts = list(search.segment(chunk.samples))
        if search.is_over_limit:
            return self._shard_failure(chunk, search.poisoned)
        classes = self.spec.labels.num_classes
        counts = PreviewCounts(self.spec.config.drift.review_images)
        if search.poisoned:
            empty = ConfusionMatrix(classes)
            parts.append(SegmentedPart((), tuple(search.poisoned), (), empty, {}))
        if len(parts) == 1:
            (whole,) = parts
        else:
            whole = merge_parts([sample.key for sample in chunk.samples], parts, classes, counts)
        return SegmentedChunk(
            chunk.shard,
            chunk.seq,
            chunk.count,
            whole.images,
            chunk.failures + whole.failures,
            choose_previews(whole.images, whole.previews, counts.of_chunk(len(whole.images))),
            whole.confusion,
            {"read": chunk.seconds, "decode": 0.0, "forward": 0.0, **whole.seconds},
            chunk.store_retries,
        )

    def stop(self) -> None:
        """End the worker process, from any thread."""
        self.worker.stop()

    def close(self) -> None:
        """End the worker process and close its files; no other thread may use the stage now."""
        self.worker.close()

    def _is_over_limit(self, chunk: Chunk, poisoned: int) -> bool:
        # The number of images of a shard is known if it has one chunk. Otherwise take the largest
        # possible number: a shard within the limit must not fail here.
        images = len(chunk.samples) + len(chunk.failures)
        most = images if chunk.count == 1 else chunk.count * self.spec.manifest.chunk_limits.images
        return is_over(poisoned, most, self.spec.config.limits.max_bad_fraction_per_shard)

    def _shard_failure(self, chunk: Chunk, poisoned: Sequence[Failure]) -> ShardFailure:
        first = poisoned[0]
        reason = (
            f"shard {chunk.shard}: {len(poisoned)} images end the worker process, more than "
            "limits.max_bad_fraction_per_shard allows; the other images were not tried. "
            f"First: {first.location}: {first.reason}. The shard is not committed. Remove these "
            "images, or raise the limit; then run again."
        )
        return ShardFailure(chunk.shard, reason, PoisonError.__name__)


@dataclass
class PoisonSearch:
    """Segments one chunk with worker processes that some of its samples may kill.

    Attributes:
        attempt: segments samples in a running worker process.
        is_too_many: whether this number of poisoned samples ends the search.
        poisoned: the samples that killed three processes alone, as rows of the quarantine table.
        is_over_limit: whether the search ended because of too many poisoned samples.
    """

    attempt: ChunkAttempt
    is_too_many: Callable[[int], bool] = lambda poisoned: False
    poisoned: list[Failure] = field(default_factory=list)
    is_over_limit: bool = False

    def segment(self, samples: Sequence[Sample]) -> Iterator[SegmentedPart]:
        """Yield the results of all samples that kill no process, in parts."""
        waiting = [tuple(samples)] if samples else []
        while waiting:
            part = waiting.pop()
            result = self._segment_alone(part[0]) if len(part) == 1 else self.attempt(part)
            if isinstance(result, SegmentedPart):
                yield result
            elif isinstance(result, WorkerFailure):
                log.info("%s; splitting the %d samples that begin with %s", result.what, len(part),
                         part[0].location)  # fmt: skip
                waiting += reversed(split_part(part, result.suspects))
            else:
                self.poisoned.append(result)
                if self.is_too_many(len(self.poisoned)):
                    self.is_over_limit = True
                    return

    def _segment_alone(self, sample: Sample) -> SegmentedPart | Failure:
        result = self.attempt((sample,))
        for pause in _PAUSES:
            if isinstance(result, SegmentedPart):
                return result
            if result.is_killed:
                time.sleep(pause)
            result = self.attempt((sample,))
        if isinstance(result, SegmentedPart):
            return result
        if result.fault is not None:
            raise WorkerError(
                where=sample.location,
                found=f"a program error or device error, {ATTEMPTS} times:\n{result.fault}",
                expected="a forward pass without errors",
                remedy="Please report it with this traceback.",
            )
        # `found` and `expected` become the reason in the quarantine table: part of OUTPUT.
        error = PoisonError(
            where=sample.location,
            found=f"{result.what}, {ATTEMPTS} times, with this sample alone",
            expected=result.expected,
            remedy="Open the image with another program; then repair or remove it.",
        )
        log.info("%s", error)
        return Failure.of(sample.key, error, sample.location)


def split_part(part: tuple[Sample, ...], suspects: Sequence[int]) -> list[tuple[Sample, ...]]:
    """Split samples that killed a process: before, among and after the suspects.

    The samples before the first suspect were decoded without a failure, and usually are good.

    Args:
        part: at least two samples.
        suspects: indices of the samples that the process was working on. If empty, or if they are
            the whole part: two halves.

    Returns:
        The smaller parts, none empty, in the order before, among, after.
    """
    among = sorted(set(suspects))
    if not among or len(among) == len(part):
        middle = len(part) // 2
        return [part[:middle], part[middle:]]
    first, chosen = among[0], set(among)
    before = part[:first]
    after = tuple(s for index, s in enumerate(part) if index > first and index not in chosen)
    parts = [before, tuple(part[index] for index in among), after]
    return [smaller for smaller in parts if smaller]


def merge_parts(
    keys: Sequence[str], parts: Sequence[SegmentedPart], num_classes: int, counts: PreviewCounts
) -> SegmentedPart:
    """Merge the results of several parts into those of the whole chunk.

    Args:
        keys: unique keys of the chunk's samples, in order.
        parts: results in any order; each key is in at most one of them.
        num_classes: number of classes K of the confusion matrix.
        counts: how many previews to keep.
    """
    order = {key: index for index, key in enumerate(keys)}
    images = [image for part in parts for image in part.images]
    failures = [failure for part in parts for failure in part.failures]
    images.sort(key=lambda image: order[image.key])
    failures.sort(key=lambda failure: order[failure.key])
    confusion = ConfusionMatrix(num_classes)
    seconds: Counter[str] = Counter()
    for part in parts:
        confusion += part.confusion
        seconds.update(part.seconds)  # Counter.update adds
    previews = [preview for part in parts for preview in part.previews]
    chosen = choose_previews(images, previews, counts)
    return SegmentedPart(tuple(images), tuple(failures), chosen, confusion, dict(seconds))
