"""The labeled data set of a training: list it, check its labels, decode it sample by sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fcn_core.errors import ImageError, LabelError
from fcn_core.images import decode_image
from fcn_core.labels import VOID, LabelSet
from fcn_core.training.batch import TrainingSample
from pipeline.concurrency import map_ordered
from pipeline.config import InputConfig, LimitsConfig, OutputConfig, RunConfig
from pipeline.errors import InputError, LimitsError
from pipeline.inputs.sample import Failure, Sample, check_label_size, decode_truth
from pipeline.inputs.shard import ChunkLimits, Shard, Sources
from pipeline.limits import is_over
from pipeline.plan import make_plan
from pipeline.resolve import resolve_plan
from pipeline.stages.read import Chunk, read_chunks

_NOWHERE = "memory://fcnseg-train-lists-only"


@dataclass(frozen=True)
class TrainingSource:
    """A listed input with labels.

    Attributes:
        where: URL of the input.
        shards: shards, sorted by id.
        sources: stores that hold the bytes of the shards.
        labels: label set of the labels.
        limits: chunk limits and limits of bad samples.
        digest: digest of the ids, tags and sizes of all shards; identifies the data set.
        passed_over: skipped files of the input, see `Listing`.
    """

    where: str
    shards: Sequence[Shard]
    sources: Sources
    labels: LabelSet
    limits: LimitsConfig
    digest: str
    passed_over: tuple[str, ...] = ()

    def chunks(self, shard: Shard) -> Iterator[Chunk]:
        """Yield the chunks of a shard, in order.

        Raises:
            ShardError: the shard cannot be read.
            StoreError: the store fails.
        """
        limits = ChunkLimits(self.limits.chunk_images, self.limits.chunk_bytes)
        return read_chunks(shard, self.sources, limits)

    def samples(self) -> Iterator[Sample | Failure]:
        """Yield all labeled samples and all samples that cannot be read, shard by shard."""
        for shard in self.shards:
            for chunk in self.chunks(shard):
                yield from chunk.failures
                yield from (sample for sample in chunk.samples if sample.label is not None)

    def decode(self, sample: Sample) -> TrainingSample:
        """Decode a sample: (H, W, 3) uint8 RGB image, (H, W) uint8 class indices with 255 = void.

        Raises:
            ImageError: a bad sample: image or label cannot be decoded, or their sizes differ.
            LabelError: values outside the label set; probably the wrong label set.
        """
        most = self.limits.max_image_pixels
        image = decode_image(sample.image, sample.location, most)
        label = self.truth(sample)
        check_label_size(sample, image, label, ImageError)
        return image, label

    def truth(self, sample: Sample) -> NDArray[np.uint8]:
        """Decode the label of a sample: (H, W) uint8 class indices, 255 = void; see `decode`."""
        assert sample.label is not None
        most = self.limits.max_image_pixels
        return decode_truth(sample.label, sample.label_location, self.labels, most)


def list_source(config: InputConfig, labels: LabelSet, limits: LimitsConfig) -> TrainingSource:
    """List an input for training; nothing is read.

    Raises:
        InputError: the input is empty, or mixes several kinds of input.
        ConfigError: the selection of shards is not valid.
        StoreError: the input cannot be listed.
    """
    run = RunConfig(input=config, output=OutputConfig(url=_NOWHERE), limits=limits)
    plan = make_plan(resolve_plan(run))
    digest = hashlib.sha256()
    for shard in plan.pending:
        digest.update(f"{shard.id}\0{shard.etag}\0{shard.size}\0".encode())
    return TrainingSource(
        config.url, plan.pending, plan.sources, labels, limits, digest.hexdigest()[:16],
        plan.passed_over,
    )  # fmt: skip


@dataclass
class BadSamples:
    """Counts the bad samples of a training, and raises when there are too many.

    Attributes:
        where: URL of the input.
        limits: limits of bad samples.
        seen: labeled samples seen so far; after one complete epoch, the number of samples in it.
        failures: failures by location and key.
    """

    where: str
    limits: LimitsConfig
    seen: int = 0
    failures: dict[str, Failure] = field(default_factory=dict)
    _is_whole: bool = False
    _epoch: int | None = None
    _began: int | None = None

    def add(self, failure: Failure) -> bool:
        """Record a bad sample; return whether the sample is new."""
        name = f"{failure.location} {failure.key}"
        is_new = name not in self.failures
        self.failures[name] = failure
        return is_new

    def mark_complete(self) -> None:
        """Record that every sample has been seen."""
        self._is_whole = True

    def count_step(self, samples: int, epoch: int) -> None:
        """Record the samples of one step; `epoch` is the epoch of the last one."""
        if self._is_whole:
            return
        self.seen += samples
        if self._epoch is not None and epoch != self._epoch:
            if self._began is not None:
                self.seen, self._is_whole = self.seen - self._began, True
            self._began = self.seen
        self._epoch = epoch

    def check(self) -> None:
        """Stop the training if too many samples are bad.

        Raises:
            LimitsError: too many bad samples; names the first one.
        """
        if is_over(len(self.failures), self.seen, self.limits.max_bad_fraction):
            first = next(iter(self.failures.values()))
            raise LimitsError(
                where=self.where,
                found=f"{len(self.failures)} of {self.seen} samples are bad; the first: "
                f"{first.location}: {first.reason}",
                expected=f"at most {self.limits.max_bad_fraction:.2%} (limits.max_bad_fraction)",
                remedy="Repair or remove the bad samples, or raise the limit.",
            )


def check_labels(source: TrainingSource, threads: int) -> BadSamples:
    """Decode every label once; return the bad samples.

    Raises:
        LabelError: a label holds a value outside the label set (names the sample), or every pixel
            of every label is void.
        InputError: no sample has a label.
        LimitsError: too many samples are bad.
    """
    bad = BadSamples(source.where, source.limits)

    def check(item: Sample | Failure) -> Failure | bool:
        """Return whether any pixel of the label has a class, or the failure."""
        if isinstance(item, Failure):
            return item
        try:
            return bool((source.truth(item) != VOID).any())
        except ImageError as error:
            return Failure.of(item.key, error, item.location)

    has_classes = False
    for outcome in map_ordered(check, source.samples(), threads):
        bad.seen += 1
        if isinstance(outcome, Failure):
            bad.add(outcome)
        else:
            has_classes = has_classes or outcome
    if not bad.seen:
        raise no_labels_error(source)
    bad.mark_complete()
    bad.check()
    if not has_classes:
        raise LabelError(
            where=source.where, found=f"every pixel of {bad.seen} labels is void",
            expected="pixels with a class",
            remedy="Check --labels, and name the label set that defines the label values.",
        )  # fmt: skip
    return bad


def no_labels_error(source: TrainingSource) -> InputError:
    """Return the error for an input without labels."""
    return InputError(
        where=source.where, found="no sample with a label", expected="images with labels",
        remedy="Name the labels of a folder with --labels, or pack them (fcnseg shard --labels).",
    )  # fmt: skip
