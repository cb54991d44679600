"""Convert weights of other projects to networks of this project.

Both sides use the paper's layer names. So a conversion is a comparison: names and shapes determine
the possible networks, and the requested one must be among them. Deviations:

- Deconvolutions with exactly the bilinear kernel (all published ones) are dropped, because the
  network computes them. Other deconvolutions are kept as learned ones.
- Scale layers of at-once nets are checked and dropped, because the network multiplies by the same
  constants.
- Weights of an image classifier only start a training: fc6 and fc7 become convolutions, scores are
  zero (paper, section 4.3), and the file is marked as an initialization.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fcn_core.errors import FcnError, WeightsError
from fcn_core.labels import LabelSet
from fcn_core.networks.architecture import Architecture, Variant
from fcn_core.networks.layers import decoder, trunk
from fcn_core.networks.model import FCN, STREAMS
from fcn_core.networks.upsampling import bilinear_kernel
from fcn_core.preprocessing import PREPROCESSINGS, Preprocessing
from fcn_core.weights.published import SourceFormat
from fcn_core.weights.sources import SourceWeights, read_source
from fcn_core.weights.weights_file import build
from fcn_core.weights.weights_info import INITIALISATION, WeightsInfo

_LOOK_ALIKE = " (their files look alike: choose by the origin of the file)"

_ARCHES = {"FCN32s": "fcn32s", "FCN16s": "fcn16s", "FCN8s": "fcn8s", "FCN8sAtOnce": "fcn8s-atonce"}

_VGG16: tuple[Variant, ...] = ("fcn32s", "fcn16s", "fcn8s", "fcn8s-atonce", "fcn32s-color-d")

_CLASSIFIER_HEADS = ("fc8.", "loss1/", "loss2/", "loss3/")
"""Prefixes of classifier layers that no FCN has."""


@dataclass(frozen=True)
class ConvertOptions:
    """Format of the source file, and the requested network.

    Attributes:
        format: Format of the file.
        variant: Variant of the network. Required, because staged and at-once state dicts look
            alike.
        labels: One label set per head; masks are made with the first.
        preprocessing: Preprocessing that the network was trained with. Default: by format, variant
            and heads; see `default_preprocessing`.
        output_stride: 16 or 8 for a dilated network with the same weights.
    """

    format: SourceFormat
    variant: Variant
    labels: tuple[LabelSet, ...]
    preprocessing: Preprocessing | None = None
    output_stride: int = 32


@dataclass(frozen=True)
class Converted:
    """A converted network, its description, and notes on dropped or added layers."""

    model: FCN
    info: WeightsInfo
    notes: tuple[str, ...]


def convert(data: bytes, request: ConvertOptions, where: str) -> Converted:
    """Convert a file of another project.

    Args:
        data: Content of the file.
        request: Format of the file, and the requested network.
        where: Name of the file in error messages.

    Raises:
        WeightsError: A file of another format, variant or number of classes, or one that is
            damaged, truncated, unsafe, or contains NaN.
    """
    source = read_source(data, request.format, where)
    _check_variant(source, request.variant)
    check_scales(source, request.variant)
    architecture, labels = _architecture(source, request)
    preprocessing = request.preprocessing or default_preprocessing(request.format, architecture)
    if len(preprocessing.mean) != architecture.input_channels:
        raise WeightsError(
            where=where,
            found=f"preprocessing of {len(preprocessing.mean)} channels",
            expected=f"{request.variant} reads {architecture.input_channels}",
            remedy="Leave --preprocessing out, or name one with the same number of channels.",
        )
    tensors, notes = dict(source.tensors), []
    if source.scales:
        notes.append(f"{', '.join(source.scales)}: the constants of {request.variant}")
    origin: dict[str, str] = {"format": request.format}
    if source.is_classifier:
        origin["role"] = INITIALISATION
        notes += _start_training(tensors, architecture, where)
    else:
        learned, note = fit_upsampling(tensors, architecture, where)
        architecture = replace(architecture, upsampling="learned" if learned else "fixed")
        notes.append(note)
    model = build(architecture, tensors, where)
    if request.output_stride != architecture.output_stride:
        try:
            model = model.with_output_stride(request.output_stride)
        except WeightsError as error:
            raise error.at(where) from error
    info = WeightsInfo(model.architecture, labels[0], preprocessing, origin, labels[1:])
    return Converted(model, info, tuple(notes))


def default_preprocessing(form: SourceFormat, architecture: Architecture) -> Preprocessing:
    """Return the usual preprocessing of weights from a source.

    Weights of torchvision use RGB with its mean and std. All others use BGR with the VOC mean,
    whatever their label set, because FCNs are usually fine-tuned with it. Networks with two heads
    exist for SIFT Flow only, networks with depth for NYUDv2 only.
    """
    if form == "torchvision":
        return PREPROCESSINGS["torchvision"]
    if architecture.input_channels == 3:
        return PREPROCESSINGS["siftflow" if len(architecture.heads) > 1 else "voc"]
    return PREPROCESSINGS[architecture.variant.replace("fcn32s", "nyud")]


def _check_variant(source: SourceWeights, variant: Variant) -> None:
    names = source.tensors
    fitting = _variants(source)
    if not fitting:
        raise WeightsError(
            where=source.where,
            found="no first layer of a network of the paper among "
            f"{', '.join(sorted(names)[:4])}, …",
            expected="conv1_1, conv1_1_bgrd, conv1_1color, conv1 or conv1/7x7_s2",
            remedy="Choose a network of the paper, or a classifier that these start from.",
        )
    if variant not in fitting:
        kind = "a classifier for" if source.is_classifier else "the layers of"
        raise WeightsError(
            where=source.where,
            found=f"{kind} {' or '.join(fitting)}",
            expected=f"--variant {variant}",
            remedy=f"Use --variant {' or '.join(fitting)}"
            f"{_LOOK_ALIKE if len(fitting) > 1 else ''}, or name another file.",
        )
    stored = _ARCHES.get(source.arch or "", variant)
    if stored != variant:
        raise WeightsError(
            where=source.where,
            found=f"a checkpoint of pytorch-fcn's {source.arch}",
            expected=f"--variant {variant}",
            remedy=f"Use --variant {stored}, or name another file.",
        )


def _variants(source: SourceWeights) -> tuple[Variant, ...]:
    """Return the variants that have layers of these names."""
    names = source.tensors
    others: dict[str, Variant] = {
        "conv1_1color": "fcn32s-color-hha", "conv1_1_bgrd": "fcn32s-color-d",
        "conv1": "fcn-alexnet", "conv1/7x7_s2": "fcn-googlenet32s",
    }  # fmt: skip
    for first, variant in others.items():
        if f"{first}.weight" in names:
            return (variant,)
    if "conv1_1.weight" not in names:
        return ()
    if source.is_classifier:
        return _VGG16
    if any(name.startswith("score_pool3") for name in names):
        return ("fcn8s", "fcn8s-atonce")
    return ("fcn16s",) if any(name.startswith("score_pool4") for name in names) else ("fcn32s",)


def _architecture(
    source: SourceWeights, request: ConvertOptions
) -> tuple[Architecture, tuple[LabelSet, ...]]:
    """Return the architecture that fits the shapes, and its label sets in the order of heads."""
    labels = request.labels
    width = _width(source, request.variant)
    prefix = f"score_fr{next(iter(STREAMS.get(request.variant, {''})))}"
    classes = {
        name.removeprefix(prefix).removesuffix(".weight").removeprefix("_"): len(tensor)
        for name, tensor in source.tensors.items()
        if name.startswith(prefix) and name.endswith(".weight")
    }
    if source.is_classifier:
        suffixes = ("",) if len(labels) == 1 else ("sem", "geo")
        classes = dict(zip(suffixes, (one.num_classes for one in labels), strict=False))
    if len(labels) != len(classes) or not classes:
        scores = ", ".join(f"score_fr{f'_{head}' if head else ''} of {count} classes"
                           for head, count in classes.items())  # fmt: skip
        raise WeightsError(
            where=source.where,
            found=f"heads: {scores or 'none'}",
            expected=f"one label set for each, not {len(labels)}",
            remedy="Give --label-set once per head, starting with the head that predicts masks.",
        )
    # Heads follow the order of the label sets; numbers of classes match them.
    heads: list[tuple[str, int]] = []
    for one in labels:
        fitting = [head for head, count in classes.items() if count == one.num_classes]
        if not fitting:
            counts = " and ".join(str(count) for count in classes.values())
            raise WeightsError(
                where=source.where,
                found=f"scores for {counts} classes",
                expected=f"label set {one.name!r} has {one.num_classes}",
                remedy="Name the label set that the network was trained on.",
            )
        heads.append((fitting[0], classes.pop(fitting[0])))
    several = tuple(heads) if len(heads) > 1 or heads[0][0] else ()
    try:
        architecture = Architecture(request.variant, heads[0][1], width, several)
    except FcnError as error:
        raise error.at(source.where) from error
    return architecture, labels


def _width(source: SourceWeights, variant: Variant) -> float:
    """Return the width, from the widest layer: 4096 channels of fc6 mean width 1."""
    convolutions = [layer for layer in trunk(Architecture(variant, 1)) if layer.kind == "conv"]
    widest = max(convolutions, key=lambda layer: layer.channels)
    name = f"{widest.name}{next(iter(STREAMS.get(variant, {''})))}.bias"
    if name not in source.tensors:
        raise WeightsError(
            where=source.where,
            found=f"no {name}",
            expected=f"the layers of {variant}",
            remedy="The file is truncated or belongs to another network: name another file.",
        )
    return len(source.tensors[name]) / widest.channels


def _start_training(
    tensors: dict[str, Tensor], architecture: Architecture, where: str
) -> list[str]:
    """Turn a classifier's weights into initial weights of a network; return notes."""
    dropped = sorted({name.rpartition(".")[0] for name in tensors
                      if name.startswith(_CLASSIFIER_HEADS)})  # fmt: skip
    if not dropped:
        raise WeightsError(
            where=where,
            found="neither score layers nor the last layer of a classifier (fc8, loss3)",
            expected="a network of the paper, or a classifier to start from",
            remedy="The file is truncated: copy or download it again.",
        )
    for name in list(tensors):
        if name.startswith(_CLASSIFIER_HEADS):
            del tensors[name]
    notes = [f"{', '.join(dropped)}: left out"]
    if architecture.variant == "fcn32s-color-d" and "conv1_1.weight" in tensors:
        # Source: net.py of nyud-fcn32s-color-d. Log-depth starts as the mean of the colors.
        colour = tensors.pop("conv1_1.weight")
        tensors["conv1_1_bgrd.weight"] = torch.cat((colour, colour.mean(1, keepdim=True)), 1)
        tensors["conv1_1_bgrd.bias"] = tensors.pop("conv1_1.bias")
        notes.append("conv1_1_bgrd: conv1_1, and the mean of its colours for depth")
    with torch.device("meta"):
        expected = FCN(architecture).state_dict()
    scores = [name for name in expected if name.startswith("score")]
    for name, tensor in expected.items():
        if name in scores:
            tensors[name] = torch.zeros(tensor.shape)
        elif name in tensors and tensors[name].numel() == tensor.numel():
            # Both Caffe and torch flatten inputs in the order C, H, W.
            tensors[name] = tensors[name].reshape(tensor.shape)
    layers = sorted({name.rpartition(".")[0] for name in scores})
    return [*notes, f"{', '.join(layers)}: zero, to be trained"]


