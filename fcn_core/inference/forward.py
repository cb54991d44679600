"""`FastForward`: the logits of `FCN.forward`, computed with fewer operations.

Shape suffixes: B batch, C channel, K class, H height px, W width px.

- While the kernels of a layer see only the image and the even blank area around it, the layer is
  computed only on the cells that the image reaches; the other cells come from a blank canvas.
- Scores that the last crop removes are neither added nor upsampled.
- On a CPU, fully connected layers are matrix products, because convolutions would reorder their
  weights for every image.

Except for int8, nothing is approximated: every omitted product is either known or never used. Sums
are taken in another order, which changes only float rounding. docs/forward.md has the margins and
measurements.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from fcn_core.inference.arithmetic import Arithmetic, FloatLayers
from fcn_core.inference.blank_canvas import BLANK_BYTES, BlankFeatures
from fcn_core.inference.int8 import Int8Layers, Int8Ranges
from fcn_core.inference.windows import (
    Axis,
    Span,
    axes,
    canvas,
    input_span,
    needed_scores,
    windowed_layers,
)
from fcn_core.networks.layers import Layer
from fcn_core.networks.model import FCN, head_suffix

WindowAxes = tuple[Span, Span]
"""The rows and columns of a window of a layer."""


class FastForward:
    """`FCN.forward` for inference, for a network in eval mode with constant weights.

    The model should be channels-last. Otherwise the weights of fully connected layers are copied at
    every call.

    Attributes:
        model: The network.
        trunks: One trunk per stream of the network.
    """

    def __init__(
        self, model: FCN, blank_bytes: int = BLANK_BYTES, int8: Int8Ranges | None = None
    ) -> None:
        """Prepare the trunks of a network.

        Args:
            model: Network on its device and in its precision.
            blank_bytes: Maximum number of bytes of cached blank features, per trunk.
            int8: Ranges to compute the trunk in int8, for a network in float32; see
                `fcn_core.inference.int8`.
        """
        self.model = model
        self.trunks = [FastTrunk(model, stream, blank_bytes, int8) for stream in model.streams]

    @torch.inference_mode()
    def __call__(self, image_BCHW: Tensor, head: str | None = None) -> Tensor:
        """Return the logits (B, K, H, W) of one head, equal to those of `FCN.forward`."""
        model, size = self.model, image_BCHW.shape[-2:]
        head = next(iter(model.architecture.head_classes)) if head is None else head
        parts = torch.split(image_BCHW, list(model.streams.values()), dim=1)
        outputs = [trunk(part) for trunk, part in zip(self.trunks, parts, strict=True)]
        scores = [
            model.get_submodule(f"score_fr{stream}{head_suffix(head)}")(features.last_BCHW)
            for stream, features in zip(model.streams, outputs, strict=True)
        ]
        # Late fusion, as in FCN.
        score_BKHW: Tensor = scores[0] if len(scores) == 1 else sum(scores) / len(scores)
        if not model.plan.skips:
            return model.upsample_scores(score_BKHW, head, *size)
        return self._decoded(score_BKHW, outputs[0], head, size)

    def _decoded(
        self, score_BKHW: Tensor, features: Features, head: str, size: torch.Size
    ) -> Tensor:
        """Add the skips to the scores and upsample them, only where the image is."""
        model, suffix = self.model, head_suffix(head)
        plan, offset = model.plan, model.crops[model.plan.upscore]
        rows, columns = (
            needed_scores(plan, offset, side, cells)
            for side, cells in zip(size, score_BKHW.shape[-2:], strict=True)
        )
        here = _full_window(score_BKHW)
        for index, skip in enumerate(plan.skips):
            coarse = rows[index], columns[index]
            score_BKHW = _cells(score_BKHW, here, coarse)
            here = rows[index + 1], columns[index + 1]
            up_BKHW = model.get_submodule(skip.upscore + suffix)(score_BKHW)
            up_BKHW = _cells(up_BKHW, _upsampled(coarse, up_BKHW, 2), here)
            pool_BCHW = features.pool(skip.pool, _moved(here, model.crops[skip.score]))
            if skip.scale != 1:
                pool_BCHW = pool_BCHW * skip.scale
            score_BKHW = up_BKHW + model.get_submodule(skip.score + suffix)(pool_BCHW)
        up_BKHW = model.get_submodule(plan.upscore + suffix)(score_BKHW)
        image = Span(offset, offset + size[0]), Span(offset, offset + size[1])
        return _cells(up_BKHW, _upsampled(here, up_BKHW, plan.stride), image)


class Features:
    """The outputs of a trunk that the decoder reads.

    Attributes:
        last_BCHW: Output of the last layer.
    """

    def __init__(self) -> None:
        self._pools: dict[str, tuple[Tensor, WindowAxes, Tensor]] = {}
        self.last_BCHW = torch.empty(0)

    def add_pool(self, name: str, x_BCHW: Tensor, here: WindowAxes, even_C: Tensor) -> None:
        """Store a pool for a skip: a window of its cells, and the even value around the window."""
        self._pools[name] = x_BCHW, here, even_C

    def pool(self, name: str, there: WindowAxes) -> Tensor:
        """Return a window of a stored pool, (B, C, H, W)."""
        x_BCHW, here, even_C = self._pools[name]
        inner = there[0].intersection(here[0]), there[1].intersection(here[1])
        return _framed(_cells(x_BCHW, here, inner), inner, there, even_C)


class FastTrunk:
    """One trunk of a network.

    Attributes:
        windowed: Number of layers that are computed only where the image reaches.
        blanks: Blank features around the image in these layers.
    """

    def __init__(self, model: FCN, stream: str, blank_bytes: int, int8: Int8Ranges | None) -> None:
        def find(name: str) -> nn.Module:
            return model.get_submodule(name + stream)

        self.windowed = windowed_layers(model.layers)
        self._arithmetic: Arithmetic = (
            FloatLayers(find) if int8 is None else Int8Layers(model.layers, find, int8)
        )
        self._near, self._far = model.layers[: self.windowed], model.layers[self.windowed :]
        self._skips = {skip.pool for skip in model.plan.skips}
        weight = next(model.parameters())
        image = weight.new_empty(1, model.streams[stream], 1, 1)
        self.blanks = BlankFeatures(self._near, self._arithmetic, image, blank_bytes)

    def __call__(self, image_BCHW: Tensor) -> Features:
        """Apply the trunk to preprocessed pixels."""
        features = Features()
        x_BCHW = self._pasted(image_BCHW, features)
        layers = iter(self._far)
        layer: Layer | None = self._near[-1]
        while layer is not None:
            if layer.name in self._skips:
                real_BCHW = self._arithmetic.to_floats(layer.name, x_BCHW)
                features.add_pool(layer.name, real_BCHW, _full_window(x_BCHW), x_BCHW.new_empty(0))
            layer = next(layers, None)
            if layer is not None:
                x_BCHW = self._arithmetic.apply(layer, x_BCHW)
        features.last_BCHW = x_BCHW
        return features

    def _pasted(self, image_BCHW: Tensor, features: Features) -> Tensor:
        """Return the output of the last windowed layer, on the whole canvas."""
        rows, columns = (
            axes(self._near, canvas(self._near, side)) for side in image_BCHW.shape[-2:]
        )
        arithmetic = self._arithmetic
        x_BCHW = arithmetic.to_input(image_BCHW)
        here, relu = _reached(rows[0], columns[0]), False
        for index, layer in enumerate(self._near):
            there = _reached(rows[index + 1], columns[index + 1])
            read = input_span(layer, there[0]), input_span(layer, there[1])
            x_BCHW = _framed(x_BCHW, here, read, self.blanks.even[index], relu=relu)
            x_BCHW = arithmetic.apply_unpadded(layer, x_BCHW)
            here, relu = there, layer.kind == "conv" and arithmetic.leaves_relu
            if layer.name in self._skips:
                pool_BCHW, even_C = (
                    arithmetic.to_floats(layer.name, x)
                    for x in (x_BCHW, self.blanks.even[index + 1])
                )
                features.add_pool(layer.name, pool_BCHW, here, even_C)
        blank_HWC = self.blanks.canvas(rows[0].size, columns[0].size)
        whole_BCHW = _empty(x_BCHW, *blank_HWC.shape[:2])
        whole_BCHW.copy_(blank_HWC.permute(2, 0, 1))
        _put(x_BCHW, _cells(whole_BCHW, _full_window(whole_BCHW), here), relu)
        return whole_BCHW


def _reached(row: Axis, column: Axis) -> WindowAxes:
    return row.image, column.image


def _full_window(x_BCHW: Tensor) -> WindowAxes:
    return Span(0, x_BCHW.shape[-2]), Span(0, x_BCHW.shape[-1])


def _moved(window: WindowAxes, cells: int) -> WindowAxes:
    rows, columns = (Span(span.start + cells, span.end + cells) for span in window)
    return rows, columns


def _upsampled(window: WindowAxes, up_BKHW: Tensor, stride: int) -> WindowAxes:
    """Return the position of a window's deconvolution in that of the whole score map."""
    first = (stride * window[0].start, stride * window[1].start)
    rows, columns = (
        Span(start, start + side) for start, side in zip(first, up_BKHW.shape[-2:], strict=True)
    )
    return rows, columns


