"""Chunks whose pictures may crash, hang or starve the process that works on them.

A chunk goes to the worker process whole. If the process dies of it, the chunk is taken apart around
the samples it was working on, until what kills it is alone; a sample that kills three processes
alone is quarantined. The rest is put together again as if nothing had happened.
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
"""Worker processes that a sample must kill, alone with it, to be quarantined."""


_PAUSES = (0.5, 2.0)
"""Seconds before the second and third: after a SIGKILL, others may hold the memory just now."""


ChunkAttempt = Callable[[Sequence[Sample]], SegmentedPart | WorkerFailure]


class IsolatedSegmenter:
    """The segment stage: chunks in, masks and counts out, in a worker process that it owns."""

    def __init__(self, spec: RunSpec, weights: SharedWeights, memory: int) -> None:
        """Keep the settings; the worker process starts with the first chunk.

        Args:
            spec: settings of the run.
            weights: of the network; closed by whoever made them.
            memory: bytes for the process, where `limits.worker_memory` does not say.
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
                max_image_pixels=spec.config.limits.max_image_pixels,
                plain_forward=compute.plain_forward,
                review_images=spec.config.drift.review_images,
                decoders=compute.decoders,
                memory=memory,
            ),
            weights,
            WorkerLimits(
                stall_seconds=limits.stall_seconds,
                memory=memory,
                is_share=limits.worker_memory is None,
            ),
        )

    def __call__(self, chunk: Chunk) -> SegmentedChunk | ShardFailure:
        """Masks, counts and failures of a chunk; a failure of the shard if poison exceeds limits.

        Raises:
            WorkerError: the worker process cannot start, or fails through a fault of its own.
            FcnError: the network cannot be built.
        """
        with logs.about(shard=chunk.shard, chunk=chunk.seq):
            return self._segment(chunk)

    def _segment(self, chunk: Chunk) -> SegmentedChunk | ShardFailure:
        search = CulpritSearch(self.worker.run, lambda bad: self._is_too_much(chunk, bad))
        pieces = list(search.pieces(chunk.samples))
        if search.gave_up:
            return self._over_limit(chunk, search.poisoned)
        classes, counts = (
            self.spec.labels.num_classes,
            PreviewCounts(self.spec.config.drift.review_images),
        )
        if search.poisoned:
            nothing = ConfusionMatrix(classes)
            pieces.append(SegmentedPart((), tuple(search.poisoned), (), nothing, {}))
        if len(pieces) == 1:
            (whole,) = pieces
        else:
            whole = merge([sample.key for sample in chunk.samples], pieces, classes, counts)
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
        """As `stop`, when no other thread uses it any more; and give back what is left."""
        self.worker.close()

    def _is_too_much(self, chunk: Chunk, poisoned: int) -> bool:
        # Exact for a shard of one chunk; else the most images that the shard can have, so that no
        # shard is given up that the limit would let pass.
        images = len(chunk.samples) + len(chunk.failures)
        most = images if chunk.count == 1 else chunk.count * self.spec.manifest.chunk_limits.images
        return is_over(poisoned, most, self.spec.config.limits.max_bad_fraction_per_shard)

    def _over_limit(self, chunk: Chunk, poisoned: Sequence[Failure]) -> ShardFailure:
        first = poisoned[0]
        reason = (
            f"shard {chunk.shard}: {len(poisoned)} images end the process that works on them, and "
            "the rest was not tried: that is over limits.max_bad_fraction_per_shard. "
            f"First: {first.location}: {first.reason}. Not committed. Remove them, or raise the "
            "limit; then run again."
        )
        return ShardFailure(chunk.shard, reason, PoisonError.__name__)


@dataclass
class CulpritSearch:
    """One chunk's way through worker processes that may die of it.

    Attributes:
        attempt: runs samples in a worker process that lives.
        is_too_much: whether so many poisoned samples end the search.
        poisoned: the samples found guilty, as rows for the quarantine.
        gave_up: whether there were too many.
    """

    attempt: ChunkAttempt
    is_too_much: Callable[[int], bool] = lambda poisoned: False
    poisoned: list[Failure] = field(default_factory=list)
    gave_up: bool = False

    def pieces(self, samples: Sequence[Sample]) -> Iterator[SegmentedPart]:
        """The results of all samples that kill no process, in pieces."""
        waiting = [tuple(samples)] if samples else []
        while waiting:
            part = waiting.pop()
            found = self._alone(part[0]) if len(part) == 1 else self.attempt(part)
            if isinstance(found, SegmentedPart):
                yield found
            elif isinstance(found, WorkerFailure):
                log.info("%s, %d samples from %s on: taken apart", found.what, len(part),
                         part[0].location)  # fmt: skip
                waiting += reversed(take_apart(part, found.suspects))
            else:
                self.poisoned.append(found)
                if self.is_too_much(len(self.poisoned)):
                    self.gave_up = True
                    return

    def _alone(self, sample: Sample) -> SegmentedPart | Failure:
        found = self.attempt((sample,))
        for pause in _PAUSES:
            if isinstance(found, SegmentedPart):
                return found
            if found.killed:
                time.sleep(pause)
            found = self.attempt((sample,))
        if isinstance(found, SegmentedPart):
            return found
        if found.fault is not None:
            raise WorkerError(
                where=sample.location,
                found=f"a fault of the program or of the device, {ATTEMPTS} times:\n{found.fault}",
                expected="a forward pass that works",
                remedy="Please report it with these lines.",
            )
        error = PoisonError(
            where=sample.location,
            found=f"{found.what}, {ATTEMPTS} times, with this sample alone",
            expected=found.expected,
            remedy="Look at it with another program; then repair or remove it.",
        )
        log.info("%s", error)
        return Failure.of(sample.key, error, sample.location)


def take_apart(part: tuple[Sample, ...], suspects: Sequence[int]) -> list[tuple[Sample, ...]]:
    """Smaller parts of a part that a process died of: before, among and after the suspects.

    Whatever comes before the first suspect has at least been decoded, and usually is innocent.
    Without suspects that narrow it down: two halves.
    """
    among = sorted(set(suspects))
    if not among or len(among) == len(part):
        middle = len(part) // 2
        return [part[:middle], part[middle:]]
    first, chosen = among[0], set(among)
    before = part[:first]
    after = tuple(s for place, s in enumerate(part) if place > first and place not in chosen)
    parts = [before, tuple(part[place] for place in among), after]
    return [smaller for smaller in parts if smaller]


def merge(
    keys: Sequence[str], pieces: Sequence[SegmentedPart], num_classes: int, counts: PreviewCounts
) -> SegmentedPart:
    """One piece of several, as if the samples had never been taken apart.

    Args:
        keys: of the chunk's samples, in order; no key twice.
        pieces: each key in at most one of them, in any order.
        num_classes: K.
        counts: of the previews to keep.
    """
    place = {key: index for index, key in enumerate(keys)}
    images = [image for piece in pieces for image in piece.images]
    failures = [failure for piece in pieces for failure in piece.failures]
    images.sort(key=lambda image: place[image.key])
    failures.sort(key=lambda failure: place[failure.key])
    confusion = ConfusionMatrix(num_classes)
    seconds: Counter[str] = Counter()
    for piece in pieces:
        confusion += piece.confusion
        seconds.update(piece.seconds)  # adds
    previews = [preview for piece in pieces for preview in piece.previews]
    chosen = choose_previews(images, previews, counts)
    return SegmentedPart(tuple(images), tuple(failures), chosen, confusion, dict(seconds))
