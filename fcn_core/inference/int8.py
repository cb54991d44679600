"""The trunk of a VGG-16 network in int8: products of bytes, summed exactly, on a CPU that has them.

Weights are rounded to int8 per output channel, what a layer reads to uint8 per tensor, by the
greatest numbers that its images showed (`fcn_core.calibration`); greater ones are cut off. Skips
and scores are computed in float32. Sums are integers: no bit depends on their order, on how a
image is cut into windows, on threads or on batches.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-
Arithmetic-Only Inference", sections 2.1-2.4, with weights per channel. The kernels are those that
torch.compile takes for models quantized for x86 (`onednn::qconv_pointwise`,
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
"""Of a layer that is 0 throughout."""


_UNITS = "one with avx512_vnni, avx_vnni or amx_int8"


@dataclass(frozen=True)
class Int8Ranges:
    """The numbers that bytes stand for.

    Attributes:
        low: the least that the first layer reads, at most 0.
        high: the greatest.
        peaks: the greatest output of each convolution of the trunk after its ReLU, by layer.
    """

    low: float
    high: float
    peaks: Mapping[str, float]

    @classmethod
    def of(cls, preprocessing: Preprocessing, peaks: Mapping[str, float]) -> Int8Ranges:
        """From what a weights file says.

        Args:
            preprocessing: of pixels, 0-255.
            peaks: see `WeightsInfo.int8_peaks`.
        """
        pairs = list(zip(preprocessing.mean, preprocessing.std, strict=True))
        low = min((0 - mean) / std for mean, std in pairs)
        high = max((255 - mean) / std for mean, std in pairs)
        return cls(min(low, 0.0), max(high, 0.0), peaks)


class Int8Layers:
    """The arithmetic of bytes; see `fcn_core.inference.arithmetic.Arithmetic`."""

    leaves_relu = False

    def __init__(self, layers: Sequence[Layer], find: trunks.Find, ranges: Int8Ranges) -> None:
        """Round the weights.

        Args:
            layers: of the whole trunk; the last one gives float32.
            find: gives their modules, in float32 on the CPU.
            ranges: of what they read.
        """
        scale = max((ranges.high - ranges.low) / _LEVELS, _LEAST_SCALE)
        self._first = _Bytes(scale, round(-ranges.low / scale))
        self._scales: dict[str, float] = {}
        self._convolutions: dict[str, _Int8Convolution] = {}
        read = self._first
        for layer in layers:
            if layer.kind == "conv":
                conv = find(layer.name)
                assert isinstance(conv, nn.Conv2d)
                gives = None
                if layer is not layers[-1]:
                    gives = _Bytes(max(ranges.peaks[layer.name] / _LEVELS, _LEAST_SCALE), 0)
                self._convolutions[layer.name] = _Int8Convolution(conv, read, gives)
                read = gives or read
            self._scales[layer.name] = read.scale

    def entered(self, image_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) uint8."""
        scale, zero = self._first.scale, self._first.zero
        return (image_BCHW / scale).round_().add_(zero).clamp_(0, _LEVELS).to(torch.uint8)

    def unpadded(self, layer: Layer, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) uint8, after the ReLU."""
        if layer.kind == "conv":
            return self._convolutions[layer.name](x_BCHW, pad=0)
        return _pooled(layer, x_BCHW, ceil=False)

    def apply(self, layer: Layer, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) uint8; float32 of the last layer."""
        if layer.kind == "conv":
            return self._convolutions[layer.name](x_BCHW, pad=layer.pad)
        if layer.stride == 1:  # completed at its end, as in `trunks`; nothing is below 0
            reach = layer.dilation * (layer.kernel - 1)
            x_BCHW = F.pad(x_BCHW, (0, reach, 0, reach))
        return _pooled(layer, x_BCHW, ceil=layer.stride > 1)

    def real(self, name: str, x: Tensor) -> Tensor:
        """Float32 of cells of any layer but the last."""
        return x.float() * self._scales[name]


