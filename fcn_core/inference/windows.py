"""Which cells of a trunk an image can change, per axis, from the table of layers. Needs no torch.

The first layer surrounds the image with a wide border of zeros. On this canvas three things
decide a cell of a later layer, and each is an interval per axis that grows by the receptive field:

- what the image reaches (`Axis.image`);
- what the edges of the canvas reach, because later convolutions pad with zeros where the blank
  canvas has features (the cells outside of `Axis.even`);
- neither: there every cell of a blank canvas is the same.

So a layer can be computed on the cells that the image reaches alone, as long as what its kernels
read around them is even: one vector of channels. docs/forward.md tells it for people, with the
margins of every network.

>>> from fcn_core.networks.architecture import Architecture
>>> from fcn_core.networks.layers import trunk
>>> layers = trunk(Architecture("fcn8s", 21))
>>> layers[windowed_layers(layers) - 1].name
'pool4'
>>> through(layers[0], canvas(layers, 500))
Axis(size=698, image=Span(start=98, end=600), even=Span(start=0, end=698))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from fcn_core.networks.layers import Decoder, Layer


@dataclass(frozen=True)
class Span:
    """Cells `start` to `end`, without `end`."""

    start: int
    end: int

    def within(self, other: Span) -> Span:
        """The part of this span that the other has, too."""
        return Span(max(self.start, other.start), min(self.end, other.end))

    def holds(self, other: Span) -> bool:
        """Whether every cell of the other is one of this."""
        return other.start >= other.end or (self.start <= other.start and other.end <= self.end)


@dataclass(frozen=True)
class Axis:
    """One axis of a layer on the padded canvas.

    Attributes:
        size: cells.
        image: those that the image can change.
        even: those that the edges of the canvas do not reach; where there is no image either,
            all of them are equal.
    """

    size: int
    image: Span
    even: Span

    @classmethod
    def blank(cls, size: int) -> Axis:
        """Of a canvas without an image."""
        return cls(size, Span(0, 0), Span(0, size))


def canvas(layers: Sequence[Layer], side: int) -> Axis:
    """The image in the border of zeros that the first layer of a trunk adds.

    Args:
        layers: of the trunk.
        side: of the image, px.
    """
    pad = layers[0].pad
    size = side + 2 * pad
    return Axis(size, Span(pad, pad + side), Span(0, size))


def through(layer: Layer, axis: Axis) -> Axis:
    """The axis after a layer.

    Args:
        layer: the first one of a trunk adds no border here: `canvas` did.
        axis: what it reads.
    """
    reach, pad = _reach_and_pad(layer)
    stride = layer.stride
    if layer.kind != "pool":
        size = (axis.size + 2 * pad - reach - 1) // stride + 1
    else:  # rounded up, or completed at its end
        size = math.ceil((axis.size - (reach if stride > 1 else 0) - 1) / stride) + 1
    every = Span(0, size)
    # Cell x reads from stride * x - pad, and `reach` cells further.
    first = math.ceil((axis.image.start + pad - reach) / stride)
    last = (axis.image.end - 1 + pad) // stride
    even = Span(
        math.ceil((axis.even.start + pad) / stride),
        math.floor((axis.even.end - 1 + pad - reach) / stride) + 1,
    )
    if layer.kind == "pool" and axis.even.end == axis.size:
        # A window that reaches over the end takes the maximum of what there is.
        even = Span(even.start, size)
    return Axis(size, Span(first, last + 1).within(every), even.within(every))


def read_by(layer: Layer, span: Span) -> Span:
    """The cells that a layer reads for a span of its own; they may lie beyond the canvas."""
    reach, pad = _reach_and_pad(layer)
    start = layer.stride * span.start - pad
    return Span(start, layer.stride * (span.end - 1) - pad + reach + 1)


def _reach_and_pad(layer: Layer) -> tuple[int, int]:
    """Distance of the outermost taps, cells, and the pad, without the border of the canvas."""
    if layer.kind == "inception":
        return 4, 2  # of its widest branch, 5x5
    reach = layer.dilation * (layer.kernel - 1)
    return reach, 0 if layer.pad > reach else layer.pad  # a wider pad is the border


@cache
def windowed_layers(layers: tuple[Layer, ...]) -> int:
    """How many layers of a trunk need only what the image reaches, whatever its size.

    The edges move with the image's by whole cells whenever its side grows by the product of the
    strides, so that as many sides stand for all.
    """
    period = math.prod(layer.stride for layer in layers)
    return min(_windowed_layers(layers, side) for side in range(1, period + 1))


def _windowed_layers(layers: Sequence[Layer], side: int) -> int:
    axis = canvas(layers, side)
    for count, layer in enumerate(layers):
        after = through(layer, axis)
        read = read_by(layer, after.image)
        around = Span(read.start, axis.image.start), Span(axis.image.end, read.end)
        if not all(axis.even.holds(part) for part in around):
            return count
        axis = after
    return len(layers)


def axes(layers: Sequence[Layer], axis: Axis) -> list[Axis]:
    """An axis of the canvas, and of each layer of a trunk."""
    found = [axis]
    for layer in layers:
        found.append(through(layer, found[-1]))
    return found


@cache
def blank_side(layers: tuple[Layer, ...], size: int) -> int:
    """The smallest canvas that has the edges of a canvas of `size` px and is even between them.

    Args:
        layers: of a trunk, as far as blanks are wanted.
        size: of the canvas, border included.
    """
    period = math.prod(layer.stride for layer in layers)
    side = size % period
    while not all(axis.even.start < axis.even.end for axis in axes(layers, Axis.blank(side))):
        side += period
    return side


def stretched(layers: tuple[Layer, ...], size: int) -> list[int]:
    """Which cell of the last layer of that small canvas stands for each one of the large one."""
    small = axes(layers, Axis.blank(blank_side(layers, size)))[-1]
    cells = axes(layers, Axis.blank(size))[-1].size
    lead, trail = small.even.start, small.size - small.even.end
    even = [lead] * (cells - lead - trail)
    return [*range(lead), *even, *range(small.size - trail, small.size)]


def needed_scores(plan: Decoder, offset: int, side: int, cells: int) -> list[Span]:
    """The scores that the image's logits depend on, coarse to fine.

    Args:
        plan: of the decoder.
        offset: of the last crop, px.
        side: of the image, px.
        cells: of score_fr.

    Returns:
        Of score_fr, and of the fused scores after each skip.
    """
    sizes = [cells]
    for _ in plan.skips:
        sizes.append(2 * sizes[-1] + 2)
    picture = Span(offset, offset + side)
    needed = [_upscored_from(picture, plan.stride, plan.kernel, sizes.pop())]
    while sizes:
        needed.insert(0, _upscored_from(needed[0], 2, 4, sizes.pop()))
    return needed


def _upscored_from(span: Span, stride: int, kernel: int, size: int) -> Span:
    """The cells, of `size`, that a deconvolution spreads over a span of its output."""
    first = math.ceil((span.start - kernel + 1) / stride)
    return Span(first, (span.end - 1) // stride + 1).within(Span(0, size))
