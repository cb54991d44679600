"""Weights of other projects as networks of this one.

The layer names are the paper's on both sides, so that a conversion is a comparison: which network
do the names and shapes belong to, and is it the one that was asked for? Deviations:

- Deconvolutions that hold exactly the bilinear kernel (all published ones do) are not kept: ours
  compute it. Any other are kept as learned ones.
- The Scale layers of at-once nets are checked and not kept: ours multiply by the same constants.
- Weights of an image classifier start a training: fc6 and fc7 become convolutions, the scores are
  zero (paper, section 4.3), and the file says that it is an initialisation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fcn_core.architecture import Architecture, Variant
from fcn_core.checkpoint import build
from fcn_core.errors import FcnError, WeightsError
from fcn_core.fixed_layers import check_scales, fit_upsampling
from fcn_core.labels import LabelSet
from fcn_core.layers import trunk
from fcn_core.model import FCN, STREAMS
from fcn_core.preprocessing import PREPROCESSINGS, Preprocessing
from fcn_core.published import SourceFormat
from fcn_core.sources import Source, read_source
from fcn_core.weights_info import INITIALISATION, WeightsInfo

_LOOK_ALIKE = ": their files look alike, and only where yours comes from tells which it is"
_ARCHES = {"FCN32s": "fcn32s", "FCN16s": "fcn16s", "FCN8s": "fcn8s", "FCN8sAtOnce": "fcn8s-atonce"}
_VGG16: tuple[Variant, ...] = ("fcn32s", "fcn16s", "fcn8s", "fcn8s-atonce", "fcn32s-color-d")
_CLASSIFIER_HEADS = ("fc8.", "loss1/", "loss2/", "loss3/")
"""Layers of a classifier that no FCN has."""


@dataclass(frozen=True)
class Request:
    """What a file is, and what it shall become.

    Attributes:
        format: of the file.
        variant: of the network. It must be named: a staged and an at-once state dict are alike.
        labels: one label set per head, the one that masks are made of first.
        preprocessing: what the network was trained on. Default: by format, variant and heads; see
            `default_preprocessing`.
        output_stride: 16 or 8 for a dilated network of the same weights.
    """

    format: SourceFormat
    variant: Variant
    labels: tuple[LabelSet, ...]
    preprocessing: Preprocessing | None = None
    output_stride: int = 32


@dataclass(frozen=True)
class Converted:
    """A network, what its file will say, and what was left out on the way, in words."""

    model: FCN
    info: WeightsInfo
    notes: tuple[str, ...]


def convert(data: bytes, request: Request, where: str) -> Converted:
    """The network of a file.

    Args:
        data: the file.
        request: what it is, and what it shall become.
        where: named in errors.

    Raises:
        WeightsError: the file is of another format, variant or number of classes, damaged,
            truncated, unsafe, or holds NaN; the message says which and what to do.
    """
    source = read_source(data, request.format, where)
    _check_variant(source, request.variant)
    check_scales(source, request.variant)
    architecture, labels = _architecture(source, request)
    preprocessing = request.preprocessing or default_preprocessing(request.format, architecture)
    if len(preprocessing.mean) != architecture.input_channels:
        raise WeightsError(
            where,
            f"preprocessing of {len(preprocessing.mean)} channels",
            f"{request.variant} reads {architecture.input_channels}",
            "Leave --preprocessing out, or name one of as many channels.",
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
    """What weights of that origin expect, unless it is known better.

    torchvision's are RGB with its mean and std. All others are BGR with the VOC mean, whatever the
    label set: that is what FCNs are usually trained further with. Nets of two heads exist for
    SIFT Flow only, those of depth for NYUDv2 only.
    """
    if form == "torchvision":
        return PREPROCESSINGS["torchvision"]
    if architecture.input_channels == 3:
        return PREPROCESSINGS["siftflow" if len(architecture.heads) > 1 else "voc"]
    return PREPROCESSINGS[architecture.variant.replace("fcn32s", "nyud")]


def _check_variant(source: Source, variant: Variant) -> None:
    names = source.tensors
    fitting = _variants(source)
    if not fitting:
        raise WeightsError(
            source.where,
            f"no first layer of a network of the paper among {', '.join(sorted(names)[:4])}, …",
            "conv1_1, conv1_1_bgrd, conv1_1color, conv1 or conv1/7x7_s2",
            "Only networks of the paper, and the classifiers they start from, can be converted.",
        )
    if variant not in fitting:
        kind = "a classifier for" if source.is_classifier else "the layers of"
        raise WeightsError(
            source.where,
            f"{kind} {' or '.join(fitting)}",
            f"--variant {variant}",
            f"Say --variant {' or '.join(fitting)}"
            f"{_LOOK_ALIKE if len(fitting) > 1 else ''}, or name another file.",
        )
    said = _ARCHES.get(source.arch or "", variant)
    if said != variant:
        raise WeightsError(
            source.where, f"a checkpoint of pytorch-fcn's {source.arch}", f"--variant {variant}",
            f"Say --variant {said}, or name another file.",
        )  # fmt: skip


def _variants(source: Source) -> tuple[Variant, ...]:
    """The variants that have layers of these names."""
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


def _architecture(source: Source, request: Request) -> tuple[Architecture, tuple[LabelSet, ...]]:
    """The network by its shapes, and the label sets in the order of its heads."""
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
            source.where, f"heads: {scores or 'none'}",
            f"one label set for each, not {len(labels)}",
            "Name --label-set once per head, the one that masks are made of first.",
        )  # fmt: skip
    # Heads in the order of the label sets, matched by their numbers of classes.
    heads: list[tuple[str, int]] = []
    for one in labels:
        fitting = [head for head, count in classes.items() if count == one.num_classes]
        if not fitting:
            counts = " and ".join(str(count) for count in classes.values())
            raise WeightsError(
                source.where, f"scores for {counts} classes", f"label set {one.name!r} has "
                f"{one.num_classes}", "Name the label set that the network was trained on.",
            )  # fmt: skip
        heads.append((fitting[0], classes.pop(fitting[0])))
    several = tuple(heads) if len(heads) > 1 or heads[0][0] else ()
    try:
        architecture = Architecture(request.variant, heads[0][1], width, several)
    except FcnError as error:
        raise error.at(source.where) from error
    return architecture, labels


def _width(source: Source, variant: Variant) -> float:
    """The width by the widest layer: 4096 channels of fc6 are 1."""
    convolutions = [layer for layer in trunk(Architecture(variant, 1)) if layer.kind == "conv"]
    widest = max(convolutions, key=lambda layer: layer.channels)
    name = f"{widest.name}{next(iter(STREAMS.get(variant, {''})))}.bias"
    if name not in source.tensors:
        raise WeightsError(
            source.where, f"no {name}", f"the layers of {variant}",
            "The file is truncated, or of another network.",
        )  # fmt: skip
    return len(source.tensors[name]) / widest.channels


def _start_training(
    tensors: dict[str, Tensor], architecture: Architecture, where: str
) -> list[str]:
    """A classifier's weights become those of a network about to be trained."""
    dropped = sorted({name.rpartition(".")[0] for name in tensors
                      if name.startswith(_CLASSIFIER_HEADS)})  # fmt: skip
    if not dropped:
        raise WeightsError(
            where, "neither score layers nor the last layer of a classifier (fc8, loss3)",
            "a network of the paper, or a classifier to start from",
            "The file is truncated: copy or download it again.",
        )  # fmt: skip
    for name in list(tensors):
        if name.startswith(_CLASSIFIER_HEADS):
            del tensors[name]
    notes = [f"{', '.join(dropped)}: left out"]
    if architecture.variant == "fcn32s-color-d" and "conv1_1.weight" in tensors:
        # net.py of nyud-fcn32s-color-d: log-depth starts as the mean of the colours.
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
            # C, H, W is the order of a flattened input in Caffe and torch alike.
            tensors[name] = tensors[name].reshape(tensor.shape)
    layers = sorted({name.rpartition(".")[0] for name in scores})
    return [*notes, f"{', '.join(layers)}: zero, to be trained"]
