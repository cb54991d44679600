"""How the layers of a trunk are computed in inference: in the floats of its weights.

`fcn_core.inference.int8` has the other way. Shape suffixes: B batch, C channel, H height, W width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from fcn_core.networks import trunks
from fcn_core.networks.layers import Layer

_PATCH_BYTES = 32 * 2**20
"""Of fc6's input laid out for a matrix product, at once."""


class Arithmetic(Protocol):
    """The layers of one trunk whose weights stay as they are.

    Attributes:
        leaves_relu: whether `unpadded` leaves the ReLU of a convolution to its caller, who may have
            to copy the cells anyhow.
    """

    leaves_relu: bool

    def entered(self, image_BCHW: Tensor) -> Tensor:
        """Preprocessed pixels as the first layer reads them."""
        ...

    def unpadded(self, layer: Layer, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) of one layer where it needs no padding."""
        ...

    def apply(self, layer: Layer, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) of one layer, with its padding and its ReLU."""
        ...

    def real(self, name: str, x: Tensor) -> Tensor:
        """Cells of a layer, in any shape, in the floats that scores are computed in."""
        ...


class FloatLayers:
    """The arithmetic of the weights' own type, on any device."""

    leaves_relu = True

    def __init__(self, find: trunks.Find) -> None:
        """Take the layers.

        Args:
            find: gives their modules.
        """
        self._find = find

    def entered(self, image_BCHW: Tensor) -> Tensor:
        """As it is."""
        return image_BCHW

    def unpadded(self, layer: Layer, x_BCHW: Tensor) -> Tensor:
        """See `Arithmetic`."""
        return trunks.unpadded(layer, self._find, x_BCHW)

    def apply(self, layer: Layer, x_BCHW: Tensor) -> Tensor:
        """See `Arithmetic`. On a CPU, fully connected layers are matrix products."""
        fully_connected = layer.kind == "conv" and layer.dropout and layer.dilation == 1
        if fully_connected and x_BCHW.device.type == "cpu":
            return _multiplied(self._find(layer.name), x_BCHW)
        return trunks.apply(layer, self._find, x_BCHW)

    def real(self, name: str, x: Tensor) -> Tensor:
        """As they are."""
        return x


def _multiplied(conv: nn.Module, x_BCHW: Tensor) -> Tensor:
    """A convolution without pad or stride, and its ReLU, as matrix products.

    One image at a time, so that its bits do not depend on its place in a batch.
    """
    assert isinstance(conv, nn.Conv2d)
    outputs, inputs, kernel, _ = conv.weight.shape
    # A view of channels-last weights.
    weight = conv.weight.permute(0, 2, 3, 1).reshape(outputs, -1)
    height, width = (side - kernel + 1 for side in x_BCHW.shape[-2:])
    y_BHWC = x_BCHW.new_empty(len(x_BCHW), height, width, outputs)
    patch = width * inputs * kernel * kernel * x_BCHW.element_size()
    step = max(1, _PATCH_BYTES // patch)
    for x_HWC, y_HWC in zip(x_BCHW.permute(0, 2, 3, 1), y_BHWC, strict=True):
        for start in range(0, height, step):
            rows = y_HWC[start : start + step]
            read = x_HWC[start : start + len(rows) + kernel - 1]
            patches = read.unfold(0, kernel, 1).unfold(1, kernel, 1).permute(0, 1, 3, 4, 2)
            found = F.linear(patches.reshape(-1, weight.shape[1]), weight, conv.bias)
            torch.clamp_min(found.view_as(rows), 0, out=rows)
    return y_BHWC.permute(0, 3, 1, 2)
