"""What published networks hold fixed: Scale layers and bilinear deconvolutions.

Ours compute both, so that a file's own are compared and then left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fcn_core.architecture import Architecture, Variant
from fcn_core.errors import WeightsError
from fcn_core.layers import decoder
from fcn_core.sources import Source
from fcn_core.upsampling import bilinear_kernel


def check_scales(source: Source, variant: Variant) -> None:
    """Compare the Scale layers of a caffemodel with the constants of the variant.

    Only a caffemodel tells a staged from an at-once net: by these layers of the latter.

    Raises:
        WeightsError: the layers are missing, too many, or hold other factors.
    """
    if source.format != "caffe":
        return
    if source.is_classifier and source.scales:
        raise WeightsError(
            source.where, f"a classifier with Scale layers ({', '.join(source.scales)})",
            "VGG-16, CaffeNet or GoogLeNet, which have none", "Name one of these.",
        )  # fmt: skip
    plan = decoder(Architecture(variant, 1))
    wanted = {f"scale_{skip.pool}": skip.scale for skip in plan.skips if skip.scale != 1}
    found = {
        name: sorted({float(value) for value in (scale.min(), scale.max())})
        for name, scale in source.scales.items()
    }
    if source.is_classifier:
        return
    if not found and wanted:
        raise WeightsError(
            source.where, "no Scale layers: a staged network", f"--variant {variant} has "
            f"{' and '.join(wanted)}", "Say --variant fcn8s, or name another file.",
        )  # fmt: skip
    said = ", ".join(f"{name} of {' to '.join(f'{v:g}' for v in ends)}"
                     for name, ends in found.items())  # fmt: skip
    if found and not wanted:
        raise WeightsError(
            source.where, f"Scale layers ({said}): an at-once network", f"--variant {variant} has "
            "none", "Say --variant fcn8s-atonce, or name another file.",
        )  # fmt: skip
    exact = {name: [float(torch.tensor(scale))] for name, scale in wanted.items()}
    if found != exact:
        ones = all(ends == [1.0] for ends in found.values())
        raise WeightsError(
            source.where,
            f"Scale layers: {said}" + (", as a staged network" if ones else ""),
            f"{variant} has {', '.join(f'{name} of {v:g}' for name, v in wanted.items())}",
            "Scales of 1 are those of --variant fcn8s: leave the layers out." if ones
            else "No variant here has these scales; fold them into the score layers behind them.",
        )  # fmt: skip


def fit_upsampling(
    tensors: dict[str, Tensor], architecture: Architecture, where: str
) -> tuple[bool, str]:
    """Whether the deconvolutions are learned, and that in words.

    Args:
        tensors: of the file. Fixed deconvolutions are taken out, grouped ones written out densely.
        architecture: of the network.
        where: named in errors.

    Raises:
        WeightsError: a deconvolution has another shape than the network's.
    """
    plan = decoder(architecture)
    suffixes = [f"_{head}" if head else "" for head in architecture.head_classes]
    strides = {skip.upscore: 4 for skip in plan.skips} | {plan.upscore: plan.kernel}
    expected = {
        f"{name}{suffix}.weight": (classes, classes, kernel, kernel)
        for name, kernel in strides.items()
        for suffix, classes in zip(suffixes, architecture.head_classes.values(), strict=True)
    }
    learned = []
    for name, shape in expected.items():
        if name not in tensors:
            continue
        weight = _dense(tensors[name])
        if weight.shape != shape:
            raise WeightsError(
                where, f"tensor {name} is {tuple(tensors[name].shape)}", f"{shape} for "
                f"{architecture.variant}", "Name the variant that the file is of.",
            )  # fmt: skip
        tensors[name] = weight
        if not _is_bilinear(weight):
            learned.append(name.removesuffix(".weight"))
    names = ", ".join(name.removesuffix(".weight") for name in expected)
    if learned:
        return True, f"{', '.join(learned)}: not bilinear, so that {names} are kept as learned"
    found = [tensors.pop(name, None) is not None for name in expected]
    kind = "exactly bilinear" if all(found) else "bilinear, as far as they are in the file"
    return False, f"{names}: {kind}, computed rather than stored"


def _dense(weight: Tensor) -> Tensor:
    """(K, K, k, k) of a deconvolution that may be grouped, (K, 1, k, k)."""
    if weight.ndim != 4 or weight.shape[1] != 1 or weight.shape[0] == 1:
        return weight
    dense = weight.new_zeros(len(weight), len(weight), *weight.shape[2:])
    index = torch.arange(len(weight))
    dense[index, index] = weight[:, 0]
    return dense


def _is_bilinear(weight: Tensor) -> bool:
    wanted = torch.zeros_like(weight)
    index = torch.arange(len(weight))
    wanted[index, index] = bilinear_kernel(weight.shape[-1])
    return bool((weight == wanted).all())
