"""What happens to pixels before the network sees them. It travels with the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fcn_core.errors import WeightsError


@dataclass(frozen=True)
class Preprocessing:
    """(pixel - mean) / std per channel, on pixels in 0-255, channels in the network's order.

    Attributes:
        channels: the order the first convolution expects of the first three channels, which are
            given as red, green, blue (or as horizontal disparity, height, angle); "BGR" turns
            them round. Any further channels stay where they are.
        mean: in that order, 0-255, one per channel. The network pads with zeros after the
            subtraction, that is with the mean colour.
        std: in that order, 0-255. Default: 1 for each channel.
    """

    channels: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.std:
            object.__setattr__(self, "std", (1.0,) * len(self.mean))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form that `from_dict` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "weights") -> Preprocessing:
        """What `to_dict` gave.

        Raises:
            WeightsError: a value is missing or impossible.
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
"""Source: infer.py and voc_layers.py of shelhamer/fcn.berkeleyvision.org, as the five below."""


CAFFE_CONTEXT = Preprocessing("BGR", (104.007, 116.669, 122.679))
"""PASCAL-Context. Source: pascalcontext_layers.py."""


CAFFE_SIFTFLOW = Preprocessing("BGR", (114.578, 115.294, 108.353))
"""SIFT Flow. Source: siftflow_layers.py."""


CAFFE_NYUD_COLOR = Preprocessing("BGR", (116.190, 97.203, 92.318))
"""NYUDv2, colour. Source: nyud_layers.py."""


CAFFE_NYUD_HHA = Preprocessing("RGB", (132.431, 94.076, 118.477))
"""NYUDv2, HHA in the order of its file: nyud_layers.py does not turn it round."""


CAFFE_NYUD_COLOR_D = Preprocessing("BGR", (*CAFFE_NYUD_COLOR.mean, 7.844))
"""NYUDv2, colour and the natural logarithm of the raw depth. Source: nyud_layers.py."""


CAFFE_NYUD_COLOR_HHA = Preprocessing("BGR", (*CAFFE_NYUD_COLOR.mean, *CAFFE_NYUD_HHA.mean))
"""NYUDv2, colour and HHA: the inputs of late fusion, one after the other."""


CENTRED_RGB = Preprocessing("RGB", (127.5, 127.5, 127.5), (64.0, 64.0, 64.0))
"""For networks trained here from scratch."""


TORCHVISION = Preprocessing("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""torchvision's ImageNet classifiers. Source: their mean and std, times 255."""


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
"""By the names under which commands find those of published weights."""
