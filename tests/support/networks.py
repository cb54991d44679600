"""Small random networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fcn_core.networks.architecture import Architecture, Variant
from fcn_core.networks.model import FCN
from tests.support import world


def random_fcn(
    variant: Variant = "fcn8s",
    num_classes: int = 4,
    width: float = 1 / 16,
    seed: int = 0,
    biases: float = 0.0,
    **options: Any,
) -> FCN:
    """A small FCN whose every layer matters."""
    arch = Architecture(variant, num_classes, width, **options)
    model = FCN(arch)
    generator = torch.Generator().manual_seed(seed)
    model.reset_parameters(generator)
    for name, parameter in model.named_parameters():
        if name.startswith("score"):  # zero by default, which would hide every skip
            nn.init.normal_(parameter, std=0.2, generator=generator)
        elif name.endswith("bias") and biases:
            nn.init.normal_(parameter, std=biases, generator=generator)
    noise = 4 * torch.rand(1, arch.input_channels, 64, 64, generator=generator) - 2
    model.eval()
    with torch.no_grad():  # no class leads everywhere
        for head in arch.head_classes:
            ending = f"_{head}.bias" if head else ".bias"
            scores = [name for name in model.state_dict() if name.startswith("score")]
            finest = [name for name in scores if name.endswith(ending)][-1]
            bias = model.get_parameter(finest)
            bias -= model(noise, head).mean(dim=(0, 2, 3))
    return model


def write_tiny_weights(path: Path) -> Path:
    """A weights file of three classes whose masks are not constant."""
    path.write_bytes(world.weights_bytes(random_fcn(num_classes=3, width=1 / 32)))
    return path
