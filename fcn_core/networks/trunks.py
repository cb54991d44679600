"""Build the modules of a trunk from its layer table, and apply them.

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
"""Function from a layer's published name to its module."""


def modules(
    layers: Sequence[Layer], architecture: Architecture, inputs: int
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the convolutions of a trunk with their published names, in order.

    Args:
        layers: Layer table of the trunk.
        architecture: Architecture with the width.
        inputs: Number of input channels.
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
    """Return the channels of a trunk layer; pools and norms have those of their input."""
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
    """Apply a trunk and collect the outputs of some layers.

    Args:
        layers: Layer table of the trunk.
        find: Function from a layer's name to its module.
        dropout: Module applied after layers that have dropout in the table.
        image_BCHW: Preprocessed pixels.
        wanted: Names of layers whose outputs to return.

    Returns:
        (B, C, H, W) of each wanted layer and of the last one, by name.
    """
    outputs = {}
    x_BCHW = image_BCHW
    for layer in layers:
        x_BCHW = apply(layer, find, x_BCHW)
        if layer.dropout:
            x_BCHW = dropout(x_BCHW)
        if layer.name in wanted:
            outputs[layer.name] = x_BCHW
    return outputs | {layers[-1].name: x_BCHW}


def apply(layer: Layer, find: Find, x_BCHW: Tensor) -> Tensor:
    """Apply one layer with its padding and ReLU, without dropout: (B, C, H, W)."""
    if layer.kind == "conv":
        return F.relu(find(layer.name)(x_BCHW), inplace=True)
    if layer.kind == "pool":
        return _pool(layer, x_BCHW)
    if layer.kind == "norm":
        return F.local_response_norm(x_BCHW, 5, alpha=1e-4, beta=0.75, k=1.0)
    return _inception(layer.name, find, x_BCHW)


def apply_unpadded(layer: Layer, find: Find, x_BCHW: Tensor) -> Tensor:
    """Apply one layer without padding, and a convolution without its ReLU: (B, C, H, W)."""
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
        return y_BCHW[..., 2:-2, 2:-2]  # removes cells that depend on the padding of the 5x5 branch
    return y_BCHW


def _pool(layer: Layer, x_BCHW: Tensor) -> Tensor:
    if layer.stride > 1:
        # Caffe rounds the output size of a pool up; rounding down breaks 1139 of 2999 image sizes.
        return F.max_pool2d(x_BCHW, layer.kernel, layer.stride, ceil_mode=True)
    # Every cell gets a window. Windows that extend beyond the end take the maximum of the existing
    # cells, as the last window of a pool with rounded-up size does.
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
