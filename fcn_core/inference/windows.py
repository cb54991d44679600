"""Compute, per axis, the cells of a trunk that an image can change. Needs no torch.

The first layer surrounds the image with a wide border of zeros. On this canvas, a cell of a later
layer can depend on three things. Each is an interval per axis that grows with the receptive field:

- the image (`Axis.image`);
- the edges of the canvas, because later convolutions pad with zeros where a blank canvas would have
  features (cells outside `Axis.even`);
- neither: all these cells of a blank canvas are equal.

So a layer can be computed on only the cells that the image reaches, as long as the cells around
them that its kernels read are even: one vector of channels. docs/forward.md explains this, with the
margins of every network.

>>> from fcn_core.networks.architecture import Architecture
>>> from fcn_core.networks.layers import trunk
>>> layers = trunk(Architecture("fcn8s", 21))
>>> layers[windowed_layers(layers) - 1].name
'pool4'
>>> axis_after(layers[0], canvas(layers, 500))
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
    """The cells from `start` to `end`, without `end`."""

    start: int
    end: int

    def intersection(self, other: Span) -> Span:
        """Return the intersection with another span."""
        return Span(max(self.start, other.start), min(self.end, other.end))

    def contains(self, other: Span) -> bool:
        """Return whether this span contains the other one."""
        return other.start >= other.end or (self.start <= other.start and other.end <= self.end)


@dataclass(frozen=True)
class Axis:
    """One axis of a layer on the padded canvas.

    Attributes:
        size: Number of cells.
        image: Cells that the image can change.
        even: Cells that the edges of the canvas do not reach. Outside of `image` they are all
            equal.
    """

    size: int
    image: Span
    even: Span

    @classmethod
    def blank(cls, size: int) -> Axis:
        """Return the axis of a canvas without an image."""
        return cls(size, Span(0, 0), Span(0, size))


def canvas(layers: Sequence[Layer], side: int) -> Axis:
    """Return the axis of an image in the border of zeros that the first layer adds.

    Args:
        layers: Layers of the trunk.
        side: Side of the image, px.
    """
    pad = layers[0].pad
    size = side + 2 * pad
    return Axis(size, Span(pad, pad + side), Span(0, size))


def axis_after(layer: Layer, axis: Axis) -> Axis:
    """Return the axis after a layer.

    Args:
        layer: The layer. The first one of a trunk adds no border here, because `canvas` has it.
        axis: Axis of the layer's input.
    """
    reach, pad = _reach_and_pad(layer)
    stride = layer.stride
    if layer.kind != "pool":
        size = (axis.size + 2 * pad - reach - 1) // stride + 1
    else:  # the size is rounded up, or the pool is padded at its end
        size = math.ceil((axis.size - (reach if stride > 1 else 0) - 1) / stride) + 1
    every = Span(0, size)
    # Output cell x reads input cells stride * x - pad to stride * x - pad + reach.
    first = math.ceil((axis.image.start + pad - reach) / stride)
    last = (axis.image.end - 1 + pad) // stride
    even = Span(
        math.ceil((axis.even.start + pad) / stride),
        math.floor((axis.even.end - 1 + pad - reach) / stride) + 1,
    )
    if layer.kind == "pool" and axis.even.end == axis.size:
        # A window that extends beyond the end takes the maximum of the existing cells.
        even = Span(even.start, size)
    return Axis(size, Span(first, last + 1).intersection(every), even.intersection(every))


def input_span(layer: Layer, span: Span) -> Span:
    """Return the input cells of a span of output cells; they may lie outside the canvas."""
    reach, pad = _reach_and_pad(layer)
    start = layer.stride * span.start - pad
    return Span(start, layer.stride * (span.end - 1) - pad + reach + 1)


def _reach_and_pad(layer: Layer) -> tuple[int, int]:
    """Return the distance of the outermost kernel taps and the pad without the border, cells."""
    if layer.kind == "inception":
        return 4, 2  # those of the widest branch, 5x5
    reach = layer.dilation * (layer.kernel - 1)
    return reach, 0 if layer.pad > reach else layer.pad  # a pad wider than the kernel is the border


@cache
def windowed_layers(layers: tuple[Layer, ...]) -> int:
    """Return how many layers of a trunk can be computed only where the image reaches.

    The number holds for all image sizes. When a side grows by the product of the strides, the
    edges move by whole cells, so the sides of one such period represent all sides.
    """
    period = math.prod(layer.stride for layer in layers)
    return min(_windowed_layers(layers, side) for side in range(1, period + 1))


def _windowed_layers(layers: Sequence[Layer], side: int) -> int:
    axis = canvas(layers, side)
    for count, layer in enumerate(layers):
        after = axis_after(layer, axis)
        read = input_span(layer, after.image)
        around = Span(read.start, axis.image.start), Span(axis.image.end, read.end)
        if not all(axis.even.contains(part) for part in around):
            return count
        axis = after
    return len(layers)


def axes(layers: Sequence[Layer], axis: Axis) -> list[Axis]:
    """Return the axes of the canvas and of each layer of a trunk."""
    result = [axis]
    for layer in layers:
        result.append(axis_after(layer, result[-1]))
    return result


@cache
def blank_side(layers: tuple[Layer, ...], size: int) -> int:
    """Return the side of the smallest canvas with the same edges that is even between them.

    Args:
        layers: Layers of the trunk up to the last one that needs blank features.
        size: Side of the canvas with its border, px.
    """
    period = math.prod(layer.stride for layer in layers)
    side = size % period
    while not all(axis.even.start < axis.even.end for axis in axes(layers, Axis.blank(side))):
        side += period
    return side


def stretch_indices(layers: tuple[Layer, ...], size: int) -> list[int]:
    """Return the cell of the small blank canvas that equals each cell of the large one.

    Both are cells of the last layer, along one axis.
    """
    small = axes(layers, Axis.blank(blank_side(layers, size)))[-1]
    cells = axes(layers, Axis.blank(size))[-1].size
    lead, trail = small.even.start, small.size - small.even.end
    even = [lead] * (cells - lead - trail)
    return [*range(lead), *even, *range(small.size - trail, small.size)]


def needed_scores(plan: Decoder, offset: int, side: int, cells: int) -> list[Span]:
    """Return the score cells that the logits of the image depend on, coarse to fine.

    Args:
        plan: Decoder of the network.
        offset: Offset of the last crop, px.
        side: Side of the image, px.
        cells: Cells of score_fr.

    Returns:
        Spans of score_fr, and of the fused scores after each skip.
    """
    sizes = [cells]
    for _ in plan.skips:
        sizes.append(2 * sizes[-1] + 2)
    image = Span(offset, offset + side)
    needed = [_read_by_deconvolution(image, plan.stride, plan.kernel, sizes.pop())]
    while sizes:
        needed.insert(0, _read_by_deconvolution(needed[0], 2, 4, sizes.pop()))
    return needed


def _read_by_deconvolution(span: Span, stride: int, kernel: int, size: int) -> Span:
    """Return the input cells, of `size`, that a deconvolution spreads over a span of its output."""
    first = math.ceil((span.start - kernel + 1) / stride)
    return Span(first, (span.end - 1) // stride + 1).intersection(Span(0, size))
