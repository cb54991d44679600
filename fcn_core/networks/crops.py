"""Compute the crop offsets of all networks, in exact fractions.

A cell of a layer has its center at some pixel of the image: cell x lies at pixel
`scale * x + shift`. Pads, kernels and strides determine scale and shift. Two layers are aligned by
cropping the finer one to the cells that coincide with cells of the other, as caffe.coord_map does.
docs/crops.md explains this step by step.

>>> from fcn_core.networks.architecture import Architecture
>>> crops(Architecture("fcn32s", 21))
{'upscore': 19}
>>> crops(Architecture("fcn8s", 21))
{'score_pool4': 5, 'score_pool3': 9, 'upscore8': 31}
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from fcn_core.networks.architecture import Architecture
from fcn_core.networks.layers import decoder, trunk


@dataclass(frozen=True)
class CropPosition:
    """Position of a layer's cells: cell x has its center at image pixel `scale * x + shift`."""

    scale: Fraction = Fraction(1)
    shift: Fraction = Fraction(0)

    def window(self, kernel: int, stride: int = 1, pad: int = 0, dilation: int = 1) -> CropPosition:
        """Return the position after a convolution or pool: cells lie at the centers of windows.

        >>> CropPosition().window(3, pad=100)
        CropPosition(scale=Fraction(1, 1), shift=Fraction(-99, 1))
        """
        center = Fraction(dilation * (kernel - 1), 2) - pad
        return CropPosition(self.scale * stride, self.shift + self.scale * center)

    def upsampled(self, kernel: int, stride: int) -> CropPosition:
        """Return the position after a deconvolution.

        Input cell x lies on output cell stride * x + (kernel - 1) / 2.

        >>> CropPosition(Fraction(32), Fraction(25, 2)).upsampled(64, 32)
        CropPosition(scale=Fraction(1, 1), shift=Fraction(-19, 1))
        """
        finer = self.scale / stride
        return CropPosition(finer, self.shift - finer * Fraction(kernel - 1, 2))

    def moved(self, pixels: int, scale: int) -> CropPosition:
        """Return the position shifted by some pixels, with cells `scale` px apart."""
        return CropPosition(Fraction(scale), self.shift + pixels)

    def offset(self, onto: CropPosition) -> int:
        """Return the cell of this layer on cell 0 of another layer; negative if it starts later.

        Raises:
            ValueError: Grids that do not align: different strides, or a distance of partial cells.
        """
        cells = (onto.shift - self.shift) / self.scale
        if self.scale != onto.scale or cells.denominator != 1:
            raise ValueError(f"{self} does not align with {onto}")
        return int(cells)


def layer_positions(architecture: Architecture) -> dict[str, CropPosition]:
    """Return the positions of the trunk's layers by name, and of the image itself ("data")."""
    position = CropPosition()
    positions = {"data": position}
    for layer in trunk(architecture):
        # An inception keeps the grid: its strides are 1, and every branch keeps its input size.
        position = position.window(layer.kernel, layer.stride, layer.pad, layer.dilation)
        positions[layer.name] = position
    positions["score_fr"] = position
    return positions


def crops(architecture: Architecture) -> dict[str, int]:
    """Return the first kept row and column of each cropped layer, equal for all image sizes.

    The crop of a dilated network may be negative: its grid starts that many pixels inside the
    image.
    """
    positions = layer_positions(architecture)
    plan, position = decoder(architecture), positions["score_fr"]
    offsets = {}
    for skip in plan.skips:
        position = position.upsampled(4, 2)
        offsets[skip.score] = positions[skip.pool].offset(position)
    offsets[plan.upscore] = position.upsampled(plan.kernel, plan.stride).offset(positions["data"])
    return offsets
