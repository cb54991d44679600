"""Preprocessing of pixels before the first layer; every weights file stores its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fcn_core.errors import WeightsError


@dataclass(frozen=True)
class Preprocessing:
    """Per-channel (pixel - mean) / std, on pixels in 0-255, with channels in the network's order.

    Attributes:
        channels: Order of the first three channels that the first convolution expects. Images give
            them as red, green, blue (or horizontal disparity, height, angle); "BGR" reverses these
            three. Further channels keep their place.
        mean: Mean of each channel in that order, 0-255. The network pads with zeros after the
            subtraction, so padding has the mean color.
        std: Standard deviation of each channel in that order, 0-255. Default: 1.
    """

    channels: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.std:
            object.__setattr__(self, "std", (1.0,) * len(self.mean))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "weights") -> Preprocessing:
        """Build the preprocessing from the JSON form of `to_dict`.

        Raises:
            WeightsError: A value that is missing or out of range.
        """
        try:
            channels, mean, std = data["channels"], tuple(data["mean"]), tuple(data["std"])
            if channels not in ("RGB", "BGR") or not mean or len(std) != len(mean) or min(std) <= 0:
                raise ValueError(f"{data}")
            if channels == "BGR" and len(mean) < 3:
                raise ValueError(f"{data}")
            if not all(map(math.isfinite, (*mean, *std))):
                raise ValueError(f"{data}")
            return cls(channels, tuple(map(float, mean)), tuple(map(float, std)))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(
                where=where,
                found=f"unreadable preprocessing ({error})",
                expected="channels RGB or BGR, one mean and one positive std per channel",
                remedy="Write the file again with fcn_core.weights.weights_file.save_weights.",
            ) from error


CAFFE_VOC = Preprocessing("BGR", (104.00698793, 116.66876762, 122.67891434))
"""PASCAL VOC. Source: infer.py and voc_layers.py of shelhamer/fcn.berkeleyvision.org."""


CAFFE_CONTEXT = Preprocessing("BGR", (104.007, 116.669, 122.679))
"""PASCAL-Context. Source: pascalcontext_layers.py of the same repository."""


CAFFE_SIFTFLOW = Preprocessing("BGR", (114.578, 115.294, 108.353))
"""SIFT Flow. Source: siftflow_layers.py."""


CAFFE_NYUD_COLOR = Preprocessing("BGR", (116.190, 97.203, 92.318))
"""NYUDv2, color images. Source: nyud_layers.py."""


CAFFE_NYUD_HHA = Preprocessing("RGB", (132.431, 94.076, 118.477))
"""NYUDv2, HHA images in the channel order of the file: nyud_layers.py does not reverse it."""


CAFFE_NYUD_COLOR_D = Preprocessing("BGR", (*CAFFE_NYUD_COLOR.mean, 7.844))
"""NYUDv2, color and the natural logarithm of the raw depth. Source: nyud_layers.py."""


CAFFE_NYUD_COLOR_HHA = Preprocessing("BGR", (*CAFFE_NYUD_COLOR.mean, *CAFFE_NYUD_HHA.mean))
"""NYUDv2, color channels and then HHA channels: the input of late fusion."""


CENTRED_RGB = Preprocessing("RGB", (127.5, 127.5, 127.5), (64.0, 64.0, 64.0))
"""Networks that this project trains from scratch."""


TORCHVISION = Preprocessing("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""ImageNet classifiers of torchvision. Source: their mean and std, times 255."""


PREPROCESSINGS: Mapping[str, Preprocessing] = {
    "voc": CAFFE_VOC,
    "context": CAFFE_CONTEXT,
    "siftflow": CAFFE_SIFTFLOW,
    "nyud": CAFFE_NYUD_COLOR,
    "nyud-hha": CAFFE_NYUD_HHA,
    "nyud-color-d": CAFFE_NYUD_COLOR_D,
    "nyud-color-hha": CAFFE_NYUD_COLOR_HHA,
    "torchvision": TORCHVISION,
}
"""Preprocessing of published weights, by the names that commands accept."""
