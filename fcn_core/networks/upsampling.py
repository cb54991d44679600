"""Deconvolutions that start as bilinear interpolation, computed in the cheapest equivalent form.

Shape suffixes: B batch, K class, H height px, W width px, k kernel px.

Source: surgery.upsample_filt and surgery.interp of shelhamer/fcn.berkeleyvision.org. The original
deconvolution has a dense (K, K, k, k) weight: the bilinear kernel on the diagonal and zeros
elsewhere. Each class is then upsampled separately, which two cheaper forms can do (measured in
docs/networks.md, "Upsampling"):

- grouped: one (k, k) kernel per class;
- bilinear: torch's interpolation of the score in a ring of zeros, without the outer half stride.

They differ from the dense form only by float rounding. The form is chosen from the exact weights
when they are loaded: a single non-zero weight between two classes, however small, requires dense.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

UpsamplingForm = Literal["dense", "grouped", "bilinear"]


def bilinear_kernel(size: int) -> Tensor:
    """Return the (size, size) float32 weights of bilinear upsampling by `(size + 1) // 2`.

    Source: surgery.upsample_filt: with f the factor and c the center,
    w[i, j] = (1 - |i - c| / f) (1 - |j - c| / f).
    """
    factor = (size + 1) // 2
    center = factor - 1 if size % 2 else factor - 0.5
    # On the CPU even inside `torch.device("meta")`: the kernel is not loaded from a file.
    cells = torch.arange(size, dtype=torch.float64, device="cpu")
    line = 1 - (cells - center).abs() / factor
    return torch.outer(line, line).to(torch.float32)


def interpolate(score_BKHW: Tensor, stride: int, size: int) -> Tensor:
    """Compute the bilinear deconvolution of a kernel size with torch's interpolation.

    Args:
        score_BKHW: Scores of any float dtype.
        stride: Upsampling factor, at least 2.
        size: Kernel side, px: 2 * stride or 2 * stride - 1.

    Returns:
        (B, K, s(H - 1) + size, s(W - 1) + size), channels last.
    """
    ring = F.pad(score_BKHW, (1,) * 4).contiguous(memory_format=torch.channels_last)
    if size % 2:  # cell centers coincide with pixels: every stride-th pixel, ends included
        height, width = (stride * (side - 1) + 1 for side in ring.shape[-2:])
        full = F.interpolate(ring, (height, width), mode="bilinear", align_corners=True)
        return full[..., 1 : height - 1, 1 : width - 1]
    height, width = (stride * side for side in ring.shape[-2:])
    full = F.interpolate(ring, (height, width), mode="bilinear", align_corners=False)
    half = stride // 2
    return full[..., half : height - half, half : width - half]


def upsample_bilinear(score_BKHW: Tensor, stride: int, size: int) -> Tensor:
    """Compute the bilinear deconvolution of a kernel size, for all strides from 1 up."""
    if stride > 1:
        return interpolate(score_BKHW, stride, size)
    if size == 1:
        return score_BKHW
    classes = score_BKHW.shape[1]
    kernel = bilinear_kernel(size).to(score_BKHW).expand(classes, 1, -1, -1)
    return F.conv_transpose2d(score_BKHW, kernel, groups=classes)


class Upscore(nn.Module):
    """A deconvolution from (B, K, H, W) to (B, K, s(H - 1) + k, s(W - 1) + k), without bias or pad.

    Attributes:
        form: Form of the computation without gradients. With gradients, a learned deconvolution is
            dense and a fixed one grouped, because the gradient of interpolation is not
            deterministic on a GPU.
    """

    form: UpsamplingForm

    def __init__(
        self, num_classes: int, stride: int, size: int | None = None, *, learned: bool = False
    ) -> None:
        """Create a deconvolution with bilinear weights.

        Args:
            num_classes: Number of classes K.
            stride: Upsampling factor, at least 2.
            size: Kernel side k, 2 * stride or 2 * stride - 1. Default: 2 * stride.
            learned: Whether `weight` is a dense parameter of the state dict. Otherwise there is one
                fixed kernel, which is not saved because the architecture determines it.
        """
        super().__init__()
        self.num_classes = num_classes
        self.stride = stride
        self.size = 2 * stride if size is None else size
        self.learned = learned
        self.register_buffer("kernel", bilinear_kernel(self.size), persistent=False)
        self.weight: nn.Parameter | None = None
        if learned:
            shape = (num_classes, num_classes, self.size, self.size)
            self.weight = nn.Parameter(torch.empty(shape))
            self.reset_parameters()
        self.choose_form()

    kernel: Tensor

    def reset_parameters(self) -> None:
        """Set the bilinear kernel between equal classes, and zero between different classes."""
        if self.weight is not None and not self.weight.is_meta:
            with torch.no_grad():
                self.weight.zero_()
                self.weight[range(self.num_classes), range(self.num_classes)] = self.kernel

    @torch.no_grad()
    def choose_form(self) -> None:
        """Choose the cheapest form that computes the same result with the current weights."""
        if self.weight is None:
            self.form = "bilinear"
        elif self.weight.is_meta:  # the weights will be loaded later
            self.form = "dense"
        else:
            own = self._own()
            # An exact comparison without a copy of the weights; NaN counts as non-zero.
            if self.weight.count_nonzero() > own.count_nonzero():
                self.form = "dense"
            else:
                self.form = "bilinear" if bool((own == self.kernel).all()) else "grouped"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.choose_form()

    def train(self, mode: bool = True) -> Upscore:
        """Set the mode; after training, choose the form again, because weights may have changed."""
        super().train(mode)
        if self.learned and not mode:
            self.choose_form()
        return self

    def _own(self) -> Tensor:
        """Return the kernel from each class to itself, (K, k, k)."""
        if self.weight is None:
            return self.kernel.expand(self.num_classes, -1, -1)
        return self.weight[range(self.num_classes), range(self.num_classes)]

    def forward(self, score_BKHW: Tensor) -> Tensor:
        """Upsample (B, K, H, W) to (B, K, s(H - 1) + k, s(W - 1) + k), with stride s."""
        if torch.is_grad_enabled():
            form: UpsamplingForm = "dense" if self.learned else "grouped"
        else:
            form = self.form
        if form == "dense":
            assert self.weight is not None
            return F.conv_transpose2d(score_BKHW, self.weight, stride=self.stride)
        if form == "grouped":
            return F.conv_transpose2d(
                score_BKHW, self._own()[:, None], stride=self.stride, groups=self.num_classes
            )
        return interpolate(score_BKHW, self.stride, self.size)

    def extra_repr(self) -> str:
        """Return the text that `print(model)` shows for this layer."""
        kind: Any = "learned" if self.learned else "fixed"
        return f"{self.num_classes}, stride={self.stride}, size={self.size}, {kind}, {self.form}"
