"""A labelled data set as a training sees it: listed, checked, and decoded sample by sample."""

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
    """Labelled images: an input of `fcnseg run`, listed.

    Attributes:
        where: its URL.
        shards: by id.
        sources: where their bytes come from.
        labels: what the labels mean.
        limits: how large a piece, and how much may go wrong.
        digest: of all shards' names and tags: another one is another data set.
        passed_over: see `Listing`.
    """

    where: str
    shards: Sequence[Shard]
    sources: Sources
    labels: LabelSet
    limits: LimitsConfig
    digest: str
    passed_over: tuple[str, ...] = ()

    def chunks(self, shard: Shard) -> Iterator[Chunk]:
        """Those of a shard, in order.

        Raises:
            ShardError: it cannot be read.
            StoreError: the store fails.
        """
        limits = ChunkLimits(self.limits.chunk_images, self.limits.chunk_bytes)
        return read_chunks(shard, self.sources, limits)

    def samples(self) -> Iterator[Sample | Failure]:
        """All that have a label, and what could not be read, shard by shard."""
        for shard in self.shards:
            for chunk in self.chunks(shard):
                yield from chunk.failures
                yield from (sample for sample in chunk.samples if sample.label is not None)

    def decode(self, sample: Sample) -> TrainingSample:
        """Its picture and its classes.

        Raises:
            ImageError: one does not decode, or their sizes differ: a bad sample.
            LabelError: values outside the label set: the wrong label set, most likely.
        """
        most = self.limits.max_image_pixels
        image = decode_image(sample.image, sample.location, most)
        label = self.truth(sample)
        check_label_size(sample, image, label, ImageError)
        return image, label

    def truth(self, sample: Sample) -> NDArray[np.uint8]:
        """Its classes; see `decode`."""
        assert sample.label is not None
        most = self.limits.max_image_pixels
        return decode_truth(sample.label, sample.label_location, self.labels, most)


def list_source(config: InputConfig, labels: LabelSet, limits: LimitsConfig) -> TrainingSource:
    """Look at an input.

    Raises:
        InputError: nothing there, or several kinds of input in one place.
        ConfigError: a selection that cannot be.
        StoreError: it cannot be listed.
    """
    run = RunConfig(input=config, output=OutputConfig(url=_NOWHERE), limits=limits)
    found = make_plan(resolve_plan(run))
    digest = hashlib.sha256()
    for shard in found.pending:
        digest.update(f"{shard.id}\0{shard.etag}\0{shard.size}\0".encode())
    return TrainingSource(
        config.url, found.pending, found.sources, labels, limits, digest.hexdigest()[:16],
        found.passed_over,
    )  # fmt: skip


@dataclass
class BadSamples:
    """Samples that cannot be learnt from: skipped, counted, and too many at some point.

    Attributes:
        where: their input.
        limits: how many are too many.
        seen: labelled samples looked at so far; each counts once as soon as an epoch was seen
            from its beginning to its end.
        failures: by location.
    """

    where: str
    limits: LimitsConfig
    seen: int = 0
    failures: dict[str, Failure] = field(default_factory=dict)
    _is_whole: bool = False
    _epoch: int | None = None
    _began: int | None = None

    def add(self, failure: Failure) -> bool:
        """One more; the same one again counts for nothing: whether it is new."""
        name = f"{failure.location} {failure.key}"
        is_new = name not in self.failures
        self.failures[name] = failure
        return is_new

    def saw_all(self) -> None:
        """Every sample has been looked at."""
        self._is_whole = True

    def saw(self, samples: int, epoch: int) -> None:
        """Samples of a step more, the last one of this epoch."""
        if self._is_whole:
            return
        self.seen += samples
        if self._epoch is not None and epoch != self._epoch:
            if self._began is not None:
                self.seen, self._is_whole = self.seen - self._began, True
            self._began = self.seen
        self._epoch = epoch

    def check(self) -> None:
        """Refuse to go on with too many.

        Raises:
            LimitsError: naming the first.
        """
        if is_over(len(self.failures), self.seen, self.limits.max_bad_fraction):
            first = next(iter(self.failures.values()))
            raise LimitsError(
                where=self.where,
                found=f"{len(self.failures)} of {self.seen} samples are bad; the first: "
                f"{first.location}: {first.reason}",
                expected=f"at most {self.limits.max_bad_fraction:.2%} (limits.max_bad_fraction)",
                remedy="Mend or remove them, or raise the limit.",
            )


def check_labels(source: TrainingSource, threads: int) -> BadSamples:
    """Look at every label once.

    Raises:
        LabelError: one holds a value that is no class; naming the sample. Or all are void.
        InputError: no sample has a label.
        LimitsError: too many are bad.
    """
    bad = BadSamples(source.where, source.limits)

    def look(item: Sample | Failure) -> Failure | bool:
        """Whether any of its pixels has a class."""
        if isinstance(item, Failure):
            return item
        try:
            return bool((source.truth(item) != VOID).any())
        except ImageError as error:
            return Failure.of(item.key, error, item.location)

    has_classes = False
    for found in map_ordered(look, source.samples(), threads):
        bad.seen += 1
        if isinstance(found, Failure):
            bad.add(found)
        else:
            has_classes = has_classes or found
    if not bad.seen:
        raise unlabelled(source)
    bad.saw_all()
    bad.check()
    if not has_classes:
        raise LabelError(
            where=source.where, found=f"every pixel of {bad.seen} labels is void", expected="pixels that have a class",
            remedy="Name the labels that are meant, or a label set that says what their values mean.",
        )  # fmt: skip
    return bad


def unlabelled(source: TrainingSource) -> InputError:
    """The error of an input without labels."""
    return InputError(
        where=source.where, found="no sample with a label", expected="images and labels to learn from",
        remedy="Name the labels of a folder with --labels, or pack them (fcnseg shard --labels).",
    )  # fmt: skip
