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
        channels: the order the first convolution expects.
        mean: in that order, 0-255. The network pads with zeros after the subtraction, that is
            with the mean colour.
        std: in that order, 0-255.
    """

    channels: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

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
            if channels not in ("RGB", "BGR") or len(mean) != 3 or len(std) != 3 or min(std) <= 0:
                raise ValueError(f"{data}")
            if not all(map(math.isfinite, (*mean, *std))):
                raise ValueError(f"{data}")
            return cls(channels, tuple(map(float, mean)), tuple(map(float, std)))  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(
                where,
                f"unreadable preprocessing ({error})",
                "channels RGB or BGR, three means and three positive stds",
                "Write the file again with fcn_core.checkpoint.save_weights.",
            ) from error


CAFFE_VOC = Preprocessing("BGR", (104.00698793, 116.66876762, 122.67891434))
"""Source: infer.py and voc_layers.py of shelhamer/fcn.berkeleyvision.org."""

CENTRED_RGB = Preprocessing("RGB", (127.5, 127.5, 127.5), (64.0, 64.0, 64.0))
"""For networks trained here from scratch."""
