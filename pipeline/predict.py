"""`fcnseg predict`: single pictures, without shards, commits or reports."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn_core.checkpoint import WeightsFile
from fcn_core.errors import FcnError
from fcn_core.images import decode_image, encode_mask, overlay
from fcn_core.predictor import Precision, Predictor
from pipeline.errors import InputError
from pipeline.store import Store, read_url


@dataclass(frozen=True)
class Predicted:
    """One picture: where its mask and overlay are, and the classes in it by share of pixels."""

    image: str
    mask: str
    overlay: str
    mean_confidence: float
    shares: dict[str, float]


def predict_files(
    images: Sequence[str], output: Store, weights: WeightsFile, *, device: str, precision: Precision
) -> Iterator[Predicted | FcnError]:
    """Write `NAME-mask.png` and `NAME-overlay.png` per picture; an error instead for a bad one.

    Args:
        images: paths or URLs of pictures.
        output: where the results go.
        weights: of the network.
        device: "cpu", "cuda".
        precision: "fp32", "bf16", "fp16".

    Raises:
        InputError: two pictures of one name, whose results would overwrite each other, or a
            result that would overwrite a picture.
        WeightsError: the network cannot be loaded.
        StoreError: the output cannot be written.
    """
    names = [posixpath.splitext(posixpath.basename(image))[0] for image in images]
    for index, name in enumerate(names):
        if name in names[:index]:
            other = images[names.index(name)]
            raise InputError(
                images[index],
                f"{other} has the same name",
                "names that differ, because results are named after them",
                "Predict them into two directories.",
            )
    _refuse_overwriting(images, names, output)
    predictor = Predictor.load(weights, device=device, precision=precision)
    for image, name in zip(images, names, strict=True):
        try:
            picture = decode_image(read_url(image), image)
        except FcnError as error:
            yield error
            continue
        yield _write(image, name, picture, predictor, output)


def _refuse_overwriting(images: Sequence[str], names: Sequence[str], output: Store) -> None:
    pictures = {_address(image): image for image in images}
    for image, name in zip(images, names, strict=True):
        for result in _results(name):
            other = pictures.get(output.location(result))
            if other is not None:
                raise InputError(
                    other,
                    f"a picture that the results of {image} would overwrite",
                    "results beside the pictures, not over them",
                    "Choose another --output.",
                )


def _address(image: str) -> str:
    """A picture as `Store.location` would name it."""
    parent, _, name = image.rpartition("/")
    return Store(parent or ("/" if image.startswith("/") else ".")).location(name)


def _results(name: str) -> tuple[str, str]:
    return f"{name}-mask.png", f"{name}-overlay.png"


def _write(
    image: str, name: str, picture: NDArray[np.uint8], predictor: Predictor, output: Store
) -> Predicted:
    prediction = predictor.predict([picture])[0]
    labels = predictor.info.labels
    paths = _results(name)
    output.write(paths[0], encode_mask(prediction.mask, labels.palette))
    buffer = io.BytesIO()
    Image.fromarray(overlay(picture, prediction.mask, labels.palette)).save(buffer, "PNG")
    output.write(paths[1], buffer.getvalue())
    counts = np.bincount(prediction.mask.ravel(), minlength=labels.num_classes)
    shares = {
        labels.classes[k]: float(counts[k] / counts.sum())
        for k in np.argsort(-counts, kind="stable")
        if counts[k]
    }
    mask, picture_with_mask = (output.location(path) for path in paths)
    return Predicted(image, mask, picture_with_mask, prediction.mean_confidence, shares)
