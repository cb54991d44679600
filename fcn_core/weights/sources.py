"""Read weights of other projects as tensors with the paper's layer names.

Four formats are supported: Caffe's caffemodels; state dicts and checkpoints of pytorch-fcn;
torchvision's VGG-16; and state dicts of Caffe's VGG-16 in the layout of torchvision or the older
one of jcjohnson/pytorch-vgg. `fcn_core.weights.convert` finds the network of the tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fcn_core.errors import WeightsError
from fcn_core.weights.caffemodel import read_caffemodel
from fcn_core.weights.published import SourceFormat
from fcn_core.weights.state_dict import read_state_dict

VGG16_LAYERS: Mapping[int, str] = {
    0: "conv1_1", 2: "conv1_2", 5: "conv2_1", 7: "conv2_2", 10: "conv3_1", 12: "conv3_2",
    14: "conv3_3", 17: "conv4_1", 19: "conv4_2", 21: "conv4_3", 24: "conv5_1", 26: "conv5_2",
    28: "conv5_3",
}  # fmt: skip
"""Layer names by torchvision's index in `vgg16().features`."""


# Positions of fc6, fc7, fc8 in `classifier`: torchvision's layout, and its layout before 2017,
# which jcjohnson's files have (jcjohnson/pytorch-vgg #3).
_CLASSIFIERS = ((0, 3, 6), (1, 4, 6))

_LOST_CLASSIFIER = (
    "Such files (torchvision's IMAGENET1K_FEATURES, vgg16_features-amdegroot-88682ab5.pth) cannot "
    "start an FCN: use vgg16_from_caffe.pth or VGG_ILSVRC_16_layers.caffemodel."
)

_DAMAGED = "The file is damaged: copy or download it again."


@dataclass(frozen=True)
class SourceWeights:
    """The weights of a file of another project.

    Attributes:
        where: Name of the file in error messages.
        format: Format of the file.
        tensors: "<layer>.weight" and "<layer>.bias", float32. Weights of fully connected layers of
            a classifier are (O, I).
        scales: Factors of Caffe's Scale layers, by layer name.
        arch: Class name in a checkpoint of pytorch-fcn, if any.
    """

    where: str
    format: SourceFormat
    tensors: dict[str, Tensor]
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    arch: str | None = None

    @property
    def is_classifier(self) -> bool:
        """Whether the weights belong to an image classifier, which has no score layers."""
        return not any(name.startswith("score") for name in self.tensors)


def read_source(data: bytes, form: SourceFormat, where: str) -> SourceWeights:
    """Read the tensors of a file.

    Args:
        data: Content of the file.
        form: Format that the file should have.
        where: Name of the file in error messages.

    Raises:
        WeightsError: A file of another format, one that is truncated, damaged or an unsafe pickle,
            or weights of a layer type that no network of the paper has.
    """
    _check_format(data, form, where)
    if form == "caffe":
        return _caffe(data, where)
    state = read_state_dict(data, where)
    is_vgg = any(name.startswith(("features.", "classifier.")) for name in state.tensors)
    if is_vgg != (form in ("torchvision", "vgg-caffe-pth")):
        kind = (
            "an image classifier (features.N, classifier.N)"
            if is_vgg
            else "not an image classifier"
        )
        right = "torchvision or vgg-caffe-pth" if is_vgg else "pytorch-fcn"
        raise WeightsError(
            where=where,
            found=f"{kind}: {_few(state.tensors)}",
            expected=f"what --from {form} reads",
            remedy=f"Use --from {right}.",
        )
    if is_vgg:
        return SourceWeights(where, form, _vgg16(state.tensors, where))
    return SourceWeights(where, form, dict(state.tensors), arch=state.arch)