def _cells(x_BCHW: Tensor, here: WindowAxes, there: WindowAxes) -> Tensor:
    """Return a window of a larger window, as a view."""
    rows, columns = (
        slice(inner.start - outer.start, inner.end - outer.start)
        for inner, outer in zip(there, here, strict=True)
    )
    return x_BCHW[..., rows, columns]


def _framed(
    x_BCHW: Tensor, here: WindowAxes, there: WindowAxes, even_C: Tensor, *, relu: bool = False
) -> Tensor:
    """Extend a window to a larger one, whose other cells have the even value."""
    if here == there:
        return F.relu(x_BCHW, inplace=True) if relu else x_BCHW
    sides = [span.end - span.start for span in there]
    framed_BCHW = _empty(x_BCHW, *sides)
    inner_BCHW = _cells(framed_BCHW, there, here)
    top, left = (inner.start - outer.start for inner, outer in zip(here, there, strict=True))
    below, right = top + x_BCHW.shape[-2], left + x_BCHW.shape[-1]
    even_C11 = even_C[:, None, None]
    for strip_BCHW in (
        framed_BCHW[..., :top, :],
        framed_BCHW[..., below:, :],
        framed_BCHW[..., top:below, :left],
        framed_BCHW[..., top:below, right:],
    ):
        strip_BCHW.copy_(even_C11)
    _put(x_BCHW, inner_BCHW, relu)
    return framed_BCHW


def _empty(like_BCHW: Tensor, height: int, width: int) -> Tensor:
    size = (*like_BCHW.shape[:2], height, width)
    return torch.empty(
        size,
        dtype=like_BCHW.dtype,
        device=like_BCHW.device,
        memory_format=torch.channels_last,
    )


def _put(x_BCHW: Tensor, place_BCHW: Tensor, relu: bool) -> None:
    """Copy, and apply the ReLU if it is pending."""
    if relu:
        torch.clamp_min(x_BCHW, 0, out=place_BCHW)
    else:
        place_BCHW.copy_(x_BCHW)
