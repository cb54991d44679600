"""`fcnseg evaluate`: score a network, or compute the upper bound of coarse predictions.

An evaluation reads, decodes, segments and counts like a run, applies the same limits, and leaves
out the shards that a run would not commit, so its scores equal the scores of a run. It
writes nothing, and uses this machine only.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from fcn_core.errors import ImageError, LabelError
from fcn_core.labels import LabelSet
from fcn_core.metrics.bootstrap import ClassCounts
from fcn_core.metrics.boundary import band_confusions
from fcn_core.metrics.upper_bound import upper_bound_confusions
from pipeline.config import OutputConfig, RunConfig
from pipeline.errors import ConfigError, MissingError, ShardError
from pipeline.evaluation.accumulate import ChunkCounts, EvaluationAccumulator
from pipeline.evaluation.result import Evaluation, EvaluationRequest
from pipeline.executors.local import run_around_network, run_stages
from pipeline.inputs.sample import Failure, decode_truth
from pipeline.inputs.shard import ChunkLimits, Shard
from pipeline.monitoring.progress import Progress
from pipeline.plan import make_plan
from pipeline.resolve import read_label_set, resolve_plan, resolve_run
from pipeline.stages.read import Chunk, read_chunks
from pipeline.stages.records import SegmentedChunk
from pipeline.stages.spec import RunSpec, ShardFailure

NOWHERE = "memory://fcnseg-evaluate-writes-nothing"
"""OUTPUT of an evaluation. It has no commits, so every shard is pending; it is never written."""


_READERS = 2

log = logging.getLogger("fcnseg")


def evaluate(
    config: RunConfig,
    request: EvaluationRequest,
    on_progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """Return the scores of a network on a labeled data set.

    Args:
        config: input, weights, limits and compute; the output is ignored.
        request: scores to compute.
        on_progress: callback at the start and after every finished chunk.

    Raises:
        ConfigError, LabelSetError, WeightsError: invalid settings; raised before images are read.
        InputError: the input has no images, or no image has a label.
        StoreError: the input cannot be read.
    """
    config = _without_output(config)
    if config.compute.executor == "ray":
        log.warning("evaluate works on this machine only: compute.executor ray is ignored")
    spec, weights = resolve_run(config)
    plan = make_plan(spec)
    stages = _LabelStages(spec, request)
    counting = run_around_network(
        spec, weights, plan.pending, read=stages.read, finish=stages.count
    )
    accumulator = EvaluationAccumulator(plan, spec.labels, request, config.limits)
    about = {"input": config.input.url, "fingerprint": spec.fingerprint}
    return accumulator.run(counting, about, on_progress)


def upper_bound(
    config: RunConfig,
    request: EvaluationRequest,
    on_progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """Return the scores of the labels against coarse copies of themselves, without a network.

    Source: appendix A of the FCN paper.

    Args:
        config: input, label set (or weights, which contain one), limits and compute.
        request: scores to compute; `factors` are the downsampling factors.
        on_progress: callback at the start and after every finished chunk.

    Raises:
        ConfigError, LabelSetError, WeightsError: invalid settings; raised before images are read.
        InputError: the input has no images, or no image has a label.
        StoreError: the input cannot be read.
    """
    config = _without_output(config)
    labels = _label_set(config)
    plan = make_plan(resolve_plan(config))
    limits = ChunkLimits(config.limits.chunk_images, config.limits.chunk_bytes)

    def read(shard: Shard) -> Iterator[Any]:
        try:
            yield from read_chunks(shard, plan.sources, limits)
        except (ShardError, MissingError) as error:
            yield ShardFailure.of(shard.id, error)

    def count(item: Any) -> Iterator[Any]:
        if isinstance(item, ShardFailure):
            yield item
        else:
            yield _count_truth(item, labels, request, config.limits.max_image_pixels)

    workers = config.compute.workers or os.cpu_count() or 1
    counting = run_stages(plan.pending, [(read, _READERS), (count, workers)])
    accumulator = EvaluationAccumulator(plan, labels, request, config.limits)
    return accumulator.run(counting, {"input": config.input.url}, on_progress)


def _without_output(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"output": OutputConfig(url=NOWHERE)})


def _label_set(config: RunConfig) -> LabelSet:
    if config.model.weights is not None:
        return resolve_run(config)[0].labels
    if config.input.label_set is None:
        raise ConfigError(
            where="--upper-bound",
            found="neither --label-set nor --weights",
            expected="a label set, which gives the meaning of the label values",
            remedy="Add --label-set, for example --label-set voc or a YAML file.",
        )
    return read_label_set(config.input.label_set)


class _LabelStages:
    """The steps before and after the network: keeps the labels until the masks are computed.

    Labels are kept encoded, and only for chunks in progress. Samples without a label are counted
    and not sent to the network.
    """

    def __init__(self, spec: RunSpec, request: EvaluationRequest) -> None:
        self.spec = spec
        self.request = request
        self._labels: dict[tuple[str, int], dict[str, tuple[bytes, str]]] = {}
        self._unlabeled: dict[tuple[str, int], int] = {}

    def read(self, shard: Shard) -> Iterator[Chunk]:
        for chunk in read_chunks(shard, self.spec.sources, self.spec.manifest.chunk_limits):
            labels = {
                sample.key: (sample.label, sample.label_location)
                for sample in chunk.samples
                if sample.label is not None
            }
            chunk_id = chunk.shard, chunk.seq
            self._labels[chunk_id] = labels
            self._unlabeled[chunk_id] = len(chunk.samples) - len(labels)
            kept = tuple(sample for sample in chunk.samples if sample.key in labels)
            yield replace(chunk, samples=kept)

    def count(self, segmented: SegmentedChunk) -> ChunkCounts:
        chunk_id = segmented.shard, segmented.seq
        labels = self._labels.pop(chunk_id)
        classes = self.spec.labels.num_classes

        def images() -> Iterator[tuple[str, Any]]:
            for result in segmented.images:
                data, where = labels[result.key]
                label = decode_truth(
                    data, where, self.spec.labels, self.spec.config.limits.max_image_pixels
                )
                matrices = band_confusions(label, result.mask, classes, self.request.widths)
                yield _name(segmented.shard, result.key), matrices

        return ChunkCounts(
            *chunk_id,
            segmented.count,
            ClassCounts.of(images(), (self.request.layers, classes)),
            self._unlabeled.pop(chunk_id),
            segmented.failures,
        )


def _count_truth(
    chunk: Chunk, labels: LabelSet, request: EvaluationRequest, max_pixels: int
) -> ChunkCounts:
    failures = list(chunk.failures)

    def images() -> Iterator[tuple[str, Any]]:
        for sample in chunk.samples:
            if sample.label is None:
                continue
            try:
                label = decode_truth(sample.label, sample.label_location, labels, max_pixels)
            except (ImageError, LabelError) as error:
                failures.append(Failure.of(sample.key, error, sample.location))
                continue
            yield (
                _name(chunk.shard, sample.key),
                upper_bound_confusions(label, labels.num_classes, request.factors),
            )

    counts = ClassCounts.of(images(), (request.layers, labels.num_classes))
    unlabeled = sum(sample.label is None for sample in chunk.samples)
    return ChunkCounts(chunk.shard, chunk.seq, chunk.count, counts, unlabeled, tuple(failures))


def _name(shard: str, key: str) -> str:
    return f"{shard}\0{key}"
