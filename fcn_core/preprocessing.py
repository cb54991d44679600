"""What happens to pixels before the network sees them. It travels with the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from fcn_core.errors import WeightsError

Channels = Literal["RGB", "BGR", "BGRD", "BGRHHA"]
"""One letter per channel: D is the natural logarithm of depth, HHA depth coded in three."""


@dataclass(frozen=True)
class Preprocessing:
    """(pixel - mean) / std per channel, on pixels in 0-255, channels in the network's order.

    Attributes:
        channels: what the first convolution expects, in order. A colour picture is RGB or BGR; so
            is an HHA picture alone, which the reference code does not turn round (RGB).
        mean: in that order, 0-255. The network pads with zeros after the subtraction, that is
            with the mean colour.
        std: in that order, 0-255.
    """

    channels: Channels = "RGB"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

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
            if channels not in get_args(Channels) or min(std) <= 0:
                raise ValueError(f"{data}")
            if not len(mean) == len(std) == len(channels):
                raise ValueError(f"{data}")
            if not all(map(math.isfinite, (*mean, *std))):
                raise ValueError(f"{data}")
            return cls(channels, tuple(map(float, mean)), tuple(map(float, std)))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(
                where,
                f"unreadable preprocessing ({error})",
                f"channels {', '.join(get_args(Channels))}, one mean and one positive std for each",
                "Write the file again with fcn_core.checkpoint.save_weights.",
            ) from error


CAFFE_VOC = Preprocessing("BGR", (104.00698793, 116.66876762, 122.67891434))
"""Source: infer.py and voc_layers.py of shelhamer/fcn.berkeleyvision.org."""

_HHA = (132.431, 94.076, 118.477)
_NYUD = (116.190, 97.203, 92.318)

PREPROCESSINGS: Mapping[str, Preprocessing] = {
    "voc": CAFFE_VOC,
    "context": Preprocessing("BGR", (104.007, 116.669, 122.679)),
    "siftflow": Preprocessing("BGR", (114.578, 115.294, 108.353)),
    "nyud": Preprocessing("BGR", _NYUD),
    "nyud-hha": Preprocessing("RGB", _HHA),
    "nyud-color-d": Preprocessing("BGRD", (*_NYUD, 7.844), (1.0,) * 4),
    "nyud-color-hha": Preprocessing("BGRHHA", (*_NYUD, *_HHA), (1.0,) * 6),
    "torchvision": Preprocessing("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}
"""By the data set that the means are of.

Sources: voc_layers.py, pascalcontext_layers.py, siftflow_layers.py, nyud_layers.py and the net.py
files of shelhamer/fcn.berkeleyvision.org; torchvision's ImageNet mean and std, times 255.
"""

CENTRED_RGB = Preprocessing("RGB", (127.5, 127.5, 127.5), (64.0, 64.0, 64.0))
"""For networks trained here from scratch."""
