"""Weights files: safetensors whose metadata says everything needed to use them.

The header is read without torch, so that planning and Prefect flows know weights without loading
a network. Weight metadata holds no time and no host: equal weights are equal files.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcn_core.architecture import Architecture
from fcn_core.errors import FcnError, WeightsError
from fcn_core.labels import LabelSet
from fcn_core.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

    from fcn_core.model import FCN

WEIGHTS_FORMAT = "fcn-pipeline/1"
DEMO_WEIGHTS = "demo"
"""The name under which commands find the weights in this package."""

_KEY = "fcn"  # one JSON document under one safetensors metadata key
_REMEDY = "Name a .safetensors file written by this project, or convert yours to it."


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says about itself.

    Attributes:
        architecture: which network; staged and at-once FCN-8s have equal shapes, so that only
            its variant tells them apart.
        labels: the classes it predicts, of the first head if there are several.
        preprocessing: what its first layer expects.
        origin: where the weights come from, in words and numbers.
    """

    architecture: Architecture
    labels: LabelSet
    preprocessing: Preprocessing
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """One of `fcn_core.architecture.VARIANTS`."""
        return self.architecture.variant

    def to_metadata(self) -> dict[str, str]:
        """The safetensors metadata."""
        document = {
            "format": WEIGHTS_FORMAT,
            **self.architecture.to_dict(),
            "labels": self.labels.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "origin": dict(self.origin),
        }
        return {_KEY: json.dumps(document, sort_keys=True)}


@dataclass(frozen=True)
class WeightsFile:
    """The bytes of a weights file, checked as far as its header goes.

    Raises (on creation):
        WeightsError: not safetensors, not of this project, or cut short.
    """

    data: bytes
    where: str

    def __post_init__(self) -> None:
        _ = self.info

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the whole file."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def info(self) -> WeightsInfo:
        """The parsed metadata."""
        document = self._document()
        try:
            labels = LabelSet.from_dict(document["labels"], self.where)
            return WeightsInfo(
                architecture=Architecture.from_dict(document, labels.num_classes, self.where),
                labels=labels,
                preprocessing=Preprocessing.from_dict(document["preprocessing"], self.where),
                origin=dict(document["origin"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(
                self.where, f"incomplete metadata ({error})", f"format {WEIGHTS_FORMAT}", _REMEDY
            ) from error
        except WeightsError:
            raise
        except FcnError as error:
            raise WeightsError(
                self.where, error.reason, f"format {WEIGHTS_FORMAT}", _REMEDY
            ) from error

    def _document(self) -> dict[str, Any]:
        header = self._header()
        try:
            document = dict(json.loads(header["__metadata__"][_KEY]))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(
                self.where, "a safetensors file without our metadata", "variant, classes and "
                "preprocessing are read from it", _REMEDY,
            ) from error  # fmt: skip
        if document.get("format") != WEIGHTS_FORMAT:
            raise WeightsError(
                self.where, f"format {document.get('format')!r}", f"{WEIGHTS_FORMAT!r}", _REMEDY
            )
        return document

    def _header(self) -> dict[str, Any]:
        # Layout: 8 bytes little-endian header length, JSON header, tensors.
        # Source: the safetensors README, section "Format".
        expected = "a whole safetensors file"
        if len(self.data) < 8:
            raise WeightsError(self.where, f"{len(self.data)} bytes", expected, _REMEDY)
        (length,) = struct.unpack("<Q", self.data[:8])
        try:
            header = dict(json.loads(self.data[8 : 8 + length]))
            ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
            size = 8 + length + max(ends, default=0)
        except (ValueError, LookupError, TypeError) as error:
            raise WeightsError(self.where, "no safetensors header", expected, _REMEDY) from error
        if len(self.data) != size:
            raise WeightsError(
                self.where,
                f"{len(self.data)} bytes",
                f"its header promises {size}",
                "The file is truncated or damaged: copy it again.",
            )
        return header

    def load(self) -> FCN:
        """The network, in eval mode, float32, on the CPU.

        Raises:
            WeightsError: tensors are missing, left over, of the wrong shape, or not finite.
        """
        import torch

        from fcn_core.model import FCN

        architecture = self.info.architecture
        found = self._tensors()
        # Without memory for its parameters: a damaged header may promise any size.
        with torch.device("meta"):
            model = FCN(architecture)
        expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
        for name in sorted(set(expected) | set(found)):
            if name not in found or name not in expected:
                state = "missing" if name not in found else "not part of the network"
                wanted = f"variant {self.info.variant} has {len(expected)} tensors"
                raise WeightsError(self.where, f"tensor {name} is {state}", wanted, _REMEDY)
            if found[name].shape != expected[name]:
                raise WeightsError(
                    self.where,
                    f"tensor {name} is {tuple(found[name].shape)}",
                    f"{tuple(expected[name])} for {architecture.variant}, width "
                    f"{architecture.width:g}, {architecture.num_classes} classes",
                    _REMEDY,
                )
            if not torch.isfinite(found[name]).all():
                raise WeightsError(
                    self.where,
                    f"tensor {name} holds NaN or infinity",
                    "finite numbers",
                    "The training diverged or the file is damaged: use an earlier checkpoint.",
                )
        tensors = {name: tensor.to(torch.float32) for name, tensor in found.items()}
        model.load_state_dict(tensors, assign=True)
        return model.eval()

    def _tensors(self) -> dict[str, Tensor]:
        import safetensors.torch

        try:
            return dict(safetensors.torch.load(self.data))
        except (safetensors.SafetensorError, LookupError, TypeError, ValueError) as error:
            raise WeightsError(
                self.where, f"unreadable tensors ({error})", "a whole safetensors file", _REMEDY
            ) from error


def save_weights(model: FCN, info: WeightsInfo, *, half: bool = False) -> bytes:
    """The file for a network; equal weights give equal bytes.

    Args:
        model: its parameters are written, its fixed deconvolutions are not.
        info: must describe the model.
        half: store float16 (loaded as float32).

    Raises:
        WeightsError: `info` describes another network.
    """
    import safetensors.torch
    import torch

    described, arch = info.architecture, model.architecture
    if described != arch or info.labels.num_classes != arch.num_classes:
        found = f"metadata for {described} and {info.labels.num_classes} classes"
        raise WeightsError("weights", found, f"{arch}", "Describe the model.")
    dtype = torch.float16 if half else torch.float32
    tensors = {n: t.detach().to("cpu", dtype).contiguous() for n, t in model.state_dict().items()}
    return bytes(safetensors.torch.save(tensors, metadata=info.to_metadata()))


def read_weights(path: str | Path) -> WeightsFile:
    """A weights file from the local disk, or the shipped one by the name "demo".

    Raises:
        WeightsError: there is no such file, or it is not ours.
    """
    is_demo = str(path) == DEMO_WEIGHTS
    source = files("fcn_core").joinpath("demo.safetensors") if is_demo else Path(path)
    try:
        return WeightsFile(source.read_bytes(), f"weights {path}")
    except OSError as error:
        raise WeightsError(
            f"weights {path}", error.strerror or "unreadable", "a readable file", _REMEDY
        ) from error
