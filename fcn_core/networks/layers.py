"""Layer tables of the trunks and decoders, as in the reference prototxt files. Needs no torch.

`fcn_core.networks.trunks` builds modules from these tables; `fcn_core.networks.crops` computes crop
offsets from them.

Sources: net.py of shelhamer/fcn.berkeleyvision.org (VGG-16, CaffeNet); train_val.prototxt of
models/bvlc_googlenet in BVLC/caffe. Deviation: FCN-GoogLeNet was never released. The version here
follows section 4.1 of the paper ("we use only the final loss layer, and improve performance by
discarding the final average pooling layer") with the pad of the published networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fcn_core.networks.architecture import Architecture

PAD = 100
"""Pad of the first convolution, px, so that every image from 1x1 up gives at least one cell."""


@dataclass(frozen=True)
class Layer:
    """One layer of a trunk.

    Attributes:
        name: Published name. For layers without parameters it is only informative.
        kind: "conv" (followed by a ReLU), "pool" (maximum; output size rounded up, as in Caffe),
            "norm" (LRN over 5 channels, alpha 1e-4, beta 0.75) or "inception".
        channels: Published number of output channels of a convolution.
        kernel: Side of the kernel, cells.
        stride: Stride, cells.
        pad: Padding on every side, cells. A dilated pool is padded on the right and at the bottom
            instead, as far as its kernel reaches.
        dilation: Distance of neighboring kernel taps, cells.
        groups: Groups of a convolution.
        branches: Channels of an inception's 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5, pool_proj.
        dropout: Whether dropout follows in training.
    """

    name: str
    kind: Literal["conv", "pool", "norm", "inception"]
    channels: int = 0
    kernel: int = 1
    stride: int = 1
    pad: int = 0
    dilation: int = 1
    groups: int = 1
    branches: tuple[int, ...] = ()
    dropout: bool = False


def trunk(architecture: Architecture) -> tuple[Layer, ...]:
    """Return the layers from the image to the input of score_fr."""
    if architecture.variant == "fcn-alexnet":
        return _caffenet()
    if architecture.variant == "fcn-googlenet32s":
        return _googlenet()
    first = "conv1_1_bgrd" if architecture.variant == "fcn32s-color-d" else "conv1_1"
    return _vgg16(first, architecture.output_stride)


def _vgg16(first: str, output_stride: int) -> tuple[Layer, ...]:
    """Return VGG-16's layers, with pools beyond the output stride replaced by dilation."""
    layers = []
    reached, dilation = 1, 1
    for block, (channels, depth) in enumerate(
        ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), start=1
    ):
        for index in range(1, depth + 1):
            is_first = block == index == 1
            name, pad = (first, PAD) if is_first else (f"conv{block}_{index}", dilation)
            layers.append(Layer(name, "conv", channels, 3, pad=pad, dilation=dilation))
        if reached < output_stride:
            reached *= 2
            layers.append(Layer(f"pool{block}", "pool", kernel=2, stride=2))
        else:
            layers.append(Layer(f"pool{block}", "pool", kernel=2, dilation=dilation))
            dilation *= 2
    layers.append(Layer("fc6", "conv", 4096, 7, dilation=dilation, dropout=True))
    layers.append(Layer("fc7", "conv", 4096, dropout=True))
    return tuple(layers)


def _caffenet() -> tuple[Layer, ...]:
    """Return CaffeNet's layers; unlike AlexNet, it pools before it normalizes."""
    return (
        Layer("conv1", "conv", 96, 11, stride=4, pad=PAD),
        Layer("pool1", "pool", kernel=3, stride=2),
        Layer("norm1", "norm"),
        Layer("conv2", "conv", 256, 5, pad=2, groups=2),
        Layer("pool2", "pool", kernel=3, stride=2),
        Layer("norm2", "norm"),
        Layer("conv3", "conv", 384, 3, pad=1),
        Layer("conv4", "conv", 384, 3, pad=1, groups=2),
        Layer("conv5", "conv", 256, 3, pad=1, groups=2),
        Layer("pool5", "pool", kernel=3, stride=2),
        Layer("fc6", "conv", 4096, 6, dropout=True),
        Layer("fc7", "conv", 4096, dropout=True),
    )


def _googlenet() -> tuple[Layer, ...]:
    """Return Inception v1 up to inception_5b, with a pad of 100 instead of 3 at the first layer."""

    def inception(name: str, *branches: int, dropout: bool = False) -> Layer:
        return Layer(f"inception_{name}", "inception", branches=branches, dropout=dropout)

    return (
        Layer("conv1/7x7_s2", "conv", 64, 7, stride=2, pad=PAD),
        Layer("pool1/3x3_s2", "pool", kernel=3, stride=2),
        Layer("pool1/norm1", "norm"),
        Layer("conv2/3x3_reduce", "conv", 64),
        Layer("conv2/3x3", "conv", 192, 3, pad=1),
        Layer("conv2/norm2", "norm"),
        Layer("pool2/3x3_s2", "pool", kernel=3, stride=2),
        inception("3a", 64, 96, 128, 16, 32, 32),
        inception("3b", 128, 128, 192, 32, 96, 64),
        Layer("pool3/3x3_s2", "pool", kernel=3, stride=2),
        inception("4a", 192, 96, 208, 16, 48, 64),
        inception("4b", 160, 112, 224, 24, 64, 64),
        inception("4c", 128, 128, 256, 24, 64, 64),
        inception("4d", 112, 144, 288, 32, 64, 64),
        inception("4e", 256, 160, 320, 32, 128, 128),
        Layer("pool4/3x3_s2", "pool", kernel=3, stride=2),
        inception("5a", 256, 160, 320, 32, 128, 128),
        inception("5b", 384, 192, 384, 48, 128, 128, dropout=True),
    )


@dataclass(frozen=True)
class Skip:
    """A finer score that is added to the coarse score.

    Attributes:
        upscore: Name of the 2x deconvolution that brings the coarse score to the finer grid.
        score: Name of the 1x1 convolution that scores the finer layer.
        pool: Name of the finer layer.
        scale: Constant factor of the pool before it is scored (a fixed Scale layer of at-once
            nets).
    """

    upscore: str
    score: str
    pool: str
    scale: float = 1.0


@dataclass(frozen=True)
class Decoder:
    """The layers from score_fr to logits of the image's size.

    Attributes:
        skips: Skips from coarse to fine.
        upscore: Name of the last deconvolution.
        stride: Stride of the last deconvolution, px.
        kernel: Kernel side of the last deconvolution, px.
    """

    skips: tuple[Skip, ...]
    upscore: str
    stride: int
    kernel: int


def decoder(architecture: Architecture) -> Decoder:
    """Return the layers from score_fr to the logits."""
    variant, stride = architecture.variant, architecture.output_stride
    if variant in ("fcn-alexnet", "fcn-googlenet32s"):
        return Decoder((), "upscore", 32, 63)
    if variant not in ("fcn16s", "fcn8s", "fcn8s-atonce"):
        return Decoder((), "upscore", stride, 2 * stride)
    # Source: net.py of voc-fcn8s-atonce, which has fixed Scale layers before the skip scores.
    scale4, scale3 = (0.01, 0.0001) if variant == "fcn8s-atonce" else (1.0, 1.0)
    pool4 = Skip("upscore2", "score_pool4", "pool4", scale4)
    if variant == "fcn16s":
        return Decoder((pool4,), "upscore16", 16, 32)
    pool3 = Skip("upscore_pool4", "score_pool3", "pool3", scale3)
    return Decoder((pool4, pool3), "upscore8", 8, 16)
