"""What a weights file says about itself. Needs no torch."""

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
"""The networks that `fcn_core.inference.int8` can compute."""


KEY = "fcn"
"""Of the safetensors metadata: one JSON document."""


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says about itself.

    Attributes:
        architecture: which network; staged and at-once FCN-8s have equal shapes, so that only
            its variant tells them apart.
        labels: the classes it predicts, of the first head if there are several.
        preprocessing: what its first layer expects.
        origin: where the weights come from, in words and numbers.
        other_labels: the classes of the other heads, in their order.
        int8_peaks: for int8, the greatest output of each convolution of the trunk on images;
            empty if that was not measured.

    Raises (on creation):
        WeightsError: the label sets are not those of the heads.
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
                expected=f"heads of {classes}",
                remedy="Describe every head, in order.",
            )

    @property
    def is_initialisation(self) -> bool:
        """Whether these weights only start a training, so that their masks mean nothing."""
        return self.origin.get("role") == INITIALISATION

    @property
    def variant(self) -> str:
        """One of `fcn_core.networks.architecture.VARIANTS`."""
        return self.architecture.variant

    def check_can_have_ranges(self, where: str) -> None:
        """Refuse networks that int8 is not for.

        Args:
            where: named in the error.

        Raises:
            WeightsError: this is one.
        """
        if self.variant not in INT8_VARIANTS:
            raise WeightsError(
                where=where,
                found=self.variant,
                expected=f"one of {', '.join(INT8_VARIANTS)} for int8",
                remedy="Use --precision bf16 or fp32 with it.",
            )
        fc6_inputs = 7 * 7 * self.architecture.channels(512)  # no layer sums more products
        if fc6_inputs * 255 * 127 >= 2**31:
            raise WeightsError(
                where=where,
                found=f"width {self.architecture.width:g}",
                expected="at most 2.64 for int8: sums of more products do not fit 32 bits",
                remedy="Use --precision bf16 or fp32 with it.",
            )

    def check_has_ranges(self, where: str) -> None:
        """Refuse weights that cannot be computed in int8.

        Args:
            where: named in the error.

        Raises:
            WeightsError: the network is none for it, or ranges are missing.
        """
        self.check_can_have_ranges(where)
        convolutions = [layer.name for layer in trunk(self.architecture) if layer.kind == "conv"]
        missing = [name for name in convolutions if name not in self.int8_peaks]
        if missing:
            raise WeightsError(
                where=where,
                found=f"no range for int8 of {missing[0]}",
                expected="the greatest outputs of its layers on images like yours",
                remedy="Measure them: fcnseg weights calibrate SRC DST --input INPUT, and use DST.",
            )

    def to_metadata(self) -> dict[str, str]:
        """The safetensors metadata."""
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
