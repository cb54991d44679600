"""The segment stage: encoded samples in, masks and pixel counts out. Holds the network."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fcn_core.checkpoint import WeightsFile
from fcn_core.errors import ImageError, LabelError
from fcn_core.images import decode_image, decode_label
from fcn_core.labels import LabelSet
from fcn_core.metrics import ConfusionMatrix
from fcn_core.predictor import Prediction, Predictor
from pipeline.chunks import Chunk
from pipeline.job import Job
from pipeline.results import ImageResult, Preview, Segmented
from pipeline.samples import Failure, Sample

# Decoded pictures held at once, per worker. A chunk of 64 MiB of flat PNGs may decode to gigabytes.
_WINDOW_BYTES = 256 * 2**20


@dataclass(frozen=True)
class _Decoded:
    sample: Sample
    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None


class Segmenter:
    """The network of a run, as a callable on chunks. One per worker."""

    def __init__(self, job: Job, weights: WeightsFile) -> None:
        self.job = job
        device = job.compute.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.predictor = Predictor(
            weights.load(),
            weights.info,
            device=device,
            precision=job.precision,  # type: ignore[arg-type]  # a Literal in RunConfig
            batch_size=job.compute.batch_size,
        )

    def __call__(self, chunk: Chunk) -> Segmented:
        """Masks, counts and failures of a chunk.

        A sample that cannot be decoded, or whose label does not fit, becomes a failure.
        """
        torch.set_num_threads(self.job.compute.threads_per_worker)  # of the calling thread
        started = time.perf_counter()
        failures = list(chunk.failures)
        results: list[ImageResult] = []
        previews = _PreviewChoice()
        confusion = ConfusionMatrix(self.job.labels.num_classes)
        forward_seconds = 0.0
        for window in _windows(self._decode(chunk, failures)):
            forward_started = time.perf_counter()
            predictions = self.predictor.predict([decoded.image for decoded in window])
            forward_seconds += time.perf_counter() - forward_started
            for decoded, prediction in zip(window, predictions, strict=True):
                result, matrix = self._count(decoded, prediction)
                confusion += matrix
                results.append(result)
                previews.consider(decoded, result)
        total = time.perf_counter() - started
        seconds = {
            "read": chunk.seconds,
            "decode": total - forward_seconds,
            "forward": forward_seconds,
        }
        return Segmented(
            chunk.shard,
            chunk.seq,
            chunk.count,
            tuple(results),
            tuple(failures),
            previews.chosen(),
            confusion,
            seconds,
            chunk.store_retries,
        )

    def _decode(self, chunk: Chunk, failures: list[Failure]) -> Iterator[_Decoded]:
        for sample in chunk.samples:
            try:
                yield decode_sample(sample, self.job.labels, self.job.max_image_pixels)
            except (ImageError, LabelError) as error:
                failures.append(Failure.of(sample.key, error, sample.location))

    def _count(
        self, decoded: _Decoded, prediction: Prediction
    ) -> tuple[ImageResult, ConfusionMatrix]:
        classes = self.job.labels.num_classes
        matrix = ConfusionMatrix(classes)
        pixels = np.bincount(prediction.mask.ravel(), minlength=classes)
        common: dict[str, Any] = {
            "key": decoded.sample.key,
            "mask": prediction.mask,
            "mean_confidence": prediction.mean_confidence,
            "class_pixels": tuple(int(n) for n in pixels),
        }
        if decoded.label is None:
            return ImageResult(**common), matrix
        matrix.update(decoded.label, prediction.mask)
        return ImageResult(
            **common,
            correct_pixels=matrix.correct_pixels,
            labeled_pixels=matrix.labeled_pixels,
            iou=matrix.scores().iou,
        ), matrix


def decode_sample(sample: Sample, labels: LabelSet, max_pixels: int) -> _Decoded:
    """Pixels and class indices of a sample.

    Raises:
        ImageError: the image or the label does not decode.
        LabelError: the label has another size, or values outside the label set.
    """
    image = decode_image(sample.image, sample.location, max_pixels)
    if sample.label is None:
        return _Decoded(sample, image, None)
    label = decode_truth(sample.label, _label_place(sample), labels, max_pixels)
    if label.shape != image.shape[:2]:
        height, width = label.shape
        raise LabelError(
            _label_place(sample),
            f"label is {width}x{height}, image is {image.shape[1]}x{image.shape[0]}",
            "labels must match the image size",
            "Drop the sample or fix the label.",
        )
    return _Decoded(sample, image, label)


def decode_truth(data: bytes, where: str, labels: LabelSet, max_pixels: int) -> NDArray[np.uint8]:
    """(H, W) class indices, 255 = void, of an encoded label.

    Raises:
        ImageError: it does not decode.
        LabelError: it holds values outside the label set.
    """
    raw = decode_label(data, where, max_pixels, colours=bool(labels.colours))
    return labels.encode(raw, where)


def _label_place(sample: Sample) -> str:
    return f"{sample.location}, label of {sample.key}"


def _windows(decoded: Iterator[_Decoded]) -> Iterator[list[_Decoded]]:
    window: list[_Decoded] = []
    size = 0
    for item in decoded:
        window.append(item)
        size += item.image.nbytes
        if size >= _WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window


class _PreviewChoice:
    """The first image of a chunk, and its worst: lowest share of correct pixels, or confidence."""

    def __init__(self) -> None:
        self.first: Preview | None = None
        self.worst: Preview | None = None
        self.worst_score = 0.0

    def consider(self, decoded: _Decoded, result: ImageResult) -> None:
        score = result.mean_confidence
        if result.correct_pixels is not None and result.labeled_pixels:
            score = result.correct_pixels / result.labeled_pixels
        preview = Preview(result.key, decoded.image, decoded.label, result.mask)
        if self.first is None:
            self.first = preview
        if self.worst is None or score < self.worst_score:
            self.worst, self.worst_score = preview, score

    def chosen(self) -> tuple[Preview, ...]:
        found = [preview for preview in (self.worst, self.first) if preview is not None]
        return tuple(found[:1] if len(found) == 2 and found[0].key == found[1].key else found)
