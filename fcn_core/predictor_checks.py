"""What a predictor refuses: arrays, networks, devices and precisions that cannot be used."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from fcn_core.architecture import Architecture
from fcn_core.errors import FcnError, ImageError, WeightsError
from fcn_core.weights_info import WeightsInfo

Precision = Literal["fp32", "tf32", "bf16", "fp16", "int8"]
Picture = NDArray[np.uint8] | NDArray[np.float32]


def check_image(image: Picture, channels: int, where: str) -> None:
    """Refuse what is no picture of a network.

    Args:
        image: see `Predictor.predict`.
        channels: that the network reads.
        where: named in the error.

    Raises:
        ImageError: it is something else.
    """
    kinds = (np.uint8,) if channels == 3 else (np.uint8, np.float32)
    if (
        not isinstance(image, np.ndarray)
        or image.dtype not in kinds
        or image.ndim != 3
        or image.shape[2] != channels
        or 0 in image.shape
    ):
        found = f"{getattr(image, 'dtype', type(image).__name__)} {np.shape(image)}"
        if channels == 3:
            expected, remedy = "uint8 (H, W, 3) RGB, at least 1x1", "Decode it to RGB first."
        else:
            expected = f"uint8 or float32 (H, W, {channels}), at least 1x1"
            remedy = "Stack the channels as docs/networks.md says."
        raise ImageError(where, found, expected, remedy)
    if image.dtype == np.float32 and not np.isfinite(image).all():
        remedy = "Fill in what the sensor did not measure, for example with the mean."
        raise ImageError(where, "NaN or infinity", "finite numbers", remedy)


def check_scores(mean_confidence: float, where: str) -> None:
    """Refuse a mask that means nothing.

    Args:
        mean_confidence: see `Prediction`.
        where: named in the error.

    Raises:
        WeightsError: the logits of some pixels are NaN or reach infinity.
    """
    if math.isnan(mean_confidence):
        raise WeightsError(
            where,
            "the network's scores are NaN or infinite",
            "finite ones: of all pictures, the weights diverged, or fp16 overflows",
            "Try --precision fp32, then an earlier checkpoint of the training.",
        )


def check_network(architecture: Architecture, info: WeightsInfo, head: str | None) -> None:
    """Refuse a description that is not the network's, and a head that it has not.

    Raises:
        WeightsError: naming what differs.
    """
    channels = len(info.preprocessing.mean)
    if channels != architecture.input_channels:
        raise WeightsError(
            "preprocessing",
            f"means of {channels} channels",
            f"{architecture.variant} reads {architecture.input_channels}",
            "Give the mean of every channel.",
        )
    if info.architecture.head_classes != architecture.head_classes:
        raise WeightsError(
            "weights",
            f"a description of heads {info.architecture.head_classes}",
            f"the network's are {architecture.head_classes}",
            "Describe the model.",
        )
    if head is not None and head not in architecture.head_classes:
        heads = ", ".join(repr(name) for name in architecture.head_classes)
        raise WeightsError("head", f"{head!r}", f"one of {heads}", "Choose a head of the network.")


def check_arithmetic(device: str, precision: str) -> None:
    """Refuse a device that is not there, and a precision that it has not. For int8: `check_int8`.

    Raises:
        FcnError: naming it.
    """
    if precision not in get_args(Precision):
        raise FcnError(
            "precision", f"{precision!r}", ", ".join(get_args(Precision)), "Choose one of them."
        )
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise FcnError(
            "device", f"{device!r}", "cpu, cuda or cuda:1", "Choose a device."
        ) from error
    if wanted.type == "cuda" and (wanted.index or 0) >= (count := torch.cuda.device_count()):
        raise FcnError("device", f"{device!r}, but torch sees {count} CUDA devices",
                       "a device that is there", "Use cpu, or check the driver.")  # fmt: skip
    if wanted.type == "cpu" and precision == "tf32":
        raise FcnError("precision", "tf32 on a CPU", "fp32 or bf16: TF32 is arithmetic of a GPU",
                       "Use --precision fp32.")  # fmt: skip
    if wanted.type == "cpu" and precision == "fp16":
        raise FcnError("precision", "fp16 on a CPU", "fp32 or bf16: fp16 is slow and inexact there",
                       "Use --precision bf16.")  # fmt: skip
