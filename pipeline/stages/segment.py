"""The segment stage: decode samples, run the network, and return masks and pixel counts.

It runs in a worker process (`pipeline.workers.worker_main`), because decoding an image may crash
the process, hang, or use up its memory.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fcn_core.errors import FcnError, LabelError, WeightsError
from fcn_core.images import decode_image
from fcn_core.labels import LabelSet
from fcn_core.metrics import ConfusionMatrix
from fcn_core.predictor import Prediction, Predictor, check_scores
from fcn_core.weights.weights_file import WeightsFile
from pipeline.concurrency import map_ordered, prefetch
from pipeline.errors import PoisonError
from pipeline.inputs.sample import Failure, Sample, check_label_size, decode_truth
from pipeline.stages.previews import PreviewChoice, PreviewCounts
from pipeline.stages.records import ImageResult, Preview, SegmentedPart
from pipeline.stages.spec import NetworkSettings

Announce = Callable[[Sequence[int]], None]
"""Called with the positions of all samples that are now being decoded or predicted."""


WINDOW_BYTES = 256 * 2**20
"""Most bytes of decoded images held at once: 64 MiB of PNGs may decode to gigabytes."""


_WINDOW_SHARE = 16
"""A window takes at most 1/16 of the memory that the process may use."""


_WINDOWS_AHEAD = 4
"""Windows in memory when threads decode: one being counted, one in the network, one ready, and one
being decoded."""


_MAX_DECODERS = 8


@dataclass(frozen=True)
class _Decoded:
    sample: Sample
    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None


_Placed = tuple[int, _Decoded]
"""A decoded sample and its position among the samples of the call."""


_Predicted = tuple[list[_Placed], list[Prediction], float]
"""A window of samples, their predictions, and the seconds of the forward pass."""


class Segmenter:
    """The network of a run. Call it with samples to get their masks. One per worker process."""

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
        self.decoders = settings.decoders
        if self.decoders is None:  # on a CPU the network uses all cores: no decoder threads
            on_cpu = self.predictor.device.type == "cpu"
            self.decoders = 0 if on_cpu else min(_MAX_DECODERS, os.cpu_count() or 1)

    def __call__(
        self, samples: Sequence[Sample], announce: Announce = lambda _: None
    ) -> SegmentedPart:
        """Return the masks, counts and failures of samples.

        A sample becomes a failure if it cannot be decoded, if its label does not fit the image, or
        if the network's scores for it are not finite.

        Args:
            samples: encoded samples.
            announce: called whenever other samples are being decoded or predicted.

        Raises:
            MemoryError: an image or its activations do not fit in memory.
        """
        started = time.perf_counter()
        failures: list[Failure] = []
        results: list[ImageResult] = []
        previews = PreviewChoice(PreviewCounts(self.settings.review_images))
        confusion = ConfusionMatrix(self.settings.labels.num_classes)
        forward_seconds = 0.0
        in_progress = _InProgress(announce)
        for window, predictions, seconds in self._predict_windows(samples, failures, in_progress):
            forward_seconds += seconds
            for (_, decoded), prediction in zip(window, predictions, strict=True):
                try:
                    check_scores(prediction.mean_confidence, decoded.sample.location)
                except WeightsError as error:
                    failures.append(Failure.of(decoded.sample.key, error, decoded.sample.location))
                    continue
                assert prediction.pairs is not None
                confusion.add_pairs(prediction.pairs)
                result = _build_result(decoded, prediction.pairs, prediction)
                results.append(result)
                previews.consider(
                    result, Preview(result.key, decoded.image, decoded.label, result.mask)
                )
        total = time.perf_counter() - started
        by_activity = {"decode": total - forward_seconds, "forward": forward_seconds}
        return SegmentedPart(
            tuple(results), tuple(failures), previews.chosen(), confusion, by_activity
        )

    def _predict_windows(
        self, samples: Sequence[Sample], failures: list[Failure], in_progress: _InProgress
    ) -> Iterator[_Predicted]:
        """Yield predicted windows; with decoders, the next window is predicted meanwhile."""

        def predict(window: list[_Placed]) -> _Predicted:
            torch.set_num_threads(self.settings.threads)  # a setting of the calling thread
            started = time.perf_counter()
            predictions = self._predict(window, in_progress)
            return window, predictions, time.perf_counter() - started

        with closing(self._windows(samples, failures, in_progress)) as windows:
            results = map(predict, windows)
            if not self.decoders:
                yield from results
                return
            with closing(prefetch(results)) as ready:
                yield from ready

    def _windows(
        self, samples: Sequence[Sample], failures: list[Failure], in_progress: _InProgress
    ) -> Generator[list[_Placed], None, None]:
        """Yield windows of decoded samples; with decoders, the next one is decoded meanwhile."""

        def decode(item: tuple[int, Sample]) -> _Placed | Failure:
            with in_progress.decoding(item[0]):
                decoded = self._decode(item[1])
            return decoded if isinstance(decoded, Failure) else (item[0], decoded)

        most = min(WINDOW_BYTES, self.settings.memory // _WINDOW_SHARE)
        if not self.decoders:
            yield from _group_windows(map(decode, enumerate(samples)), failures, most)
            return
        with closing(map_ordered(decode, enumerate(samples), self.decoders)) as decoded:
            windows = _group_windows(decoded, failures, most // _WINDOWS_AHEAD)
            with closing(prefetch(windows)) as ready:
                yield from ready

    def _predict(self, window: Sequence[_Placed], in_progress: _InProgress) -> list[Prediction]:
        def on_batch(batch: Sequence[int]) -> None:
            in_progress.begin_batch([window[index][0] for index in batch])

        try:
            images = [decoded.image for _, decoded in window]
            labels = [decoded.label for _, decoded in window]
            return self.predictor.predict(
                images, on_batch, confidence=self.settings.confidence, labels=labels
            )
        except RuntimeError as error:
            if _is_out_of_memory(error):
                raise MemoryError(str(error)) from error
            raise
        finally:
            in_progress.end_batch()

    def _decode(self, sample: Sample) -> _Decoded | Failure:
        try:
            return decode_sample(sample, self.settings.labels, self.settings.max_image_pixels)
        except MemoryError:
            raise
        except Exception as error:
            # Pillow may raise any exception for damaged files. A bug of this project would fail
            # every sample here, and the limits for bad images would stop the run with its text.
            if _is_out_of_memory(error.__cause__ or error):
                raise MemoryError(str(error)) from error
            return Failure.of(sample.key, _to_fcn_error(error, sample), sample.location)


def _build_result(
    decoded: _Decoded, pairs: NDArray[np.int64], prediction: Prediction
) -> ImageResult:
    common: dict[str, Any] = {
        "key": decoded.sample.key,
        "mask": prediction.mask,
        "mean_confidence": prediction.mean_confidence,
        "confidence": prediction.confidence,
        "class_pixels": tuple(pairs.sum(axis=1).tolist()),
    }
    if decoded.label is None:
        return ImageResult(**common)
    matrix = ConfusionMatrix(len(pairs)).add_pairs(pairs)
    return ImageResult(
        **common,
        correct_pixels=matrix.correct_pixels,
        labeled_pixels=matrix.labeled_pixels,
        iou=matrix.iou,
    )


def _to_fcn_error(error: Exception, sample: Sample) -> FcnError:
    if isinstance(error, FcnError):
        return error
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return PoisonError(
        where=sample.location,
        found=f"decoding it raised {text[:300]}",
        expected="an image and a label that decode",
        remedy="Replace or remove it.",
    )


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed; some libraries report it only in the message."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = ("out of memory", "can't allocate memory", "could not allocate")
    return isinstance(error, RuntimeError | OSError) and any(w in str(error) for w in words)


def decode_sample(sample: Sample, labels: LabelSet, max_pixels: int) -> _Decoded:
    """Decode the image and the label of a sample.

    Raises:
        ImageError: the image or the label does not decode.
        LabelError: the label has another size, or values outside the label set.
    """
    image = decode_image(sample.image, sample.location, max_pixels)
    if sample.label is None:
        return _Decoded(sample, image, None)
    label = decode_truth(sample.label, sample.label_location, labels, max_pixels)
    check_label_size(sample, image, label, LabelError)
    return _Decoded(sample, image, label)


def _group_windows(
    decoded: Iterable[_Placed | Failure], failures: list[Failure], most_bytes: int
) -> Iterator[list[_Placed]]:
    """Yield windows of about `most_bytes` bytes of decoded images, and collect the failures."""
    window: list[_Placed] = []
    size = 0
    for item in decoded:
        if isinstance(item, Failure):
            failures.append(item)
            continue
        window.append(item)
        size += item[1].image.nbytes
        if size >= most_bytes:
            yield window
            window, size = [], 0
    if window:
        yield window


class _InProgress:
    """Keeps track of the samples being decoded or predicted, and announces every start."""

    def __init__(self, announce: Announce) -> None:
        self._announce = announce
        self._lock = threading.Lock()
        self._decoding: set[int] = set()
        self._batch: Sequence[int] = ()

    @contextmanager
    def decoding(self, place: int) -> Iterator[None]:
        """Mark a sample as being decoded inside a `with` block, in any thread."""
        with self._lock:
            self._decoding.add(place)
            self._announce_all()
        try:
            yield
        finally:
            with self._lock:
                self._decoding.discard(place)

    def begin_batch(self, places: Sequence[int]) -> None:
        """Mark these samples, and no others, as being in the network."""
        with self._lock:
            self._batch = places
            self._announce_all()

    def end_batch(self) -> None:
        """Mark that no sample is in the network."""
        with self._lock:
            self._batch = ()

    def _announce_all(self) -> None:
        self._announce(sorted({*self._decoding, *self._batch}))
