"""`WeightsInfo`: the description that a weights file stores in its metadata. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fcn_core.errors import WeightsError
from fcn_core.labels import LabelSet
from fcn_core.networks.architecture import Architecture
from fcn_core.networks.layers import trunk
from fcn_core.preprocessing import Preprocessing

WEIGHTS_FORMAT = "fcn-pipeline/1"

INITIALISATION = "initialisation"
"""`origin["role"]` of weights that only start a training: their scores are zero."""


INT8_VARIANTS = ("fcn32s", "fcn16s", "fcn8s", "fcn8s-atonce")
"""The variants that `fcn_core.inference.int8` supports."""


KEY = "fcn"
"""Key of the safetensors metadata whose value is the JSON document."""


@dataclass(frozen=True)
class WeightsInfo:
    """The description of a network in a weights file.

    Attributes:
        architecture: Variant and shapes. Staged and at-once FCN-8s have equal shapes and differ
            only in their variant.
        labels: Label set of the first head.
        preprocessing: Preprocessing of the pixels.
        origin: Source of the weights, as texts and numbers.
        other_labels: Label sets of the other heads, in order.
        int8_peaks: Largest output of each trunk convolution on sample images, for int8; empty if it
            was not measured.

    Raises (on creation):
        WeightsError: Label sets whose class counts differ from those of the heads.
    """

    architecture: Architecture
    labels: LabelSet
    preprocessing: Preprocessing
    origin: Mapping[str, Any] = field(default_factory=dict)
    other_labels: tuple[LabelSet, ...] = ()
    int8_peaks: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        described = [labels.num_classes for labels in (self.labels, *self.other_labels)]
        classes = list(self.architecture.head_classes.values())
        if described != classes:
            raise WeightsError(
                where="weights",
                found=f"label sets of {described} classes",
                expected=f"heads of {classes} classes",
                remedy="Give one label set per head, in order.",
            )

    @property
    def is_initialisation(self) -> bool:
        """Whether the weights only start a training, so that their masks are meaningless."""
        return self.origin.get("role") == INITIALISATION

    @property
    def variant(self) -> str:
        """One of `fcn_core.networks.architecture.VARIANTS`."""
        return self.architecture.variant

    def check_supports_int8(self, where: str) -> None:
        """Check that int8 supports this network.

        Args:
            where: Name of the weights in error messages.

        Raises:
            WeightsError: A variant or width that int8 does not support.
        """
        if self.variant not in INT8_VARIANTS:
            raise WeightsError(
                where=where,
                found=self.variant,
                expected=f"one of {', '.join(INT8_VARIANTS)} for int8",
                remedy="Use --precision bf16 or fp32.",
            )
        fc6_inputs = 7 * 7 * self.architecture.channels(512)  # fc6 sums the most products
        if fc6_inputs * 255 * 127 >= 2**31:
            raise WeightsError(
                where=where,
                found=f"width {self.architecture.width:g}",
                expected="at most 2.64 for int8, because larger sums do not fit 32 bits",
                remedy="Use --precision bf16 or fp32.",
            )

    def check_int8_ranges(self, where: str) -> None:
        """Check that these weights can be used in int8.

        Args:
            where: Name of the weights in error messages.

        Raises:
            WeightsError: A network that int8 does not support, or missing ranges.
        """
        self.check_supports_int8(where)
        convolutions = [layer.name for layer in trunk(self.architecture) if layer.kind == "conv"]
        missing = [name for name in convolutions if name not in self.int8_peaks]
        if missing:
            raise WeightsError(
                where=where,
                found=f"no int8 range of layer {missing[0]}",
                expected="a measured range of every convolution of the trunk",
                remedy="Measure the ranges on images like yours: fcnseg weights calibrate SRC DST "
                "--input INPUT, and use DST.",
            )

    def to_metadata(self) -> dict[str, str]:
        """Return the safetensors metadata with this description."""
        document: dict[str, Any] = {
            "format": WEIGHTS_FORMAT,
            **self.architecture.to_dict(),
            "labels": self.labels.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "origin": dict(self.origin),
        }
        if self.other_labels:
            document["other_labels"] = [labels.to_dict() for labels in self.other_labels]
        if self.int8_peaks:
            document["int8_peaks"] = dict(self.int8_peaks)
        return {KEY: json.dumps(document, sort_keys=True)}
