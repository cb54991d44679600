"""Read the layers of Caffe's `.caffemodel` files, with protobuf only.

Only the parts of Caffe's messages that weights need are declared here; the rest of a file is
skipped.

Source: BVLC/caffe, src/caffe/proto/caffe.proto (field numbers, layer types) and src/caffe/blob.cpp
(legacy shapes). Deviation: `data` and `double_data` are declared as bytes. A packed list of floats
and a byte string have the same encoding, and bytes become an array without one Python object per
number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_core.errors import WeightsError

FloatArray = NDArray[np.float32]


V1_TYPES: Mapping[int, str] = {
    1: "Accuracy", 2: "BNLL", 3: "Concat", 4: "Convolution", 5: "Data", 6: "Dropout",
    7: "EuclideanLoss", 8: "Flatten", 9: "HDF5Data", 10: "HDF5Output", 11: "Im2col",
    12: "ImageData", 13: "InfogainLoss", 14: "InnerProduct", 15: "LRN",
    16: "MultinomialLogisticLoss", 17: "Pooling", 18: "ReLU", 19: "Sigmoid", 20: "Softmax",
    21: "SoftmaxWithLoss", 22: "Split", 23: "TanH", 24: "WindowData", 25: "Eltwise", 26: "Power",
    27: "SigmoidCrossEntropyLoss", 28: "HingeLoss", 29: "MemoryData", 30: "ArgMax",
    31: "Threshold", 32: "DummyData", 33: "Slice", 34: "MVN", 35: "AbsVal", 36: "Silence",
    37: "ContrastiveLoss", 38: "Exp", 39: "Deconvolution",
}  # fmt: skip
"""V1LayerParameter.LayerType numbers, with the type names of the later format."""


# Message: {field: (number, kind, repeated?)}; a kind is a scalar type or the name of a message.
_MESSAGES: Mapping[str, Mapping[str, tuple[int, str, bool]]] = {
    "BlobShape": {"dim": (1, "int64", True)},
    "BlobProto": {
        "num": (1, "int64", False),
        "channels": (2, "int64", False),
        "height": (3, "int64", False),
        "width": (4, "int64", False),
        "data": (5, "bytes", True),
        "shape": (7, "BlobShape", False),
        "double_data": (8, "bytes", True),
    },
    "LayerParameter": {
        "name": (1, "bytes", False),
        "type": (2, "bytes", False),
        "blobs": (7, "BlobProto", True),
    },
    "V1LayerParameter": {
        "layer": (1, "bytes", False),  # a V0LayerParameter
        "name": (4, "bytes", False),
        "type": (5, "int32", False),
        "blobs": (6, "BlobProto", True),
    },
    "NetParameter": {
        "layers": (2, "V1LayerParameter", True),
        "layer": (100, "LayerParameter", True),
    },
}

_REMEDY = "Copy or download the file again, and compare its checksum."


@dataclass(frozen=True)
class CaffeLayer:
    """A layer with weights.

    Attributes:
        name: Name in the prototxt ("conv1_1").
        type: "Convolution", "Deconvolution", "InnerProduct", "Scale", ….
        blobs: float32, read-only, in Caffe's order and shape: weight, then bias. Legacy shapes
            are resolved: an InnerProduct weight is (O, I), a bias (O,).
    """

    name: str
    type: str
    blobs: tuple[FloatArray, ...]


def read_caffemodel(data: bytes, where: str) -> dict[str, CaffeLayer]:
    """Read the layers with weights, by name, in the order of the file.

    Both layer formats are supported: V1 (`layers`, enumerated types) and V2 (`layer`, type names).

    Args:
        data: Content of the file.
        where: Name of the file in error messages.

    Raises:
        WeightsError: Data that is not a NetParameter, is truncated, has the V0 format or no
            weights, or has blobs whose shape and data disagree.
    """
    from google.protobuf.message import DecodeError

    expected = "a complete .caffemodel (a binary NetParameter of Caffe)"
    net = _message_classes()["NetParameter"]()
    try:
        net.ParseFromString(data)
    except DecodeError as error:
        raise WeightsError(
            where=where,
            found=f"{len(data)} bytes that are truncated or have another format",
            expected=expected,
            remedy=_REMEDY,
        ) from error
    layers: dict[str, CaffeLayer] = {}
    for message in (*net.layers, *net.layer):
        layer = _layer(message, where)
        if layer.name in layers:
            raise WeightsError(
                where=where,
                found=f"two layers {layer.name!r}",
                expected="layer names must differ",
                remedy=_REMEDY,
            )
        if layer.blobs:
            layers[layer.name] = layer
    if not layers:
        count = len(net.layers) + len(net.layer)
        raise WeightsError(
            where=where,
            found=f"{count} layers, none with weights",
            expected=expected,
            remedy=_REMEDY,
        )
    return layers


def _layer(message: Any, where: str) -> CaffeLayer:
    v1 = message.DESCRIPTOR.name == "V1LayerParameter"
    if v1 and message.HasField("layer"):
        raise WeightsError(
            where=where,
            found="layers of the V0 format (Caffe of 2013)",
            expected="the V1 or V2 format",
            remedy="Upgrade the file with Caffe's tool upgrade_net_proto_binary.",
        )
    name = message.name.decode(errors="replace")
    if v1:
        kind = V1_TYPES.get(message.type, f"V1 type {message.type}")
    else:
        kind = message.type.decode(errors="replace")
    blobs = (
        _blob(blob, index, kind, f"{where}, layer {name!r}, blob {index}")
        for index, blob in enumerate(message.blobs)
    )
    return CaffeLayer(name, kind, tuple(blobs))


def _blob(message: Any, index: int, kind: str, where: str) -> FloatArray:
    values = _values(message, where)
    if message.HasField("shape"):
        shape = tuple(message.shape.dim)
    else:
        shape = (message.num, message.channels, message.height, message.width)
        # Source: Blob::ShapeEquals. Missing axes were written as leading ones.
        axes = 1 if index else 2 if kind == "InnerProduct" else 4
        if shape[: 4 - axes] == (1,) * (4 - axes):
            shape = shape[4 - axes :]
    if min(shape, default=0) < 0 or math.prod(shape) != values.size:
        raise WeightsError(
            where=where, found=f"{values.size} numbers", expected=f"shape {shape}", remedy=_REMEDY
        )
    return values.reshape(shape)


def _values(message: Any, where: str) -> FloatArray:
    doubles = len(message.double_data) > 0
    dtype = np.dtype("<f8" if doubles else "<f4")
    chunks = message.double_data if doubles else message.data
    raw = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    if len(raw) % dtype.itemsize:
        raise WeightsError(
            where=where,
            found=f"{len(raw)} bytes",
            expected=f"numbers of {dtype.itemsize} bytes each",
            remedy=_REMEDY,
        )
    values = np.frombuffer(raw, dtype) if raw else _unpacked(message)
    return values.astype(np.float32, copy=False)


def _unpacked(message: Any) -> FloatArray:
    """Return numbers that were written one by one, which is valid for packed fields as well."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    fixed32, fixed64 = 5, 1  # wire types
    found = [(f.field_number, f.wire_type, f.data) for f in UnknownFieldSet(message)]
    floats = [bits for number, wire, bits in found if (number, wire) == (5, fixed32)]
    doubles = [bits for number, wire, bits in found if (number, wire) == (8, fixed64)]
    if doubles:
        return np.array(doubles, "<u8").view("<f8").astype(np.float32)
    return np.array(floats, "<u4").view("<f4")


@cache
def _message_classes() -> dict[str, Any]:
    """Build the classes of `_MESSAGES` in a separate pool, because others may register `caffe`."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="fcn_core/caffemodel", package="caffe")
    Field = descriptor_pb2.FieldDescriptorProto  # noqa: N806 - a class
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind, repeated) in fields.items():
            label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
            field = message.field.add(name=field_name, number=number, label=label)
            if kind in _MESSAGES:
                field.type, field.type_name = Field.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                field.type = getattr(Field, f"TYPE_{kind.upper()}")
                if kind == "int64" and repeated:
                    field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    find = pool.FindMessageTypeByName
    return {name: message_factory.GetMessageClass(find(f"caffe.{name}")) for name in _MESSAGES}
