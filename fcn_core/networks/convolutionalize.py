"""Classifiers of torchvision as fully convolutional nets (paper, section 3.1).

A fully connected layer that reads a (C, h, w) feature map is a convolution with a kernel that
covers it. So seen, a classifier takes an image of any size from its own upwards, and gives a grid
of class scores, one per position of its window.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from fcn_core.errors import FcnError

GOOGLENET_LAYERS = (
    "conv1 maxpool1 conv2 conv3 maxpool2 inception3a inception3b maxpool3 inception4a inception4b "
    "inception4c inception4d inception4e maxpool4 inception5a inception5b"
).split()
"""In the order of torchvision.models.GoogLeNet._forward."""


GOOGLENET_WINDOW = 7
"""Side of the feature map that a 224 px image leaves for the final average pool."""


def convolutionalize(classifier: nn.Module) -> nn.Sequential:
    """The same network, fully convolutional; it shares the classifier's weights.

    On an image of the classifier's own size, 224x224, the output is (B, classes, 1, 1) and equals
    the classifier's up to float rounding. From there on one more score appears for every 32 px.
    AlexNet's and VGG's adaptive pools do nothing at that size, and are left out; GoogLeNet's final
    one becomes an average over windows of 7x7 cells.

    Args:
        classifier: torchvision's AlexNet, a VGG (11 to 19, with or without batch norm) or
            GoogLeNet, whose auxiliary classifiers are left out. Other channel counts are fine.

    Returns:
        Float (B, 3, H, W) to (B, classes, h, w), in the mode (training or eval) of the classifier.

    Raises:
        FcnError: another network.
    """
    from torchvision.models import VGG, AlexNet, GoogLeNet

    if isinstance(classifier, (AlexNet, VGG)):
        parts = OrderedDict(
            features=classifier.features,
            classifier=_convolutions(classifier.classifier, _window(classifier.avgpool)),
        )
    elif isinstance(classifier, GoogLeNet):
        parts = OrderedDict[str, nn.Module]()
        if classifier.transform_input:
            parts["transform_input"] = _GoogLeNetInput()
        parts.update((name, classifier.get_submodule(name)) for name in GOOGLENET_LAYERS)
        parts["avgpool"] = nn.AvgPool2d(GOOGLENET_WINDOW, stride=1)
        parts["dropout"] = classifier.dropout
        parts["fc"] = _convolution(classifier.fc, 1)
    else:
        raise FcnError(
            where="convolutionalize",
            found=f"{type(classifier).__module__}.{type(classifier).__name__}",
            expected="torchvision's AlexNet, VGG or GoogLeNet",
            remedy="Build one of those and load your weights into it.",
        )
    return nn.Sequential(parts).train(classifier.training)


def _window(pool: nn.Module) -> int:
    """Side of the square of cells that an adaptive pool leaves to the first linear layer."""
    size: Any = pool.output_size
    return int(size[0])


def _convolutions(classifier: nn.Module, window: int) -> nn.Sequential:
    """The classifier's layers; the first linear one reads `window` x `window` cells."""
    layers = []
    for layer in classifier.children():
        if isinstance(layer, nn.Linear):
            layer, window = _convolution(layer, window), 1
        layers.append(layer)
    return nn.Sequential(*layers)


def _convolution(linear: nn.Linear, window: int) -> nn.Conv2d:
    """Features were flattened in the order channel, row, column: that of a convolution's weight."""
    channels = linear.in_features // window**2
    with torch.device("meta"):
        conv = nn.Conv2d(channels, linear.out_features, window)
    weight = linear.weight.detach().view(linear.out_features, channels, window, window)
    conv.weight = nn.Parameter(weight, linear.weight.requires_grad)
    conv.bias = linear.bias
    return conv


class _GoogLeNetInput(nn.Module):
    """From torchvision's normalisation to the (-1, 1) of the weights it took from TensorFlow.

    Source: torchvision.models.GoogLeNet._transform_input.
    """

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W), the same."""
        mean = torch.tensor((0.485, 0.456, 0.406)).to(image_BCHW).view(3, 1, 1)
        std = torch.tensor((0.229, 0.224, 0.225)).to(image_BCHW).view(3, 1, 1)
        return image_BCHW * (std / 0.5) + (mean - 0.5) / 0.5
