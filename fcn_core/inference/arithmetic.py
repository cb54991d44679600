"""Arithmetic of trunk layers in inference: the interface, and the version in the weights' dtype.

`fcn_core.inference.int8` has the int8 version. Shape suffixes: B batch, C channel, H height, W
width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from fcn_core.networks import trunks
from fcn_core.networks.layers import Layer

PATCH_BYTES = 32 * 2**20
"""Limit of fc6's unfolded input for one matrix product."""


class Arithmetic(Protocol):
    """The layers of one trunk in one number format, with constant weights.

    Attributes:
        leaves_relu: Whether `apply_unpadded` skips the ReLU of a convolution. The caller then
            applies it, often together with a copy that is needed anyway.
    """

    leaves_relu: bool

    def to_input(self, image_BCHW: Tensor) -> Tensor:
        """Convert preprocessed pixels to the input format of the first layer."""
        ...

    def apply_unpadded(self, layer: Layer, x_BCHW: Tensor) -> Tensor:
        """Apply one layer without padding: (B, C, H, W)."""
        ...

    def apply(self, layer: Layer, x_BCHW: Tensor) -> Tensor:
        """Apply one layer with its padding and ReLU: (B, C, H, W)."""
        ...

    def to_floats(self, name: str, x: Tensor) -> Tensor:
        """Convert cells of a layer, of any shape, to the float dtype of the scores."""
        ...


class FloatLayers:
    """Layer arithmetic in the dtype of the weights, on any device."""

    leaves_relu = True

    def __init__(self, find: trunks.Find) -> None:
        """Keep a reference to the layers.

        Args:
            find: Function from a layer's name to its module.
        """
        self._find = find

    def to_input(self, image_BCHW: Tensor) -> Tensor:
        """Return the pixels unchanged."""
        return image_BCHW

    def apply_unpadded(self, layer: Layer, x_BCHW: Tensor) -> Tensor:
        """Apply one layer without padding, and a convolution without its ReLU."""
        return trunks.apply_unpadded(layer, self._find, x_BCHW)

    def apply(self, layer: Layer, x_BCHW: Tensor) -> Tensor:
        """Apply one layer; on a CPU, fully connected layers are matrix products."""
        fully_connected = layer.kind == "conv" and layer.dropout and layer.dilation == 1
        if fully_connected and x_BCHW.device.type == "cpu":
            return _matrix_product(self._find(layer.name), x_BCHW)
        return trunks.apply(layer, self._find, x_BCHW)

    def to_floats(self, name: str, x: Tensor) -> Tensor:
        """Return the cells unchanged."""
        return x


def _matrix_product(conv: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Compute a convolution without pad or stride, and its ReLU, as matrix products.

    One image at a time, so that a result does not depend on the image's place in a batch.
    """
    assert isinstance(conv, nn.Conv2d)
    outputs, inputs, kernel, _ = conv.weight.shape
    # For channels-last weights, this is a view.
    weight = conv.weight.permute(0, 2, 3, 1).reshape(outputs, -1)
    height, width = (side - kernel + 1 for side in x_BCHW.shape[-2:])
    y_BHWC = x_BCHW.new_empty(len(x_BCHW), height, width, outputs)
    patch = width * inputs * kernel * kernel * x_BCHW.element_size()
    step = max(1, PATCH_BYTES // patch)
    for x_HWC, y_HWC in zip(x_BCHW.permute(0, 2, 3, 1), y_BHWC, strict=True):
        for start in range(0, height, step):
            rows = y_HWC[start : start + step]
            inputs_HWC = x_HWC[start : start + len(rows) + kernel - 1]
            patches = inputs_HWC.unfold(0, kernel, 1).unfold(1, kernel, 1).permute(0, 1, 3, 4, 2)
            products = F.linear(patches.reshape(-1, weight.shape[1]), weight, conv.bias)
            torch.clamp_min(products.view_as(rows), 0, out=rows)
    return y_BHWC.permute(0, 3, 1, 2)