@dataclass(frozen=True)
class _Bytes:
    """What uint8 numbers stand for: scale * (byte - zero)."""

    scale: float
    zero: int


class _Int8Convolution:
    """A convolution and its ReLU, its weights rounded and laid out for the kernel."""

    def __init__(self, conv: nn.Conv2d, read: _Bytes, gives: _Bytes | None) -> None:
        weight = conv.weight.detach()
        scales = (weight.abs().amax((1, 2, 3)) / 127).clamp_min(_LEAST_SCALE)
        rounded = (weight / scales[:, None, None, None]).round_().to(torch.int8).contiguous()
        self._geometry = list(conv.stride), list(conv.dilation), conv.groups
        self._read, self._gives = read, gives
        self._scales, self._zeros = scales, torch.zeros(len(scales), dtype=torch.int32)
        self._bias = None if conv.bias is None else conv.bias.detach()
        stride, dilation, groups = self._geometry
        pads = [int(side) for side in conv.padding]
        self._weight: Tensor = torch.ops.onednn.qconv_prepack(
            rounded, scales, read.scale, read.zero, stride, pads, dilation, groups, None
        )

    def __call__(self, x_BCHW: Tensor, pad: int) -> Tensor:
        stride, dilation, groups = self._geometry
        scale = 1.0 if self._gives is None else self._gives.scale
        kind = torch.float32 if self._gives is None else torch.uint8
        found: Tensor = torch.ops.onednn.qconv_pointwise(
            x_BCHW, self._read.scale, self._read.zero, self._weight, self._scales, self._zeros,
            self._bias, stride, [pad, pad], dilation, groups, scale, 0, kind, "relu", [], "",
        )  # fmt: skip
        return found


def _pooled(layer: Layer, x_BCHW: Tensor, *, ceil: bool) -> Tensor:
    # torch's own pool counts cells in the type that it compares, which for bytes ends at 255.
    shape = layer.kernel, layer.stride, 0, layer.dilation
    found: Tensor = torch.ops.quantized.max_pool2d(x_BCHW, *([side] * 2 for side in shape), ceil)
    return found


def check_int8(device: str, *, plain: bool = False) -> None:
    """Refuse to compute in int8 where it cannot be done. For the network: `WeightsInfo`.

    Args:
        device: "cpu".
        plain: whether the plain forward pass was asked for.

    Raises:
        FcnError: another device, a CPU without such arithmetic, the plain forward pass, or a torch
            without the kernels.
    """
    if device != "cpu":
        raise FcnError(where="precision", found=f"int8 on {device}", expected="a CPU: there is no int8 for others here",
                       remedy="Use --precision bf16.")  # fmt: skip
    if plain:
        raise FcnError(where="precision", found="int8 in the plain forward pass", expected="the fast one",
                       remedy="Leave --plain-forward out.")  # fmt: skip
    if not has_int8():
        raise FcnError(
            where="precision", found="int8 on a CPU that does not sum bytes exactly", expected=_UNITS,
            remedy="Use --precision fp32, or bf16 where the CPU has it; lscpu lists its units.",
        )  # fmt: skip


@cache
def has_int8() -> bool:
    """Whether this CPU, this torch and their settings sum products of bytes exactly: by trial.

    Without VNNI or AMX, kernels add two products in 16 bits, which cuts great ones off.
    """
    if not hasattr(torch.ops.onednn, "qconv_pointwise"):
        return False
    with torch.device("meta"):  # or a new layer takes random numbers from everybody's
        conv = nn.Conv2d(64, 16, 3, bias=False)
    conv.weight = nn.Parameter(torch.full((16, 64, 3, 3), 127.0))
    x_BCHW = torch.full((1, 64, 8, 8), 255, dtype=torch.uint8)
    try:
        found = _Int8Convolution(conv, read=_Bytes(1.0, 0), gives=None)(x_BCHW, pad=0)
    except RuntimeError:  # no such kernel here
        return False
    return bool((found == 64 * 9 * 127 * 255).all())
