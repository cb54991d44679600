"""`Architecture`: a network's variant, and the numbers that decide the shapes of its weights.

This module needs no torch. docs/networks.md lists every variant layer by layer.

Source: Long, Shelhamer, Darrell 2015, section 4; net.py and the prototxt files of
shelhamer/fcn.berkeleyvision.org (layer names, heads, channels).
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
"""Largest accepted width. A larger one means a damaged header: fc6 alone would take 26 GB."""


_DILATABLE = ("fcn32s", "fcn32s-color-d", "fcn32s-color-hha")

_CHANNELS = {"fcn32s-color-d": 4, "fcn32s-color-hha": 6}

_REMEDY = "Name the network that these weights belong to."


@dataclass(frozen=True)
class Architecture:
    """A network's variant, and the numbers that decide the shapes of its weights.

    Attributes:
        variant: One of `VARIANTS`. Staged and at-once FCN-8s have equal shapes.
            `fcn32s-color-d` is NYUDv2's early fusion (4 channels: BGR and log-depth),
            `fcn32s-color-hha` its late fusion (6 channels: BGR and HHA, one trunk each).
        num_classes: Number of classes K of the first head.
        width: Factor of every channel count of the trunk (1.0 = as published).
        heads: (suffix, classes) of each head of a network with several, such as SIFT Flow's
            (("sem", 33), ("geo", 3)); decoder layers are then named score_fr_sem, upscore_geo, ….
            Empty for a network with one head, whose layers have no suffix.
        upsampling: "fixed" deconvolutions are bilinear and not stored in the file (the reference
            code: lr_mult 0). "learned" ones start bilinear and are stored as dense (K, K, k, k)
            weights.
        output_stride: Distance of two score cells, px. Below 32, the last pools keep their
            resolution and later layers are dilated (à trous). The weights equal those of stride 32.

    Raises (on creation):
        WeightsError: An unknown variant, or values that contradict each other.
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
             f"32, because only {', '.join(_DILATABLE)} can be dilated"),
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
        """Number of input channels: 3, 4 (BGR and log-depth) or 6 (BGR and HHA)."""
        return _CHANNELS.get(self.variant, 3)

    @property
    def head_classes(self) -> dict[str, int]:
        """Number of classes by head name, first head first; a single head is named ""."""
        return dict(self.heads) or {"": self.num_classes}

    def channels(self, full: int, multiple: int = 1) -> int:
        """Scale a published channel count by the width, to a multiple of the layer's groups."""
        return multiple * max(1, round(full * self.width / multiple))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that `from_dict` reads; the classes are in the label set's form.

        Default values are left out, so that files of standard networks do not change.
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
        """Build the architecture from `to_dict`'s form, which may be part of a larger document.

        Raises:
            WeightsError: A value that is missing or invalid.
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
