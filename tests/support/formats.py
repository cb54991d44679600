"""Writers of the formats that weights come in, so that conversions have something to read.

A caffemodel is written by a protobuf encoder of a few lines, which shares nothing with the reader.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fcn_core.networks.layers import decoder
from fcn_core.networks.model import FCN

V1_NUMBERS = {"Convolution": 4, "InnerProduct": 14, "Deconvolution": 39, "ReLU": 18, "MVN": 34}
Format = Literal["V1", "V2"]


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def bytes_field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def int_field(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def blob(array: np.ndarray, *, legacy: bool = False, doubles: bool = False) -> bytes:
    """A BlobProto; a legacy one has four axes, missing ones in front."""
    kind, field = ("<f8", 8) if doubles else ("<f4", 5)
    data = bytes_field(field, array.astype(kind).tobytes())
    if legacy:
        sides = [1] * (4 - array.ndim) + list(array.shape)
        return b"".join(int_field(n, side) for n, side in enumerate(sides, 1)) + data
    return bytes_field(7, bytes_field(1, b"".join(map(varint, array.shape)))) + data


def unpacked_blob(array: np.ndarray) -> bytes:
    """Each number with a tag of its own, as a writer that knows no packing leaves them."""
    shape = b"".join(int_field(1, side) for side in array.shape)
    numbers = (varint(5 << 3 | 5) + struct.pack("<f", value) for value in array.ravel())
    return bytes_field(7, shape) + b"".join(numbers)


def layer(form: Format, name: str, kind: str, blobs: Sequence[bytes] = ()) -> bytes:
    """A layer of a NetParameter, with a bottom that readers of weights pass over."""
    if form == "V1":
        inner = bytes_field(2, b"data") + bytes_field(4, name.encode())
        inner += int_field(5, V1_NUMBERS[kind])
        return bytes_field(2, inner + b"".join(bytes_field(6, one) for one in blobs))
    inner = bytes_field(1, name.encode()) + bytes_field(2, kind.encode()) + bytes_field(3, b"data")
    return bytes_field(100, inner + b"".join(bytes_field(7, one) for one in blobs))


def net(*layers: bytes) -> bytes:
    return bytes_field(1, b"a net") + b"".join(layers)


def as_written(model: FCN) -> dict[str, Tensor]:
    """The state dict as Caffe and pytorch-fcn keep it: with dense deconvolutions, fixed or not."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    plan = decoder(model.architecture)
    for head, classes in model.architecture.head_classes.items():
        for name in (*(skip.upscore for skip in plan.skips), plan.upscore):
            suffix = f"_{head}" if head else ""
            kernel = model.get_submodule(name + suffix).kernel
            dense = torch.zeros(classes, classes, *kernel.shape)
            dense[range(classes), range(classes)] = kernel
            state.setdefault(f"{name}{suffix}.weight", dense)
    return state


def caffemodel(
    model: FCN, form: Format = "V2", scales: Mapping[str, Any] | None = None, **blob_options: bool
) -> bytes:
    """The network as Caffe writes it, with a layer without weights between any two.

    Args:
        model: its weights and its plan are written.
        form: of the layers.
        scales: factors of Scale layers; default: those of its variant.
        blob_options: see `blob`.
    """
    state = as_written(model)
    names = dict.fromkeys(name.rpartition(".")[0] for name in state)
    parts = []
    for name in names:
        kind = "Deconvolution" if name.startswith("upscore") else "Convolution"
        blobs = [
            blob(state[f"{name}.{part}"].numpy(), **blob_options)
            for part in ("weight", "bias")
            if f"{name}.{part}" in state
        ]
        parts += [layer(form, name, kind, blobs), layer(form, f"relu_{name}", "ReLU")]
    if scales is None:
        skips = [skip for skip in decoder(model.architecture).skips if skip.scale != 1]
        scales = {f"scale_{skip.pool}": skip.scale for skip in skips}
    for name, scale in scales.items():
        parts.append(layer("V2", name, "Scale", [blob(np.full(8, scale, np.float32))]))
    return net(*parts)


def torch_file(content: Any, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


VGG16_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def vgg16_state(model: FCN, positions: tuple[int, int, int] = (0, 3, 6)) -> dict[str, Tensor]:
    """A classifier's state dict in torchvision's layout whose trunk is the model's."""
    state = model.state_dict()
    layers = [n.removesuffix(".weight") for n in state if n.startswith("conv") and "weight" in n]
    out = {}
    for index, name in zip(VGG16_FEATURES, layers, strict=True):
        out[f"features.{index}.weight"] = state[f"{name}.weight"]
        out[f"features.{index}.bias"] = state[f"{name}.bias"]
    for index, name in zip(positions, ("fc6", "fc7"), strict=False):
        out[f"classifier.{index}.weight"] = state[f"{name}.weight"].flatten(1)
        out[f"classifier.{index}.bias"] = state[f"{name}.bias"]
    hidden = state["fc7.bias"].numel()
    out[f"classifier.{positions[2]}.weight"] = torch.ones(10, hidden)
    out[f"classifier.{positions[2]}.bias"] = torch.ones(10)
    return out


def classifier_caffemodel(
    model: FCN, form: Format = "V1", *, legacy: bool = True, last: str = "fc8"
) -> bytes:
    """VGG_ILSVRC_16_layers.caffemodel and its like in small: InnerProduct layers, legacy shapes."""
    state = model.state_dict()
    parts = []
    for name in dict.fromkeys(n.rpartition(".")[0] for n in state if not n.startswith("score")):
        weight = state[f"{name}.weight"]
        kind = "InnerProduct" if name.startswith("fc") else "Convolution"
        weight = weight.flatten(1) if name.startswith("fc") else weight
        arrays = [weight.numpy(), state[f"{name}.bias"].numpy()]
        parts.append(layer(form, name, kind, [blob(a, legacy=legacy) for a in arrays]))
    ending = [np.ones((10, state["score_fr.weight"].shape[1])), np.ones(10)]
    parts.append(layer(form, last, "InnerProduct", [blob(a, legacy=legacy) for a in ending]))
    return net(*parts)