def _caffe(data: bytes, where: str) -> SourceWeights:
    tensors: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    layers = read_caffemodel(data, where)
    for name in list(layers):
        layer = layers.pop(name)  # so that its bytes are freed after the copy
        most = {"Convolution": 2, "Deconvolution": 2, "InnerProduct": 2, "Scale": 1}
        if len(layer.blobs) > most.get(layer.type, 0):
            raise WeightsError(
                where=where,
                found=f"layer {name!r} of type {layer.type} with {len(layer.blobs)} blobs of "
                "weights",
                expected="Convolution, Deconvolution and InnerProduct layers of two, Scale layers "
                "of one",
                remedy="Use a network of the paper: this one has other layers, and all are needed.",
            )
        copies = [torch.from_numpy(blob.copy()) for blob in layer.blobs]
        if any(not blob.size for blob in layer.blobs):
            raise WeightsError(
                where=where,
                found=f"layer {name!r} with an empty blob",
                expected="weights",
                remedy=_DAMAGED,
            )
        if layer.type == "Scale":
            scales[name] = copies[0]
        else:
            tensors |= {f"{name}.{part}": copy for part, copy in zip(
                ("weight", "bias"), copies, strict=False)}  # fmt: skip
    return SourceWeights(where, "caffe", tensors, scales)


def _vgg16(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return VGG-16's tensors with Caffe's layer names."""
    layers = {f"features.{index}": name for index, name in VGG16_LAYERS.items()}
    heads = [
        dict(zip((f"classifier.{index}" for index in positions), ("fc6", "fc7", "fc8"),
                 strict=True))
        for positions in _CLASSIFIERS
    ]  # fmt: skip
    fitting = [head for head in heads if all(f"{name}.weight" in state for name in head)]
    if not fitting:
        if not any(name.startswith("classifier.") for name in state):
            raise WeightsError(
                where=where,
                found="a VGG-16 without classifier",
                expected="fc6 and fc7",
                remedy=_LOST_CLASSIFIER,
            )
        fitting = heads[:1]  # the next check reports the missing tensors
    layers |= fitting[0]
    wanted = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    if wanted != set(state):
        raise WeightsError(
            where=where,
            found=f"not VGG-16: missing {_few(wanted - set(state))}; "
            f"unknown {_few(set(state) - wanted)}",
            expected="the 16 layers of VGG-16 without batch normalisation",
            remedy="Use the weights of vgg16.",
        )
    tensors = {}
    for name, tensor in state.items():
        layer, _, part = name.rpartition(".")
        tensors[f"{layers[layer]}.{part}"] = tensor
    if not torch.isfinite(tensors["fc6.weight"]).all():
        raise WeightsError(
            where=where,
            found="a VGG-16 whose classifier is NaN",
            expected="fc6 and fc7",
            remedy=_LOST_CLASSIFIER,
        )
    return tensors


def _check_format(data: bytes, form: SourceFormat, where: str) -> None:
    """Recognize files of other formats by their first bytes, for a helpful error."""
    pickles = (b"PK\3\4", b"\x80\x02")
    kinds = [
        ((b"\x89HDF",), "an HDF5 file", "Save it with pycaffe as a .caffemodel: net.save(PATH)."),
        ((b"<",), "a web page or XML",
         "The download returned a web page instead of the file: use a browser."),
        ((b"name:", b"layer"), "a prototxt, which has no weights", "Name the .caffemodel."),
    ]  # fmt: skip
    if form == "caffe":
        kinds.append((pickles, "a file of torch", "Use --from pytorch-fcn, or the right format."))
    elif not data.startswith(pickles):
        kinds.append(((b"\n",), "perhaps a caffemodel", "Use --from caffe."))
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        kinds.append(((data[:9],), "a safetensors file",
                      "A file of this project needs no conversion."))  # fmt: skip
    for starts, kind, remedy in kinds:
        if data.startswith(starts):
            raise WeightsError(
                where=where, found=kind, expected=f"a file for --from {form}", remedy=remedy
            )


def _few(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + more or "-"
