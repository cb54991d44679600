"""`fcnseg predict`: single pictures, without shards, commits or reports."""

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
"""Pictures that are read and decoded while the network works."""


_GAP = 4
"""White columns between the parts of a side-by-side picture."""


@dataclass(frozen=True)
class Predicted:
    """One picture: where its results are, and the classes in it by share of pixels."""

    image: str
    mask: str
    overlay: str
    side_by_side: str
    mean_confidence: float
    shares: dict[str, float]


@dataclass(frozen=True)
class Shown:
    """What is written of a picture, and its side-by-side picture, (H, W, 3) uint8 RGB."""

    written: Predicted
    side_by_side: NDArray[np.uint8]


@dataclass(frozen=True)
class PredictOptions:
    """How pictures are labelled.

    Attributes:
        device: "cpu", "cuda".
        precision: "fp32", "tf32", "bf16", "fp16", "int8".
        plain_forward: compute all of the padded canvas.
        max_image_pixels: larger pictures are bad ones.
    """

    device: str = "cpu"
    precision: Precision = "fp32"
    plain_forward: bool = False
    max_image_pixels: int = MAX_PIXELS


def predict_files(
    pictures: Sequence[InputImage], output: Store, weights: WeightsFile, options: PredictOptions
) -> Iterator[Shown | FcnError]:
    """Write mask, overlay and side-by-side picture of each; an error instead for a bad one.

    Args:
        pictures: see `find_pictures`.
        output: gets `NAME-mask.png`, `NAME-overlay.png` and `NAME-side.png`.
        weights: of the network.
        options: how.

    Raises:
        InputError: a result that would overwrite a picture.
        WeightsError: the network cannot be loaded.
        StoreError: the output cannot be written.
    """
    _refuse_overwriting(pictures, output)
    predictor = Predictor.load(
        weights,
        device=options.device,
        precision=options.precision,
        plain=options.plain_forward,
    )
    read = partial(_read, max_pixels=options.max_image_pixels)
    for picture, found in map_ordered(read, pictures, _READERS):
        if isinstance(found, FcnError):
            yield found
        else:
            try:
                yield _write(picture, found, predictor, output)
            except WeightsError as error:
                yield error


def _read(picture: InputImage, max_pixels: int) -> tuple[InputImage, NDArray[np.uint8] | FcnError]:
    try:
        if get_protocol(picture.address) == "file":
            refuse_irregular(picture.address)
        return picture, decode_image(read_url(picture.address), picture.address, max_pixels)
    except FcnError as error:
        return picture, error


def _refuse_overwriting(pictures: Sequence[InputImage], output: Store) -> None:
    addresses = {address_of(picture.address): picture.address for picture in pictures}
    for picture in pictures:
        for result in _results(picture.name):
            other = addresses.get(output.location(result))
            if other is not None:
                raise InputError(
                    where=other,
                    found=f"a picture that the results of {picture.address} would overwrite",
                    expected="results beside the pictures, not over them",
                    remedy="Choose another --output.",
                )


def _results(name: str) -> tuple[str, str, str]:
    return f"{name}-mask.png", f"{name}-overlay.png", f"{name}-side.png"


def _write(
    picture: InputImage, image: NDArray[np.uint8], predictor: Predictor, output: Store
) -> Shown:
    prediction = predictor.predict([image])[0]
    check_scores(prediction.mean_confidence, picture.address)
    labels, mask = predictor.labels, prediction.mask
    painted = overlay(image, mask, labels.palette)
    side = side_by_side(image, colorize(mask, labels.palette), painted)
    results = (encode_mask(mask, labels.palette), encode_image(painted), encode_image(side))
    paths = _results(picture.name)
    for path, data in zip(paths, results, strict=True):
        output.write(path, data)
    counts = np.bincount(mask.ravel(), minlength=labels.num_classes)
    shares = {
        labels.classes[k]: float(counts[k] / counts.sum())
        for k in np.argsort(-counts, kind="stable")
        if counts[k]
    }
    where = [output.location(path) for path in paths]
    confidence = prediction.mean_confidence
    return Shown(Predicted(picture.address, where[0], where[1], where[2], confidence, shares), side)


def side_by_side(*parts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures of one size, (H, W, 3) uint8 RGB each, from left to right."""
    gap = np.full((parts[0].shape[0], _GAP, 3), 255, np.uint8)
    columns = [parts[0]]
    for part in parts[1:]:
        columns += [gap, part]
    return np.concatenate(columns, axis=1)
