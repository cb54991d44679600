"""Where every crop of the networks comes from, in exact fractions.

A cell of a layer is a square of the image, and what matters is where its centre lies. Cell x of
a layer lies at pixel `scale * x + shift`; pads, kernels and strides decide scale and shift, and two
layers are laid on each other by cropping the finer one where its cells meet the other's. This is
what caffe.coord_map does. docs/crops.md tells it for people.

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
    """Cell x of a layer has its centre at pixel `scale * x + shift`; pixel x at x."""

    scale: Fraction = Fraction(1)
    shift: Fraction = Fraction(0)

    def window(self, kernel: int, stride: int = 1, pad: int = 0, dilation: int = 1) -> CropPosition:
        """After a convolution or pool: a cell sits at the centre of its window.

        >>> Place().window(3, pad=100)
        Place(scale=Fraction(1, 1), shift=Fraction(-99, 1))
        """
        middle = Fraction(dilation * (kernel - 1), 2) - pad
        return CropPosition(self.scale * stride, self.shift + self.scale * middle)

    def upsampled(self, kernel: int, stride: int) -> CropPosition:
        """After a deconvolution: input cell x lands on output cell stride * x + (kernel - 1) / 2.

        >>> Place(Fraction(32), Fraction(25, 2)).upsampled(64, 32)
        Place(scale=Fraction(1, 1), shift=Fraction(-19, 1))
        """
        finer = self.scale / stride
        return CropPosition(finer, self.shift - finer * Fraction(kernel - 1, 2))

    def moved(self, pixels: int, scale: int) -> CropPosition:
        """That many pixels further on, with cells `scale` px apart."""
        return CropPosition(Fraction(scale), self.shift + pixels)

    def offset(self, onto: CropPosition) -> int:
        """The cell of this layer that lies on cell 0 of another; negative if it begins later.

        Raises:
            ValueError: the grids do not meet: other strides, or a fraction of a cell between them.
        """
        cells = (onto.shift - self.shift) / self.scale
        if self.scale != onto.scale or cells.denominator != 1:
            raise ValueError(f"{self} does not fall onto {onto}")
        return int(cells)


def places(architecture: Architecture) -> dict[str, CropPosition]:
    """Where the layers of the trunk lie, by name, and the image itself ("data")."""
    place = CropPosition()
    found = {"data": place}
    for layer in trunk(architecture):
        # An inception keeps the grid: strides 1, and every branch padded to its own size.
        place = place.window(layer.kernel, layer.stride, layer.pad, layer.dilation)
        found[layer.name] = place
    found["score_fr"] = place
    return found


def crops(architecture: Architecture) -> dict[str, int]:
    """First row and column kept of each cropped layer: the same for every size of image.

    The crop of a dilated net may be negative: its grid begins that many pixels within the image.
    """
    found = places(architecture)
    plan, place = decoder(architecture), found["score_fr"]
    offsets = {}
    for skip in plan.skips:
        place = place.upsampled(4, 2)
        offsets[skip.score] = found[skip.pool].offset(place)
    offsets[plan.upscore] = place.upsampled(plan.kernel, plan.stride).offset(found["data"])
    return offsets