def check_scales(source: SourceWeights, variant: Variant) -> None:
    """Compare the Scale layers of a caffemodel with the constants of the variant.

    Only caffemodels distinguish staged from at-once nets: at-once nets have Scale layers.

    Raises:
        WeightsError: Scale layers that are missing, unexpected, or hold other factors.
    """
    if source.format != "caffe":
        return
    if source.is_classifier and source.scales:
        raise WeightsError(
            where=source.where,
            found=f"a classifier with Scale layers ({', '.join(source.scales)})",
            expected="VGG-16, CaffeNet or GoogLeNet, which have none",
            remedy="Name one of these.",
        )
    plan = decoder(Architecture(variant, 1))
    wanted = {f"scale_{skip.pool}": skip.scale for skip in plan.skips if skip.scale != 1}
    actual = {
        name: sorted({float(value) for value in (scale.min(), scale.max())})
        for name, scale in source.scales.items()
    }
    if source.is_classifier:
        return
    if not actual and wanted:
        raise WeightsError(
            where=source.where,
            found="no Scale layers: a staged network",
            expected=f"--variant {variant} has {' and '.join(wanted)}",
            remedy="Use --variant fcn8s, or name another file.",
        )
    scales = ", ".join(
        f"{name} of {' to '.join(f'{v:g}' for v in ends)}" for name, ends in actual.items()
    )
    if actual and not wanted:
        raise WeightsError(
            where=source.where,
            found=f"Scale layers ({scales}): an at-once network",
            expected=f"--variant {variant} has none",
            remedy="Use --variant fcn8s-atonce, or name another file.",
        )
    exact = {name: [float(torch.tensor(scale))] for name, scale in wanted.items()}
    if actual != exact:
        ones = all(ends == [1.0] for ends in actual.values())
        raise WeightsError(
            where=source.where,
            found=f"Scale layers: {scales}" + (", as in a staged network" if ones else ""),
            expected=f"{variant} has {', '.join(f'{name} of {v:g}' for name, v in wanted.items())}",
            remedy="Scales of 1 belong to --variant fcn8s: remove the layers."
            if ones
            else "No variant has these scales; multiply them into the following score layers.",
        )


