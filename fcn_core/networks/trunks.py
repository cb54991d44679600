"""The trunks: from the table of layers to modules, and through them.

Shape suffixes: B batch, C channel, H height px, W width px.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from fcn_core.networks.architecture import Architecture
from fcn_core.networks.layers import Layer

Find = Callable[[str], nn.Module]
"""Layer by its published name."""


def modules(
    layers: Sequence[Layer], architecture: Architecture, inputs: int
) -> Iterator[tuple[str, nn.Module]]:
    """The convolutions of a trunk, by published name, in order.

    Args:
        layers: of the trunk.
        architecture: for its width.
        inputs: channels of the image.
    """
    multiple = max(layer.groups for layer in layers)
    for layer in layers:
        if layer.kind == "conv":
            outputs = architecture.channels(layer.channels, multiple)
            yield (
                layer.name,
                nn.Conv2d(
                    inputs,
                    outputs,
                    layer.kernel,
                    layer.stride,
                    layer.pad,
                    layer.dilation,
                    layer.groups,
                ),
            )
            inputs = outputs
        elif layer.kind == "inception":
            widths = [architecture.channels(full) for full in layer.branches]
            one, three_reduce, three, five_reduce, five, pooled = widths
            yield f"{layer.name}/1x1", nn.Conv2d(inputs, one, 1)
            yield f"{layer.name}/3x3_reduce", nn.Conv2d(inputs, three_reduce, 1)
            yield f"{layer.name}/3x3", nn.Conv2d(three_reduce, three, 3, padding=1)
            yield f"{layer.name}/5x5_reduce", nn.Conv2d(inputs, five_reduce, 1)
            yield f"{layer.name}/5x5", nn.Conv2d(five_reduce, five, 5, padding=2)
            yield f"{layer.name}/pool_proj", nn.Conv2d(inputs, pooled, 1)
            inputs = one + three + five + pooled


def output_channels(layers: Sequence[Layer], architecture: Architecture, name: str) -> int:
    """Channels of a layer of the trunk; pools and norms have those of what they read."""
    channels, multiple = 0, max(layer.groups for layer in layers)
    for layer in layers:
        if layer.kind == "conv":
            channels = architecture.channels(layer.channels, multiple)
        elif layer.kind == "inception":
            one, _, three, _, five, pooled = map(architecture.channels, layer.branches)
            channels = one + three + five + pooled
        if layer.name == name:
            return channels
    raise KeyError(name)


def features(
    layers: Sequence[Layer], find: Find, dropout: nn.Module, image_BCHW: Tensor,
    wanted: Collection[str] = (),
) -> dict[str, Tensor]:  # fmt: skip
    """Through the trunk.

    Args:
        layers: of the trunk.
        find: gives their modules.
        dropout: follows where the table says so.
        image_BCHW: preprocessed pixels.
        wanted: names of layers to keep on the way.

    Returns:
        (B, C, H, W) of each wanted layer, and of the last one.
    """
    kept = {}
    x_BCHW = image_BCHW
    for layer in layers:
        x_BCHW = apply(layer, find, x_BCHW)
        if layer.dropout:
            x_BCHW = dropout(x_BCHW)
        if layer.name in wanted:
            kept[layer.name] = x_BCHW
    return kept | {layers[-1].name: x_BCHW}


def apply(layer: Layer, find: Find, x_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) of one layer, without dropout."""
    if layer.kind == "conv":
        return F.relu(find(layer.name)(x_BCHW), inplace=True)
    if layer.kind == "pool":
        return _pool(layer, x_BCHW)
    if layer.kind == "norm":
        return F.local_response_norm(x_BCHW, 5, alpha=1e-4, beta=0.75, k=1.0)
    return _inception(layer.name, find, x_BCHW)


def unpadded(layer: Layer, find: Find, x_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) of one layer where it needs no padding; of a convolution without its ReLU."""
    if layer.kind == "conv":
        conv = find(layer.name)
        assert isinstance(conv, nn.Conv2d)
        return F.conv2d(
            x_BCHW,
            conv.weight,
            conv.bias,
            layer.stride,
            dilation=layer.dilation,
            groups=layer.groups,
        )
    if layer.kind == "pool":
        return F.max_pool2d(x_BCHW, layer.kernel, layer.stride, dilation=layer.dilation)
    y_BCHW = apply(layer, find, x_BCHW)
    if layer.kind == "inception":
        return y_BCHW[..., 2:-2, 2:-2]  # what its widest branch, 5x5, has padded
    return y_BCHW


def _pool(layer: Layer, x_BCHW: Tensor) -> Tensor:
    if layer.stride > 1:
        # Caffe rounds the size of a pool up; floor breaks the crops for 1139 of 2999 sizes.
        return F.max_pool2d(x_BCHW, layer.kernel, layer.stride, ceil_mode=True)
    # Every cell gets a window; those that reach over the end take the maximum of what there is,
    # as the last window of a pool that is rounded up does.
    reach = layer.dilation * (layer.kernel - 1)
    x_BCHW = F.pad(x_BCHW, (0, reach, 0, reach), value=-math.inf)
    return F.max_pool2d(x_BCHW, layer.kernel, 1, dilation=layer.dilation)


def _inception(name: str, find: Find, x_BCHW: Tensor) -> Tensor:
    def conv(part: str, y_BCHW: Tensor) -> Tensor:
        return F.relu(find(f"{name}/{part}")(y_BCHW), inplace=True)

    branches = (
        conv("1x1", x_BCHW),
        conv("3x3", conv("3x3_reduce", x_BCHW)),
        conv("5x5", conv("5x5_reduce", x_BCHW)),
        conv("pool_proj", F.max_pool2d(x_BCHW, 3, 1, 1)),
    )
    return torch.cat(branches, dim=1)
