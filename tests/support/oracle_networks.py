"""Slow, obvious twins of every network, written from the paper and from what was published.

They share no code with `fcn_core`: plain convolutions of plain tensors, explicit sums, explicit
crops. Layer names are those of net.py and of Caffe's bvlc_googlenet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from tests.support.oracles import TRUNK, ceil_pool, conv, crop, deconv, fcn_logits

Weights = Mapping[str, Tensor]


def logits(variant: str, weights: Weights, image: Tensor) -> Tensor:
    """The forward pass of a net of one head and stride 32.

    Deconvolutions have the weights of the file, or bilinear ones if it has none.
    """
    if variant == "fcn-alexnet":
        score = alexnet_score(weights, image)
        return crop(deconv(score, 63, 32, weights.get("upscore.weight")), 18, like=image)
    if variant == "fcn-googlenet32s":
        score = googlenet_score(weights, image)
        return crop(deconv(score, 63, 32, weights.get("upscore.weight")), 98, like=image)
    if variant == "fcn32s-color-d":
        renamed = {name.replace("_bgrd", ""): tensor for name, tensor in weights.items()}
        return fcn_logits("fcn32s", renamed, image)
    if variant == "fcn32s-color-hha":
        color, hha = image[:, :3], image[:, 3:]
        score_fused = 0.5 * vgg_score(stream(weights, "color"), color) + 0.5 * vgg_score(
            stream(weights, "hha"), hha
        )
        return crop(deconv(score_fused, 64, 32, weights.get("upscore.weight")), 19, like=image)
    return fcn_logits(variant, weights, image)


def head_logits(variant: str, weights: Weights, image: Tensor, head: str) -> Tensor:
    """One head of a net with several: the shared trunk and the layers with its suffix."""
    own = {name.replace(f"_{head}.", "."): tensor for name, tensor in weights.items()}
    return fcn_logits(variant, own, image)


def stream(weights: Weights, suffix: str) -> dict[str, Tensor]:
    """One trunk of late fusion, under the names of a single one."""
    return {n.replace(f"{suffix}.", "."): t for n, t in weights.items() if f"{suffix}." in n}


def vgg_score(weights: Weights, x: Tensor) -> Tensor:
    for name in TRUNK:
        x = ceil_pool(x) if name.startswith("pool") else conv(x, name, weights)
        x = x if name == "score_fr" else x.clamp(min=0)
    return x


# --- CaffeNet and GoogLeNet --------------------------------------------------------------------


def plain(x: Tensor, name: str, weights: Weights, *, pad: int = 0, stride: int = 1) -> Tensor:
    """A convolution in one group, and its ReLU."""
    x = F.pad(x, (pad,) * 4)
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return F.conv2d(x, weight, bias, stride=stride).clamp(min=0)


def in_halves(x: Tensor, name: str, weights: Weights, *, pad: int) -> Tensor:
    """A convolution in two groups: each half of the outputs reads one half of the inputs."""
    halves = []
    parts = zip(
        x.chunk(2, 1),
        weights[f"{name}.weight"].chunk(2),
        weights[f"{name}.bias"].chunk(2),
        strict=True,
    )
    for part, weight, bias in parts:
        halves.append(F.conv2d(F.pad(part, (pad,) * 4), weight, bias))
    return torch.cat(halves, 1).clamp(min=0)


def pool3(x: Tensor) -> Tensor:
    """3x3, stride 2, the last window completed with minus infinity: ceil((n - 3) / 2) + 1."""
    counts = [math.ceil((side - 3) / 2) + 1 for side in x.shape[-2:]]
    missing = [2 * (n - 1) + 3 - side for n, side in zip(counts, x.shape[-2:], strict=True)]
    x = F.pad(x, (0, missing[1], 0, missing[0]), value=-math.inf)
    ends = [2 * n - 1 for n in counts]
    taps = [x[..., i : i + ends[0] : 2, j : j + ends[1] : 2] for i in range(3) for j in range(3)]
    return torch.stack(taps).amax(dim=0)


def lrn(x: Tensor) -> Tensor:
    """b_c = a_c / (1 + 1e-4 / 5 * the squares of the five channels around c) ** 0.75."""
    planes = []
    for c in range(x.shape[1]):
        around = x[:, max(0, c - 2) : c + 3]
        planes.append(x[:, c] / (1 + 1e-4 / 5 * (around**2).sum(1)) ** 0.75)
    return torch.stack(planes, 1)


def alexnet_score(weights: Weights, image: Tensor) -> Tensor:
    x = lrn(pool3(plain(image, "conv1", weights, pad=100, stride=4)))
    x = lrn(pool3(in_halves(x, "conv2", weights, pad=2)))
    x = plain(x, "conv3", weights, pad=1)
    x = in_halves(x, "conv4", weights, pad=1)
    x = pool3(in_halves(x, "conv5", weights, pad=1))
    x = plain(plain(x, "fc6", weights), "fc7", weights)
    return conv(x, "score_fr", weights)


def googlenet_score(weights: Weights, image: Tensor) -> Tensor:
    x = lrn(pool3(plain(image, "conv1/7x7_s2", weights, pad=100, stride=2)))
    x = plain(plain(x, "conv2/3x3_reduce", weights), "conv2/3x3", weights, pad=1)
    x = pool3(lrn(x))
    for name in ("3a", "3b", "pool", "4a", "4b", "4c", "4d", "4e", "pool", "5a", "5b"):
        x = pool3(x) if name == "pool" else inception(x, f"inception_{name}", weights)
    return conv(x, "score_fr", weights)


def inception(x: Tensor, name: str, weights: Weights) -> Tensor:
    ring = F.pad(x, (1,) * 4, value=-math.inf)
    height, width = x.shape[-2:]
    around = [ring[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
    branches = [
        plain(x, f"{name}/1x1", weights),
        plain(plain(x, f"{name}/3x3_reduce", weights), f"{name}/3x3", weights, pad=1),
        plain(plain(x, f"{name}/5x5_reduce", weights), f"{name}/5x5", weights, pad=2),
        plain(torch.stack(around).amax(dim=0), f"{name}/pool_proj", weights),
    ]
    return torch.cat(branches, 1)


# --- Dilation (paper, section 3.2) -------------------------------------------------------------


def rarefied(weight: Tensor, s: int) -> Tensor:
    """f'_ij = f_(i/s, j/s) where s divides both, 0 elsewhere."""
    outputs, inputs, k, _ = weight.shape
    side = s * (k - 1) + 1
    result = torch.zeros(outputs, inputs, side, side, dtype=weight.dtype)
    result[..., ::s, ::s] = weight
    return result


