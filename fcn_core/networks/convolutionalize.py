"""Convert image classifiers of torchvision into fully convolutional networks (paper, section 3.1).

A fully connected layer that reads a (C, h, w) feature map equals a convolution whose kernel covers
the whole map. As a convolution, the classifier accepts any image of at least its own size, and
returns a grid of class scores, one per position of its window.
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
"""Layer names in the order of torchvision.models.GoogLeNet._forward."""


GOOGLENET_WINDOW = 7
"""Side, cells, of the feature map before the final average pool, for a 224 px image."""


def convolutionalize(classifier: nn.Module) -> nn.Sequential:
    """Return a fully convolutional version of a classifier, which shares its weights.

    On an image of the classifier's size, 224x224, the output is (B, classes, 1, 1) and equals the
    classifier's up to float rounding. Every further 32 px add one score per axis. The adaptive
    pools of AlexNet and VGG have no effect at that size and are left out; GoogLeNet's final pool
    becomes an average over windows of 7x7 cells.

    Args:
        classifier: AlexNet, VGG (11 to 19, with or without batch norm) or GoogLeNet of torchvision,
            with any channel counts. GoogLeNet's auxiliary classifiers are left out.

    Returns:
        Module from float (B, 3, H, W) to (B, classes, h, w), in the classifier's mode (training or
        eval).

    Raises:
        FcnError: A classifier of another kind.
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
            remedy="Build one of these and load your weights into it.",
        )
    return nn.Sequential(parts).train(classifier.training)


def _window(pool: nn.Module) -> int:
    """Return the side, cells, of the map that an adaptive pool passes to the first linear layer."""
    size: Any = pool.output_size
    return int(size[0])


def _convolutions(classifier: nn.Module, window: int) -> nn.Sequential:
    """Convert the linear layers; the first one reads `window` x `window` cells."""
    layers = []
    for layer in classifier.children():
        if isinstance(layer, nn.Linear):
            layer, window = _convolution(layer, window), 1
        layers.append(layer)
    return nn.Sequential(*layers)


def _convolution(linear: nn.Linear, window: int) -> nn.Conv2d:
    """Convert one linear layer: features are flattened in the order of a convolution's weight."""
    channels = linear.in_features // window**2
    with torch.device("meta"):
        conv = nn.Conv2d(channels, linear.out_features, window)
    weight = linear.weight.detach().view(linear.out_features, channels, window, window)
    conv.weight = nn.Parameter(weight, linear.weight.requires_grad)
    conv.bias = linear.bias
    return conv


class _GoogLeNetInput(nn.Module):
    """Convert torchvision's normalization to the range -1 to 1 of the weights from TensorFlow.

    Source: torchvision.models.GoogLeNet._transform_input.
    """

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return the (B, 3, H, W) image, normalized for the weights."""
        mean = torch.tensor((0.485, 0.456, 0.406)).to(image_BCHW).view(3, 1, 1)
        std = torch.tensor((0.229, 0.224, 0.225)).to(image_BCHW).view(3, 1, 1)
        return image_BCHW * (std / 0.5) + (mean - 0.5) / 0.5
