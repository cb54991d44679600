"""`WeightsFile`: safetensors files whose metadata describes the network completely.

Metadata and header are read without torch and without the tensors, so that planning and Prefect
flows can inspect weights without loading a network. Nothing depends on time or host: equal weights
give equal files.

Source: the safetensors README, section "Format": 8 bytes of little-endian header length, a JSON
header, tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fcn_core.errors import FcnError, WeightsError
from fcn_core.labels import LabelSet
from fcn_core.networks.architecture import Architecture
from fcn_core.preprocessing import Preprocessing
from fcn_core.weights.weights_info import KEY, WEIGHTS_FORMAT, WeightsInfo

if TYPE_CHECKING:
    from torch import Tensor

    from fcn_core.networks.model import FCN


DEMO_WEIGHTS = "demo"
"""Name of the weights in this package, for commands."""


_REMEDY = "Name a .safetensors file written by this project, or convert your file to one."


@dataclass(frozen=True)
class WeightsFile:
    """The bytes of a weights file, with a checked header.

    Raises (on creation):
        WeightsError: Data that is not safetensors, not of this project, or truncated.
    """

    data: bytes
    where: str
    path: str | None = field(default=None, repr=False)
    """Path of an unchanging file with the same bytes, from which tensors are memory-mapped."""

    def __post_init__(self) -> None:
        _ = self.info

    @classmethod
    def mapped(cls, path: str, where: str) -> WeightsFile:
        """Map an unchanging file into memory; parts that are not read take no memory.

        Raises:
            OSError: A file that cannot be read.
            WeightsError: As on creation.
        """
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return cls(cast(bytes, data), where, path)  # an mmap has len() and slices like bytes

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the whole file."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def info(self) -> WeightsInfo:
        """Description of the network, parsed from the metadata."""
        document = self._document()
        try:
            labels = LabelSet.from_dict(document["labels"], self.where)
            return WeightsInfo(
                architecture=Architecture.from_dict(document, labels.num_classes, self.where),
                labels=labels,
                preprocessing=Preprocessing.from_dict(document["preprocessing"], self.where),
                origin=dict(document["origin"]),
                other_labels=tuple(
                    LabelSet.from_dict(other, self.where)
                    for other in document.get("other_labels", ())
                ),
                int8_peaks=_peaks(document.get("int8_peaks", {})),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(
                where=self.where,
                found=f"incomplete metadata ({error})",
                expected=f"format {WEIGHTS_FORMAT}",
                remedy=_REMEDY,
            ) from error
        except WeightsError:
            raise
        except FcnError as error:
            raise WeightsError(
                where=self.where,
                found=error.reason,
                expected=f"format {WEIGHTS_FORMAT}",
                remedy=_REMEDY,
            ) from error

    def _document(self) -> dict[str, Any]:
        try:
            document = dict(json.loads(self._header.metadata[KEY]))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(
                where=self.where,
                found="a safetensors file without metadata of this project",
                expected="the variant, classes and preprocessing are read from the metadata",
                remedy=_REMEDY,
            ) from error
        if document.get("format") != WEIGHTS_FORMAT:
            raise WeightsError(
                where=self.where,
                found=f"format {document.get('format')!r}",
                expected=f"{WEIGHTS_FORMAT!r}",
                remedy=_REMEDY,
            )
        return document

    @cached_property
    def _header(self) -> Header:
        return read_header(self.data, self.where, _REMEDY)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Dtypes and shapes of the tensors, by name, from the header."""
        return self._header.tensors

    def check_is_trained(self) -> None:
        """Check that the weights belong to a trained network.

        Raises:
            WeightsError: Weights that only start a training, so that their masks are meaningless.
        """
        if self.info.is_initialisation:
            raise WeightsError(
                where=self.where,
                found="initial weights for training, whose scores are all zero",
                expected="a trained network",
                remedy="Train the network first, or convert the weights of a trained one.",
            )

    def load(self) -> FCN:
        """Load the network, in eval mode, float32, on the CPU.

        Raises:
            WeightsError: Tensors that are missing, unexpected, of the wrong shape, or not finite.
        """
        return build(self.info.architecture, self._tensors(), self.where, _REMEDY)

    def _tensors(self) -> dict[str, Tensor]:
        import safetensors.torch

        try:
            if self.path is not None:
                return dict(safetensors.torch.load_file(self.path))
            return dict(safetensors.torch.load(self.data))
        except (safetensors.SafetensorError, LookupError, TypeError, ValueError) as error:
            raise WeightsError(
                where=self.where,
                found=f"unreadable tensors ({error})",
                expected="a complete safetensors file",
                remedy=_REMEDY,
            ) from error


def _peaks(document: Mapping[str, Any]) -> dict[str, float]:
    peaks = {name: float(peak) for name, peak in dict(document).items()}
    if not all(math.isfinite(peak) and peak >= 0 for peak in peaks.values()):
        raise ValueError("int8_peaks: numbers from 0 up expected")
    return peaks


