"""The trunk of a VGG-16 network in int8: exact sums of byte products, on CPUs that support them.

Weights are rounded to int8 per output channel, layer inputs to uint8 per tensor. The input ranges
are measured on sample images (`fcn_core.calibration`); larger values are clipped. Skips and scores
are computed in float32. Sums are integers, so no bit depends on their order, on windows, on threads
or on batches.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-
Arithmetic-Only Inference", sections 2.1-2.4, with weights per channel. The kernels are those that
torch.compile uses for models quantized for x86 (`onednn::qconv_pointwise`,
`quantized::max_pool2d`). Shape suffixes: B batch, C channel, H height cells, W width cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from fcn_core.errors import FcnError
from fcn_core.networks import trunks
from fcn_core.networks.layers import Layer
from fcn_core.preprocessing import Preprocessing

_LEVELS = 255

_LEAST_SCALE = 1e-12
"""Smallest scale, used for a layer whose outputs are all 0."""


_UNITS = "int8 needs a CPU with avx512_vnni, avx_vnni or amx_int8"


@dataclass(frozen=True)
class Int8Ranges:
    """The value ranges that bytes represent.

    Attributes:
        low: Smallest input of the first layer, at most 0.
        high: Largest input of the first layer, at least 0.
        peaks: Largest output of each convolution of the trunk after its ReLU, by layer name.
    """

    low: float
    high: float
    peaks: Mapping[str, float]

    @classmethod
    def of(cls, preprocessing: Preprocessing, peaks: Mapping[str, float]) -> Int8Ranges:
        """Compute the ranges from the description of a weights file.

        Args:
            preprocessing: Preprocessing of pixels in 0-255.
            peaks: See `WeightsInfo.int8_peaks`.
        """
        pairs = list(zip(preprocessing.mean, preprocessing.std, strict=True))
        low = min((0 - mean) / std for mean, std in pairs)
        high = max((255 - mean) / std for mean, std in pairs)
        return cls(min(low, 0.0), max(high, 0.0), peaks)


class Int8Layers:
    """Layer arithmetic in int8; see `fcn_core.inference.arithmetic.Arithmetic`."""

    leaves_relu = False

    def __init__(self, layers: Sequence[Layer], find: trunks.Find, ranges: Int8Ranges) -> None:
        """Round the weights of all layers.

        Args:
            layers: Layers of the whole trunk; the last one returns float32.
            find: Function from a layer's name to its module, in float32 on the CPU.
            ranges: Value ranges of the layer inputs.
        """
        scale = max((ranges.high - ranges.low) / _LEVELS, _LEAST_SCALE)
        self._first = _Bytes(scale, round(-ranges.low / scale))
        self._scales: dict[str, float] = {}
        self._convolutions: dict[str, _Int8Convolution] = {}
        inputs = self._first
        for layer in layers:
            if layer.kind == "conv":
                conv = find(layer.name)
                assert isinstance(conv, nn.Conv2d)
                outputs = None
                if layer is not layers[-1]:
                    outputs = _Bytes(max(ranges.peaks[layer.name] / _LEVELS, _LEAST_SCALE), 0)
                self._convolutions[layer.name] = _Int8Convolution(conv, inputs, outputs)
                inputs = outputs or inputs
            self._scales[layer.name] = inputs.scale

    def to_input(self, image_BCHW: Tensor) -> Tensor:
        """Round preprocessed pixels to (B, C, H, W) uint8."""
        scale, zero = self._first.scale, self._first.zero
        return (image_BCHW / scale).round_().add_(zero).clamp_(0, _LEVELS).to(torch.uint8)

    def apply_unpadded(self, layer: Layer, x_BCHW: Tensor) -> Tensor:
        """Apply one layer without padding: (B, C, H, W) uint8, after the ReLU."""
        if layer.kind == "conv":
            return self._convolutions[layer.name](x_BCHW, pad=0)
        return _pooled(layer, x_BCHW, ceil=False)

    def apply(self, layer: Layer, x_BCHW: Tensor) -> Tensor:
        """Apply one layer: (B, C, H, W) uint8, or float32 for the last layer."""
        if layer.kind == "conv":
            return self._convolutions[layer.name](x_BCHW, pad=layer.pad)
        if layer.stride == 1:  # padded at its end, as in `trunks`; 0 is the smallest value
            reach = layer.dilation * (layer.kernel - 1)
            x_BCHW = F.pad(x_BCHW, (0, reach, 0, reach))
        return _pooled(layer, x_BCHW, ceil=layer.stride > 1)

    def to_floats(self, name: str, x: Tensor) -> Tensor:
        """Convert cells of any layer except the last one to float32."""
        return x.float() * self._scales[name]


@dataclass(frozen=True)
class _Bytes:
    """The meaning of uint8 numbers: scale * (byte - zero)."""

    scale: float
    zero: int


class _Int8Convolution:
    """A convolution and its ReLU, with rounded weights in the layout of the kernel."""

    def __init__(self, conv: nn.Conv2d, inputs: _Bytes, outputs: _Bytes | None) -> None:
        weight = conv.weight.detach()
        scales = (weight.abs().amax((1, 2, 3)) / 127).clamp_min(_LEAST_SCALE)
        rounded = (weight / scales[:, None, None, None]).round_().to(torch.int8).contiguous()
        self._geometry = list(conv.stride), list(conv.dilation), conv.groups
        self._inputs, self._outputs = inputs, outputs
        self._scales, self._zeros = scales, torch.zeros(len(scales), dtype=torch.int32)
        self._bias = None if conv.bias is None else conv.bias.detach()
        stride, dilation, groups = self._geometry
        pads = [int(side) for side in conv.padding]
        self._weight: Tensor = torch.ops.onednn.qconv_prepack(
            rounded, scales, inputs.scale, inputs.zero, stride, pads, dilation, groups, None
        )

    def __call__(self, x_BCHW: Tensor, pad: int) -> Tensor:
        stride, dilation, groups = self._geometry
        scale = 1.0 if self._outputs is None else self._outputs.scale
        kind = torch.float32 if self._outputs is None else torch.uint8
        y_BCHW: Tensor = torch.ops.onednn.qconv_pointwise(
            x_BCHW, self._inputs.scale, self._inputs.zero, self._weight, self._scales, self._zeros,
            self._bias, stride, [pad, pad], dilation, groups, scale, 0, kind, "relu", [], "",
        )  # fmt: skip
        return y_BCHW


def _pooled(layer: Layer, x_BCHW: Tensor, *, ceil: bool) -> Tensor:
    # torch's usual pool stores cell indices in the dtype of the values, and uint8 ends at 255.
    shape = layer.kernel, layer.stride, 0, layer.dilation
    y_BCHW: Tensor = torch.ops.quantized.max_pool2d(x_BCHW, *([side] * 2 for side in shape), ceil)
    return y_BCHW


def check_int8(device: str, *, plain: bool = False) -> None:
    """Check that int8 can be computed here. `WeightsInfo` has the check of the network.

    Args:
        device: Device, which must be "cpu".
        plain: Whether the plain forward pass was requested.

    Raises:
        FcnError: Another device, a CPU without exact int8 sums, the plain forward pass, or a torch
            without the kernels.
    """
    if device != "cpu":
        raise FcnError(
            where="precision",
            found=f"int8 on {device}",
            expected="int8 is available on a CPU only",
            remedy="Use --precision bf16.",
        )
    if plain:
        raise FcnError(
            where="precision",
            found="int8 in the plain forward pass",
            expected="int8 needs the fast forward pass",
            remedy="Leave --plain-forward out.",
        )
    if not has_int8():
        raise FcnError(
            where="precision",
            found="int8 on a CPU without exact sums of byte products",
            expected=_UNITS,
            remedy="Use --precision fp32, or bf16 if the CPU supports it; lscpu lists its "
            "features.",
        )


@cache
def has_int8() -> bool:
    """Return whether this CPU, torch and their settings sum byte products exactly, by a trial.

    Without VNNI or AMX, kernels add two products in 16 bits, which clips large sums.
    """
    if not hasattr(torch.ops.onednn, "qconv_pointwise"):
        return False
    with torch.device("meta"):  # a layer on a real device would use the global random generator
        conv = nn.Conv2d(64, 16, 3, bias=False)
    conv.weight = nn.Parameter(torch.full((16, 64, 3, 3), 127.0))
    x_BCHW = torch.full((1, 64, 8, 8), 255, dtype=torch.uint8)
    try:
        y_BCHW = _Int8Convolution(conv, inputs=_Bytes(1.0, 0), outputs=None)(x_BCHW, pad=0)
    except RuntimeError:  # this kernel is not available
        return False
    return bool((y_BCHW == 64 * 9 * 127 * 255).all())