def fit_upsampling(
    tensors: dict[str, Tensor], architecture: Architecture, where: str
) -> tuple[bool, str]:
    """Return whether the deconvolutions are learned, and a note about them.

    Args:
        tensors: Tensors of the file. Fixed deconvolutions are removed from it, grouped ones are
            replaced by dense ones.
        architecture: Architecture of the network.
        where: Name of the file in error messages.

    Raises:
        WeightsError: A deconvolution with a shape that does not fit the network.
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
                where=where,
                found=f"tensor {name} is {tuple(tensors[name].shape)}",
                expected=f"{shape} for {architecture.variant}",
                remedy="Name the variant of the file.",
            )
        tensors[name] = weight
        if not _is_bilinear(weight):
            learned.append(name.removesuffix(".weight"))
    names = ", ".join(name.removesuffix(".weight") for name in expected)
    if learned:
        return True, f"{', '.join(learned)}: not bilinear, so that {names} are kept as learned"
    present = [tensors.pop(name, None) is not None for name in expected]
    kind = "exactly bilinear" if all(present) else "bilinear, as far as they are in the file"
    return False, f"{names}: {kind}, computed rather than stored"


def _dense(weight: Tensor) -> Tensor:
    """Return the dense (K, K, k, k) weight of a deconvolution that may be grouped, (K, 1, k, k)."""
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
