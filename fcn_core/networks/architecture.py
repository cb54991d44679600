"""Which network: the names, and what decides the shapes of its weights. Needs no torch.

Source: Long, Shelhamer, Darrell 2015, section 4; net.py and the prototxt files of
shelhamer/fcn.berkeleyvision.org (layer names, heads, channels). docs/networks.md lists every
variant layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fcn_core.errors import WeightsError

Variant = Literal[
    "fcn32s",
    "fcn16s",
    "fcn8s",
    "fcn8s-atonce",
    "fcn32s-color-d",
    "fcn32s-color-hha",
    "fcn-alexnet",
    "fcn-googlenet32s",
]

VARIANTS: tuple[Variant, ...] = get_args(Variant)


Upsampling = Literal["fixed", "learned"]

OUTPUT_STRIDES = (32, 16, 8)

MAX_WIDTH = 8.0
"""Past it a header is damaged: fc6 alone would take 26 GB."""


_DILATABLE = ("fcn32s", "fcn32s-color-d", "fcn32s-color-hha")

_CHANNELS = {"fcn32s-color-d": 4, "fcn32s-color-hha": 6}

_REMEDY = "Name the network that the weights were made for."


@dataclass(frozen=True)
class Architecture:
    """What decides the shapes of a network's weights, and how its layers are joined.

    Attributes:
        variant: one of `VARIANTS`. A staged and an at-once FCN-8s have the same shapes.
            `fcn32s-color-d` is NYUDv2's early fusion (4 channels: BGR and log-depth),
            `fcn32s-color-hha` its late fusion (6 channels: BGR and HHA, one trunk each).
        num_classes: K, of the first head.
        width: multiplies every channel count of the trunk (1.0 = as published).
        heads: (suffix, classes) of each head of a net with several, as SIFT Flow's
            (("sem", 33), ("geo", 3)): their decoder layers are named score_fr_sem, upscore_geo, ….
            Empty for the usual net, whose layers have no suffix.
        upsampling: "fixed" deconvolutions are bilinear and not saved (the reference code:
            lr_mult 0); "learned" ones start bilinear and are dense (K, K, k, k) weights of the
            file.
        output_stride: distance of two score cells, px; below 32 the last pools keep their
            resolution and what follows is dilated (à trous). The weights are those of stride 32.

    Raises (on creation):
        WeightsError: an unknown variant, or values that do not go together.
    """

    variant: Variant
    num_classes: int
    width: float = 1.0
    heads: tuple[tuple[str, int], ...] = ()
    upsampling: Upsampling = "fixed"
    output_stride: int = 32

    def __post_init__(self) -> None:
        suffixes = [suffix for suffix, _ in self.heads]
        unfit = (
            (self.variant not in VARIANTS, f"variant {self.variant!r}",
             f"one of {', '.join(VARIANTS)}"),
            (not 0 < self.width <= MAX_WIDTH, f"width {self.width:g}",
             f"above 0 and at most {MAX_WIDTH:g}"),
            (self.num_classes < 1, f"{self.num_classes} classes", "at least 1"),
            (self.upsampling not in get_args(Upsampling), f"upsampling {self.upsampling!r}",
             "fixed or learned"),
            (self.output_stride not in OUTPUT_STRIDES, f"output stride {self.output_stride}",
             "32, 16 or 8"),
            (self.output_stride != 32 and self.variant not in _DILATABLE,
             f"output stride {self.output_stride} of {self.variant}",
             f"32: only {', '.join(_DILATABLE)} can be dilated"),
            (bool(self.heads) and self.heads[0][1] != self.num_classes,
             f"{self.num_classes} classes, but heads {self.heads}",
             "the classes of the first head"),
            (len(set(suffixes)) < len(suffixes) or not all(s.isidentifier() for s in suffixes)
             or any(classes < 1 for _, classes in self.heads),
             f"heads {self.heads}", "different names, each with at least one class"),
        )  # fmt: skip
        for wrong, found, expected in unfit:
            if wrong:
                raise WeightsError(where="network", found=found, expected=expected, remedy=_REMEDY)

    @property
    def input_channels(self) -> int:
        """Channels of an image: 3, 4 (BGR and log-depth) or 6 (BGR and HHA)."""
        return _CHANNELS.get(self.variant, 3)

    @property
    def head_classes(self) -> dict[str, int]:
        """Classes by head, the first one first; the head of the usual net is named ""."""
        return dict(self.heads) or {"": self.num_classes}

    def channels(self, full: int, multiple: int = 1) -> int:
        """Channels of a layer that has `full` as published, a multiple of its groups."""
        return multiple * max(1, round(full * self.width / multiple))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form that `from_dict` reads back. The classes are the label set's.

        What is as usual is left out, so that files of usual nets are what they always were.
        """
        document: dict[str, Any] = {"variant": self.variant, "width": self.width}
        if self.heads:
            document["heads"] = [list(head) for head in self.heads]
        if self.upsampling != "fixed":
            document["upsampling"] = self.upsampling
        if self.output_stride != 32:
            document["output_stride"] = self.output_stride
        return document

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], num_classes: int, where: str = "weights"
    ) -> Architecture:
        """What `to_dict` gave, alone or within a larger document.

        Raises:
            WeightsError: a value is missing or impossible.
        """
        try:
            return cls(
                variant=data["variant"],
                num_classes=num_classes,
                width=float(data["width"]),
                heads=tuple((str(name), int(count)) for name, count in data.get("heads", ())),
                upsampling=data.get("upsampling", "fixed"),
                output_stride=int(data.get("output_stride", 32)),
            )
        except WeightsError as error:
            raise WeightsError(
                where=where, found=error.found, expected=error.expected, remedy=error.remedy
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(
                where=where,
                found=f"unreadable network ({error})",
                expected="a variant and a width",
                remedy=_REMEDY,
            ) from error
