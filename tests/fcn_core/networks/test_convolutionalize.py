"""A classifier and its fully convolutional form say the same, and the latter says it everywhere."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.vgg import VGG, cfgs, make_layers

from fcn_core.errors import FcnError
from fcn_core.networks.convolutionalize import convolutionalize

CLASSES = 5
SIDE = 224


def noise(height, width=None, count=1):
    return torch.randn(
        count, 3, height, width or height, generator=torch.Generator().manual_seed(0)
    )


def randomised(model):
    """Every weight and statistic matters."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 2, generator=generator)
            nn.init.normal_(module.bias, std=0.1, generator=generator)
    return model.eval()


def vgg(depth, batch_norm, width=1 / 16):
    """torchvision's VGG with fewer channels, which its constructors do not offer."""
    plan = [c if c == "M" else int(c * width) for c in cfgs[depth]]
    with torch.device("meta"):  # its full classifier is 0.5 GB
        model = VGG(nn.Sequential(), CLASSES, init_weights=False)
    model.features = make_layers(plan, batch_norm)
    channels, hidden = int(512 * width), 64
    for index, (inputs, outputs) in {
        0: (channels * 7 * 7, hidden),
        3: (hidden, hidden),
        6: (hidden, CLASSES),
    }.items():
        model.classifier[index] = nn.Linear(inputs, outputs)
    return randomised(model)


def alexnet():
    model = torchvision.models.AlexNet(CLASSES)
    model.classifier[1] = nn.Linear(256 * 6 * 6, 32)
    model.classifier[4] = nn.Linear(32, 32)
    model.classifier[6] = nn.Linear(32, CLASSES)
    return randomised(model)


def googlenet(transform_input=False, aux_logits=False):
    return randomised(
        torchvision.models.GoogLeNet(CLASSES, aux_logits, transform_input, init_weights=False)
    )


# cfgs: A, B, D, E are VGG-11, -13, -16, -19.
MAKERS = {
    "alexnet": alexnet,
    **{f"vgg{d}{'bn' * b}": (lambda d=d, b=b: vgg(d, bool(b))) for d in "ABDE" for b in (0, 1)},
    "googlenet": googlenet,
    "googlenet-transform": lambda: googlenet(transform_input=True),
    "googlenet-aux": lambda: googlenet(aux_logits=True),
}


@torch.inference_mode()
@pytest.mark.parametrize("name", MAKERS)
def test_on_an_image_of_its_size_it_is_the_classifier(name):
    classifier = MAKERS[name]()
    image_BCHW = noise(SIDE, count=2)
    found, expected = convolutionalize(classifier)(image_BCHW), classifier(image_BCHW)
    assert found.shape == (2, CLASSES, 1, 1)
    assert float((found[..., 0, 0] - expected).abs().max() / expected.abs().max()) < 1e-5
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * expected.abs().max()


@torch.inference_mode()
@pytest.mark.parametrize("name", ["alexnet", "vggA", "googlenet"])
def test_a_larger_image_gives_a_grid(name):
    net = convolutionalize(MAKERS[name]())
    image_BCHW = noise(SIDE + 32, SIDE + 64)
    assert net(image_BCHW).shape == (1, CLASSES, 2, 3)


# With kernels that read nothing from the right or from below, the first window sees the same
# whatever lies beyond it: elsewhere padding tells a lone window from one within an image.
@torch.inference_mode()
def test_the_first_cell_of_the_grid_is_the_classifier_on_the_first_window():
    classifier = vgg("A", False)
    for module in classifier.features.modules():
        if isinstance(module, nn.Conv2d):
            module.weight[..., :, 2] = 0
            module.weight[..., 2, :] = 0
    image_BCHW = noise(SIDE + 32)
    grid = convolutionalize(classifier)(image_BCHW)
    expected = classifier(image_BCHW[..., :SIDE, :SIDE])
    assert torch.allclose(grid[..., 0, 0], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(grid[..., 1, 1], expected, rtol=1e-2)


def test_weights_are_shared_and_the_mode_is_kept():
    classifier = vgg("A", False)
    net = convolutionalize(classifier)
    assert not net.training
    assert net.classifier[0].weight.data_ptr() == classifier.classifier[0].weight.data_ptr()
    assert convolutionalize(classifier.train()).training


def test_another_network_is_refused():
    with pytest.raises(FcnError, match=r"torch\.nn.*Linear; torchvision's AlexNet, VGG or GoogLe"):
        convolutionalize(nn.Linear(2, 2))
