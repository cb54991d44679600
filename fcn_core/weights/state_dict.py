"""State dicts that PyTorch saved (`.pth`, `.pth.tar`), read without running what they pickle.

Source: torch.load with weights_only=True. Checkpoints of wkentaro/pytorch-fcn hold their best mean
IU as a numpy number, which torch refuses; here numpy's names stand for inert stand-ins, so that
such files are read and nothing of numpy is called.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fcn_core.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor


_CHECKPOINT_KEYS = ("model_state_dict", "state_dict")

_RESAVE = (
    "Where you trust the file, save its tensors alone and convert those: "
    "torch.save(torch.load(OLD, weights_only=False).state_dict(), NEW), without .state_dict() if "
    "it holds a dictionary."
)

_DOWNLOAD = "Copy or download the file again, and compare its checksum."


class _Inert:
    """Stands for a numpy dtype or number in a pickle: takes anything, does nothing."""

    def __init__(self, *_args: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


_INERT_NAMES = (
    "numpy.dtype",
    "numpy.core.multiarray.scalar",  # until numpy 1
    "numpy._core.multiarray.scalar",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64")),
)


@dataclass(frozen=True)
class StateDict:
    """The tensors of a file by name, float32, on the CPU.

    Attributes:
        tensors: "conv1_1.weight", …; the prefix `module.` of a DataParallel is removed.
        arch: the class that a pytorch-fcn checkpoint says it is of ("FCN8sAtOnce"), if any.
    """

    tensors: Mapping[str, Tensor]
    arch: str | None = None


def read_state_dict(data: bytes, where: str) -> StateDict:
    """The tensors of a state dict, or of a checkpoint that has one under `model_state_dict`.

    Args:
        data: the file, in either of torch's formats (zip since 1.6, pickles before).
        where: named in errors.

    Raises:
        WeightsError: not a file of torch, truncated, with anything but tensors, numbers and texts
            in it, or without a state dict.
    """
    loaded = _load(data, where)
    arch = None
    if isinstance(loaded, Mapping):
        arch = loaded.get("arch")
        for key in _CHECKPOINT_KEYS:
            if isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
                break
    if not isinstance(loaded, Mapping) or not loaded:
        raise WeightsError(
            where=where,
            found=f"a {type(loaded).__name__}, empty or of something else",
            expected="a state dict, or a checkpoint with model_state_dict",
            remedy=_RESAVE,
        )
    tensors = {str(name): _float32(value, str(name), where) for name, value in loaded.items()}
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return StateDict(tensors, arch if isinstance(arch, str) else None)


def _load(data: bytes, where: str) -> Any:
    import torch

    stand_ins: list[Any] = [(_Inert, name) for name in _INERT_NAMES]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about its own old formats
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if not found:
            raise _damaged(where, data, error) from error
        raise WeightsError(
            where=where,
            found=f"a pickle that calls {found[1]}",
            expected="tensors alone: unpickling anything else can run any program",
            remedy=_RESAVE,
        ) from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
        if "TorchScript" in str(error):
            raise WeightsError(
                where=where, found="a TorchScript program", expected="tensors alone", remedy=_RESAVE
            ) from error
        raise _damaged(where, data, error) from error


def _damaged(where: str, data: bytes, error: Exception) -> WeightsError:
    # torch wraps the reason into advice to switch its safety off.
    said = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    detail = re.split(r"[.\n]", said)[0]
    if not detail or detail.startswith("Weights only load failed"):
        detail = type(error).__name__
    return WeightsError(
        where=where,
        found=f"{len(data)} bytes that torch cannot read ({detail})",
        expected="a whole file written by torch.save with its own pickle protocol 2",
        remedy=_DOWNLOAD,
    )


def _float32(value: object, name: str, where: str) -> Tensor:
    import torch

    if not isinstance(value, torch.Tensor):
        raise WeightsError(
            where=where,
            found=f"{name} is a {type(value).__name__}",
            expected="a state dict of tensors",
            remedy=_RESAVE,
        )
    tensor: Tensor = value
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_quantized:
        raise WeightsError(
            where=where, found=f"tensor {name} of {tensor.dtype}, {tensor.layout}", expected="dense floating point",
            remedy="Convert the network to float32 and save it again.",
        )  # fmt: skip
    return tensor.detach().to(torch.float32)