def dilated_score(weights: Weights, x: Tensor, output_stride: int) -> Tensor:
    """score_fr where every pool past the output stride moves by one cell, with rarefied filters."""
    stride, s = 1, 1
    for name in TRUNK:
        if not name.startswith("pool"):
            pad = 100 if name == "conv1_1" else s if name.startswith("conv") else 0
            weight = rarefied(weights[f"{name}.weight"], s)
            x = F.conv2d(F.pad(x, (pad,) * 4), weight, weights[f"{name}.bias"])
            x = x if name == "score_fr" else x.clamp(min=0)
        elif stride < output_stride:
            x, stride = ceil_pool(x), 2 * stride
        else:
            height, width = x.shape[-2:]
            far = F.pad(x, (0, s, 0, s), value=-math.inf)
            taps = [far[..., i : i + height, j : j + width] for i in (0, s) for j in (0, s)]
            x, s = torch.stack(taps).amax(dim=0), 2 * s
    return x


def dilated_logits(weights: Weights, image: Tensor, output_stride: int) -> Tensor:
    """Cells lie at 12.5 + stride * i; at stride 8 the map goes on outwards by one cell."""
    score = dilated_score(weights, image, output_stride)
    if output_stride == 8:
        score = torch.cat([score[..., :1], score], dim=3)
        score = torch.cat([score[..., :1, :], score], dim=2)
    offset = {32: 19, 16: 3, 8: 3}[output_stride]
    return crop(deconv(score, 2 * output_stride, output_stride), offset, like=image)
