"""The segment stage: encoded samples in, masks and pixel counts out. Holds the network.

It runs in a worker process (`pipeline.workers.inside`), because a picture may crash, hang or starve
whatever decodes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fcn_core.checkpoint import WeightsFile
from fcn_core.errors import FcnError, LabelError
from fcn_core.images import decode_image
from fcn_core.labels import LabelSet
from fcn_core.metrics import ConfusionMatrix
from fcn_core.predictor import Prediction, Predictor
from pipeline.errors import PoisonError
from pipeline.results import ImageResult, Piece, Preview, PreviewChoice, PreviewCounts
from pipeline.samples import Failure, Sample, decode_truth
from pipeline.workers.words import NetworkSettings

Announce = Callable[[Sequence[int]], None]
"""Told the places of the samples that are worked on next."""

# Decoded pictures held at once, per worker. A chunk of 64 MiB of flat PNGs may decode to gigabytes.
_WINDOW_BYTES = 256 * 2**20


@dataclass(frozen=True)
class _Decoded:
    sample: Sample
    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None


class Segmenter:
    """The network of a run, as a callable on samples. One per worker process."""

    def __init__(self, settings: NetworkSettings, weights: WeightsFile) -> None:
        self.settings = settings
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(settings.threads)
        self.predictor = Predictor(
            weights.load(),
            weights.info,
            device=device,
            precision=settings.precision,  # type: ignore[arg-type]  # a Literal in RunConfig
            batch_size=settings.batch_size,
            plain=settings.plain_forward,
        )

    def __call__(self, samples: Sequence[Sample], announce: Announce = lambda _: None) -> Piece:
        """Masks, counts and failures of some samples.

        A sample that cannot be decoded, or whose label does not fit, becomes a failure.

        Raises:
            MemoryError: a picture, or what the network makes of it, does not fit.
        """
        started = time.perf_counter()
        failures: list[Failure] = []
        results: list[ImageResult] = []
        previews = PreviewChoice(PreviewCounts(self.settings.review_images))
        confusion = ConfusionMatrix(self.settings.labels.num_classes)
        forward_seconds = 0.0
        for window in _windows(self._decode(samples, failures, announce)):
            forward_started = time.perf_counter()
            predictions = self._predict(window, announce)
            forward_seconds += time.perf_counter() - forward_started
            for (_, decoded), prediction in zip(window, predictions, strict=True):
                result, matrix = self._count(decoded, prediction)
                confusion += matrix
                results.append(result)
                previews.consider(
                    result, Preview(result.key, decoded.image, decoded.label, result.mask)
                )
        total = time.perf_counter() - started
        seconds = {"decode": total - forward_seconds, "forward": forward_seconds}
        return Piece(tuple(results), tuple(failures), previews.chosen(), confusion, seconds)

    def _predict(
        self, window: Sequence[tuple[int, _Decoded]], announce: Announce
    ) -> list[Prediction]:
        def on_batch(batch: Sequence[int]) -> None:
            announce([window[index][0] for index in batch])

        try:
            images = [decoded.image for _, decoded in window]
            return self.predictor.predict(images, on_batch, confidence=self.settings.confidence)
        except RuntimeError as error:
            if _is_out_of_memory(error):
                raise MemoryError(str(error)) from error
            raise

    def _decode(
        self, samples: Sequence[Sample], failures: list[Failure], announce: Announce
    ) -> Iterator[tuple[int, _Decoded]]:
        for index, sample in enumerate(samples):
            announce([index])
            try:
                found = decode_sample(sample, self.settings.labels, self.settings.max_image_pixels)
            except MemoryError:
                raise
            except Exception as error:
                # What Pillow raises for damaged files has no bounds; a bug of ours fails every
                # sample here, and the limits end the run with its text.
                if _is_out_of_memory(error.__cause__ or error):
                    raise MemoryError(str(error)) from error
                failures.append(Failure.of(sample.key, _explained(error, sample), sample.location))
            else:
                yield index, found

    def _count(
        self, decoded: _Decoded, prediction: Prediction
    ) -> tuple[ImageResult, ConfusionMatrix]:
        classes = self.settings.labels.num_classes
        matrix = ConfusionMatrix(classes)
        pixels = np.bincount(prediction.mask.ravel(), minlength=classes)
        common: dict[str, Any] = {
            "key": decoded.sample.key,
            "mask": prediction.mask,
            "mean_confidence": prediction.mean_confidence,
            "confidence": prediction.confidence,
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


def _explained(error: Exception, sample: Sample) -> FcnError:
    if isinstance(error, FcnError):
        return error
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return PoisonError(
        sample.location,
        f"decoding it raised {text[:300]}",
        "a picture and a label that decode",
        "Replace or remove it.",
    )


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; torch on a CPU, oneDNN and Pillow say so in words only."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("out of memory", "can't allocate memory", "could not allocate")
    return isinstance(error, RuntimeError | OSError) and any(w in str(error) for w in words)


def decode_sample(sample: Sample, labels: LabelSet, max_pixels: int) -> _Decoded:
    """Pixels and class indices of a sample.

    Raises:
        ImageError: the image or the label does not decode.
        LabelError: the label has another size, or values outside the label set.
    """
    image = decode_image(sample.image, sample.location, max_pixels)
    if sample.label is None:
        return _Decoded(sample, image, None)
    label = decode_truth(sample.label, sample.label_location, labels, max_pixels)
    if label.shape != image.shape[:2]:
        height, width = label.shape
        raise LabelError(
            sample.label_location,
            f"label is {width}x{height}, image is {image.shape[1]}x{image.shape[0]}",
            "labels must match the image size",
            "Drop the sample or fix the label.",
        )
    return _Decoded(sample, image, label)


def _windows(decoded: Iterator[tuple[int, _Decoded]]) -> Iterator[list[tuple[int, _Decoded]]]:
    window: list[tuple[int, _Decoded]] = []
    size = 0
    for item in decoded:
        window.append(item)
        size += item[1].image.nbytes
        if size >= _WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window
