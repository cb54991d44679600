"""The segment stage: encoded samples in, masks and pixel counts out. Holds the network.

It runs in a worker process (`pipeline.workers.worker_main`), because a picture may crash, hang or starve
whatever decodes it.
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
"""Told the places of the samples that are worked on next."""


_WINDOW_BYTES = 256 * 2**20
"""Decoded pictures held at once: a chunk of 64 MiB of flat PNGs may decode to gigabytes."""


_WINDOW_SHARE = 16
"""Of the memory that the process may take, this part."""


_WINDOWS_AHEAD = 4
"""Where decoding goes on beside the network: one window is counted, one in the network, one ready,
one being decoded; and what the decoders hold."""


_MAX_DECODERS = 8


@dataclass(frozen=True)
class _Decoded:
    sample: Sample
    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None


_Placed = tuple[int, _Decoded]
"""A sample and its place among those of the call."""


_Predicted = tuple[list[_Placed], list[Prediction], float]
"""Some samples, what the network says of them, and how many seconds it took."""


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
        self.decoders = settings.decoders
        if self.decoders is None:  # on a CPU the network has all cores, and nothing waits for it
            on_cpu = self.predictor.device.type == "cpu"
            self.decoders = 0 if on_cpu else min(_MAX_DECODERS, os.cpu_count() or 1)

    def __call__(
        self, samples: Sequence[Sample], announce: Announce = lambda _: None
    ) -> SegmentedPart:
        """Masks, counts and failures of some samples.

        A sample becomes a failure that cannot be decoded, whose label does not fit, or for which
        the network's scores are no numbers.

        Raises:
            MemoryError: a picture, or what the network makes of it, does not fit.
        """
        started = time.perf_counter()
        failures: list[Failure] = []
        results: list[ImageResult] = []
        previews = PreviewChoice(PreviewCounts(self.settings.review_images))
        confusion = ConfusionMatrix(self.settings.labels.num_classes)
        forward_seconds = 0.0
        at_work = _AtWork(announce)
        for window, predictions, seconds in self._predicted(samples, failures, at_work):
            forward_seconds += seconds
            for (_, decoded), prediction in zip(window, predictions, strict=True):
                try:
                    check_scores(prediction.mean_confidence, decoded.sample.location)
                except WeightsError as error:
                    failures.append(Failure.of(decoded.sample.key, error, decoded.sample.location))
                    continue
                assert prediction.pairs is not None
                confusion.add_pairs(prediction.pairs)
                result = _counted(decoded, prediction.pairs, prediction)
                results.append(result)
                previews.consider(
                    result, Preview(result.key, decoded.image, decoded.label, result.mask)
                )
        total = time.perf_counter() - started
        by_activity = {"decode": total - forward_seconds, "forward": forward_seconds}
        return SegmentedPart(
            tuple(results), tuple(failures), previews.chosen(), confusion, by_activity
        )

    def _predicted(
        self, samples: Sequence[Sample], failures: list[Failure], at_work: _AtWork
    ) -> Iterator[_Predicted]:
        """Windows after the network; if there are decoders, the next one is in it meanwhile."""

        def predicted(window: list[_Placed]) -> _Predicted:
            torch.set_num_threads(self.settings.threads)  # which each thread of ours is to be told
            started = time.perf_counter()
            predictions = self._predict(window, at_work)
            return window, predictions, time.perf_counter() - started

        with closing(self._windows(samples, failures, at_work)) as windows:
            found = map(predicted, windows)
            if not self.decoders:
                yield from found
                return
            with closing(prefetch(found)) as ready:
                yield from ready

    def _windows(
        self, samples: Sequence[Sample], failures: list[Failure], at_work: _AtWork
    ) -> Generator[list[_Placed], None, None]:
        """Decoded samples, some at a time; the next ones meanwhile, if there are decoders."""

        def decode(item: tuple[int, Sample]) -> _Placed | Failure:
            with at_work.decoding(item[0]):
                found = self._decode(item[1])
            return found if isinstance(found, Failure) else (item[0], found)

        most = min(_WINDOW_BYTES, self.settings.memory // _WINDOW_SHARE)
        if not self.decoders:
            yield from _gathered(map(decode, enumerate(samples)), failures, most)
            return
        with closing(map_ordered(decode, enumerate(samples), self.decoders)) as decoded:
            windows = _gathered(decoded, failures, most // _WINDOWS_AHEAD)
            with closing(prefetch(windows)) as ready:
                yield from ready

    def _predict(self, window: Sequence[_Placed], at_work: _AtWork) -> list[Prediction]:
        def on_batch(batch: Sequence[int]) -> None:
            at_work.begin_batch([window[index][0] for index in batch])

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
            at_work.end_batch()

    def _decode(self, sample: Sample) -> _Decoded | Failure:
        try:
            return decode_sample(sample, self.settings.labels, self.settings.max_image_pixels)
        except MemoryError:
            raise
        except Exception as error:
            # What Pillow raises for damaged files has no bounds; a bug of ours fails every
            # sample here, and the limits end the run with its text.
            if _is_out_of_memory(error.__cause__ or error):
                raise MemoryError(str(error)) from error
            return Failure.of(sample.key, _explained(error, sample), sample.location)


def _counted(decoded: _Decoded, pairs: NDArray[np.int64], prediction: Prediction) -> ImageResult:
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


def _explained(error: Exception, sample: Sample) -> FcnError:
    if isinstance(error, FcnError):
        return error
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return PoisonError(
        where=sample.location,
        found=f"decoding it raised {text[:300]}",
        expected="a picture and a label that decode",
        remedy="Replace or remove it.",
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
    check_label_size(sample, image, label, LabelError)
    return _Decoded(sample, image, label)


def _gathered(
    found: Iterable[_Placed | Failure], failures: list[Failure], most_bytes: int
) -> Iterator[list[_Placed]]:
    """What could be decoded, about so many bytes at a time; what could not joins the failures."""
    window: list[_Placed] = []
    size = 0
    for item in found:
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


class _AtWork:
    """Which samples are being decoded or in the network, told at every beginning."""

    def __init__(self, announce: Announce) -> None:
        self._announce = announce
        self._lock = threading.Lock()
        self._decoding: set[int] = set()
        self._batch: Sequence[int] = ()

    @contextmanager
    def decoding(self, place: int) -> Iterator[None]:
        """While a sample is decoded, from any thread."""
        with self._lock:
            self._decoding.add(place)
            self._tell()
        try:
            yield
        finally:
            with self._lock:
                self._decoding.discard(place)

    def begin_batch(self, places: Sequence[int]) -> None:
        """These are in the network now, and no others."""
        with self._lock:
            self._batch = places
            self._tell()

    def end_batch(self) -> None:
        """Nothing is."""
        with self._lock:
            self._batch = ()

    def _tell(self) -> None:
        self._announce(sorted({*self._decoding, *self._batch}))