def build(
    architecture: Architecture,
    tensors: Mapping[str, Tensor],
    where: str,
    remedy: str = "Name the variant, the label set and the file that belong together.",
) -> FCN:
    """Build a network from given weights, in eval mode, float32, on the CPU.

    Args:
        architecture: Architecture of the network.
        tensors: State dict of the network.
        where: Name of the weights in error messages.
        remedy: Remedy in errors about tensors that do not belong to the network.

    Raises:
        WeightsError: Tensors that are missing, unexpected, of the wrong shape, or not finite.
    """
    import torch

    from fcn_core.networks.model import FCN

    # On "meta", parameters take no memory: a damaged header may describe any size.
    with torch.device("meta"):
        model = FCN(architecture)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name in sorted(set(expected) | set(tensors)):
        if name not in tensors or name not in expected:
            state = "missing" if name not in tensors else "not part of the network"
            wanted = f"variant {architecture.variant} has {len(expected)} tensors"
            raise WeightsError(
                where=where, found=f"tensor {name} is {state}", expected=wanted, remedy=remedy
            )
        if tensors[name].shape != expected[name]:
            raise WeightsError(
                where=where,
                found=f"tensor {name} is {tuple(tensors[name].shape)}",
                expected=f"{tuple(expected[name])} for {architecture.variant}, width "
                f"{architecture.width:g}, {architecture.num_classes} classes",
                remedy=remedy,
            )
        # aminmax() propagates NaN, and takes a tenth of the time of `isfinite`.
        if tensors[name].numel() and not all(map(math.isfinite, tensors[name].aminmax())):
            raise WeightsError(
                where=where,
                found=f"tensor {name} holds NaN or infinity",
                expected="finite numbers",
                remedy="The training diverged or the file is damaged: use an earlier checkpoint.",
            )
    floats = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    model.load_state_dict(floats, assign=True)
    return model.eval()


def save_weights(model: FCN, info: WeightsInfo, *, half: bool = False) -> bytes:
    """Return the file content for a network; equal weights give equal bytes.

    Args:
        model: Network. Its parameters are stored; its fixed deconvolutions are not.
        info: Description of the same network.
        half: Whether to store float16, which is loaded as float32.

    Raises:
        WeightsError: A description of another network.
    """
    import safetensors.torch
    import torch

    described, arch = info.architecture, model.architecture
    if described != arch:
        raise WeightsError(
            where="weights",
            found=f"metadata for {described}",
            expected=f"{arch}",
            remedy="Give a WeightsInfo that describes this model.",
        )
    dtype = torch.float16 if half else torch.float32
    tensors = {n: t.detach().to("cpu", dtype).contiguous() for n, t in model.state_dict().items()}
    return bytes(safetensors.torch.save(tensors, metadata=info.to_metadata()))


def read_weights(path: str | Path) -> WeightsFile:
    """Read a weights file from the local disk; "demo" is the file shipped with this package.

    Raises:
        WeightsError: A file that does not exist, or is not a weights file of this project.
    """
    is_demo = str(path) == DEMO_WEIGHTS
    source = files("fcn_core").joinpath("demo.safetensors") if is_demo else Path(path)
    try:
        return WeightsFile(source.read_bytes(), f"weights {path}")
    except OSError as error:
        raise WeightsError(
            where=f"weights {path}",
            found=error.strerror or "unreadable",
            expected="a readable file",
            remedy=_REMEDY,
        ) from error


@dataclass(frozen=True)
class TensorInfo:
    """Dtype ("F32" or "F16") and shape of a tensor, from the header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Attributes:
        metadata: Unchecked metadata, which may have any JSON type in a damaged file.
        tensors: Tensors by name.
    """

    metadata: Any
    tensors: Mapping[str, TensorInfo]


def read_header(data: bytes, where: str, remedy: str) -> Header:
    """Read the header of a complete file.

    Raises:
        WeightsError: Data that is not safetensors, or a length that contradicts the header.
    """
    expected = "a complete safetensors file"
    if len(data) < 8:
        raise WeightsError(
            where=where, found=f"{len(data)} bytes", expected=expected, remedy=remedy
        )
    (length,) = struct.unpack("<Q", data[:8])
    try:
        header = dict(json.loads(data[8 : 8 + length]))
        metadata = header.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in header.values()]
        size = 8 + length + max(ends, default=0)
        tensors = {
            name: TensorInfo(str(entry["dtype"]), tuple(int(side) for side in entry["shape"]))
            for name, entry in sorted(header.items())
        }
    except (ValueError, LookupError, TypeError) as error:
        raise WeightsError(
            where=where, found="no safetensors header", expected=expected, remedy=remedy
        ) from error
    if len(data) != size:
        raise WeightsError(
            where=where,
            found=f"{len(data)} bytes",
            expected=f"{size} bytes according to the header",
            remedy="The file is truncated or damaged: copy it again.",
        )
    return Header(metadata, tensors)
