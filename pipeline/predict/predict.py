"""`fcnseg predict`: segment single images, without shards, commits or reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fcn_core.errors import FcnError, WeightsError
from fcn_core.images import MAX_PIXELS, colorize, decode_image, encode_image, encode_mask, overlay
from fcn_core.predictor import Precision, Predictor, check_scores
from fcn_core.weights.weights_file import WeightsFile
from pipeline.concurrency import map_ordered
from pipeline.errors import InputError
from pipeline.predict.find_images import InputImage, address_of, refuse_irregular
from pipeline.storage.store import Store, get_protocol, read_url

_READERS = 2
"""Images that are read and decoded while the network computes."""


_GAP = 4
"""White columns between the parts of a side-by-side image."""


@dataclass(frozen=True)
class PredictedFiles:
    """Results of one image; the fields are keys of `--json`.

    Attributes:
        image: address of the image.
        mask, overlay, side_by_side: addresses of its results.
        mean_confidence: mean softmax probability of the chosen classes, 0-1.
        shares: share of the pixels, 0-1, of each class in the mask, largest first.
    """

    image: str
    mask: str
    overlay: str
    side_by_side: str
    mean_confidence: float
    shares: dict[str, float]


@dataclass(frozen=True)
class ImagePrediction:
    """Written results of one image, and the side-by-side image: (H, W, 3) uint8 RGB."""

    written: PredictedFiles
    side_by_side: NDArray[np.uint8]


@dataclass(frozen=True)
class PredictOptions:
    """Options of `fcnseg predict`.

    Attributes:
        device: "cpu" or "cuda".
        precision: "fp32", "tf32", "bf16", "fp16" or "int8".
        plain_forward: whether to compute the whole padded canvas.
        max_image_pixels: maximum number of pixels; larger images are errors.
    """

    device: str = "cpu"
    precision: Precision = "fp32"
    plain_forward: bool = False
    max_image_pixels: int = MAX_PIXELS


def predict_files(
    images: Sequence[InputImage], output: Store, weights: WeightsFile, options: PredictOptions
) -> Iterator[ImagePrediction | FcnError]:
    """Write mask, overlay and side-by-side image of each image; yield results, or the error.

    Args:
        images: images from `find_images`.
        output: store for `NAME-mask.png`, `NAME-overlay.png` and `NAME-side.png`.
        weights: weights of the network.
        options: device, precision and limits.

    Raises:
        InputError: a result would overwrite an input image.
        WeightsError: the network cannot be loaded.
        StoreError: the output cannot be written.
    """
    _refuse_overwriting(images, output)
    predictor = Predictor.load(
        weights,
        device=options.device,
        precision=options.precision,
        plain=options.plain_forward,
    )
    read = partial(_read, max_pixels=options.max_image_pixels)
    for image, decoded in map_ordered(read, images, _READERS):
        if isinstance(decoded, FcnError):
            yield decoded
        else:
            try:
                yield _write(image, decoded, predictor, output)
            except WeightsError as error:
                yield error


def _read(image: InputImage, max_pixels: int) -> tuple[InputImage, NDArray[np.uint8] | FcnError]:
    try:
        if get_protocol(image.address) == "file":
            refuse_irregular(image.address)
        return image, decode_image(read_url(image.address), image.address, max_pixels)
    except FcnError as error:
        return image, error


def _refuse_overwriting(images: Sequence[InputImage], output: Store) -> None:
    addresses = {address_of(image.address): image.address for image in images}
    for image in images:
        for result in _result_names(image.name):
            other = addresses.get(output.location(result))
            if other is not None:
                raise InputError(
                    where=other,
                    found=f"the results of {image.address} would overwrite this image",
                    expected="results that do not overwrite images",
                    remedy="Choose another --output.",
                )


def _result_names(name: str) -> tuple[str, str, str]:
    return f"{name}-mask.png", f"{name}-overlay.png", f"{name}-side.png"


def _write(
    source: InputImage, image: NDArray[np.uint8], predictor: Predictor, output: Store
) -> ImagePrediction:
    prediction = predictor.predict([image])[0]
    check_scores(prediction.mean_confidence, source.address)
    labels, mask = predictor.labels, prediction.mask
    painted = overlay(image, mask, labels.palette)
    side = side_by_side(image, colorize(mask, labels.palette), painted)
    results = (encode_mask(mask, labels.palette), encode_image(painted), encode_image(side))
    paths = _result_names(source.name)
    for path, data in zip(paths, results, strict=True):
        output.write(path, data)
    counts = np.bincount(mask.ravel(), minlength=labels.num_classes)
    shares = {
        labels.classes[k]: float(counts[k] / counts.sum())
        for k in np.argsort(-counts, kind="stable")
        if counts[k]
    }
    addresses = [output.location(path) for path in paths]
    confidence = prediction.mean_confidence
    return ImagePrediction(
        PredictedFiles(
            source.address, addresses[0], addresses[1], addresses[2], confidence, shares
        ),
        side,
    )


def side_by_side(*parts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images of one size, each (H, W, 3) uint8 RGB, joined from left to right."""
    gap = np.full((parts[0].shape[0], _GAP, 3), 255, np.uint8)
    columns = [parts[0]]
    for part in parts[1:]:
        columns += [gap, part]
    return np.concatenate(columns, axis=1)
