"""Read state dicts saved by PyTorch (`.pth`, `.pth.tar`) without running pickled code.

Source: torch.load with weights_only=True. Checkpoints of wkentaro/pytorch-fcn store their best mean
IoU as a numpy number, which torch refuses. Here, inert classes replace the numpy names, so that
such files can be read and no numpy code is called.
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
    "If you trust the file, save only its tensors and convert the new file: "
    "torch.save(torch.load(OLD, weights_only=False).state_dict(), NEW), without .state_dict() if "
    "the file contains a dictionary."
)

_DOWNLOAD = "Copy or download the file again, and compare its checksum."


class _Inert:
    """Replaces a numpy dtype or number in a pickle: accepts any arguments and does nothing."""

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
        tensors: "conv1_1.weight", …, without the prefix `module.` of DataParallel.
        arch: Class name in a checkpoint of pytorch-fcn ("FCN8sAtOnce"), if any.
    """

    tensors: Mapping[str, Tensor]
    arch: str | None = None


def read_state_dict(data: bytes, where: str) -> StateDict:
    """Read the tensors of a state dict, or of a checkpoint with a key `model_state_dict`.

    Args:
        data: Content of the file, in either format of torch (zip since 1.6, pickles before).
        where: Name of the file in error messages.

    Raises:
        WeightsError: A file that is not from torch, is truncated, contains more than tensors,
            numbers and strings, or has no state dict.
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
            found=f"a {type(loaded).__name__} that is empty or not a state dict",
            expected="a state dict, or a checkpoint with model_state_dict",
            remedy=_RESAVE,
        )
    tensors = {str(name): _float32(value, str(name), where) for name, value in loaded.items()}
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return StateDict(tensors, arch if isinstance(arch, str) else None)


def _load(data: bytes, where: str) -> Any:
    import torch

    replacements: list[Any] = [(_Inert, name) for name in _INERT_NAMES]
    try:
        with torch.serialization.safe_globals(replacements), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about its own old formats
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+)", str(error))
        if not match:
            raise _damaged(where, data, error) from error
        raise WeightsError(
            where=where,
            found=f"a pickle that calls {match[1]}",
            expected="only tensors, because unpickling other objects can run any code",
            remedy=_RESAVE,
        ) from error
    except Exception as error:  # a damaged pickle can raise any exception
        if "TorchScript" in str(error):
            raise WeightsError(
                where=where, found="a TorchScript program", expected="only tensors", remedy=_RESAVE
            ) from error
        raise _damaged(where, data, error) from error


def _damaged(where: str, data: bytes, error: Exception) -> WeightsError:
    # torch adds advice to disable its safety check; only the reason is kept.
    reason = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    detail = re.split(r"[.\n]", reason)[0]
    if not detail or detail.startswith("Weights only load failed"):
        detail = type(error).__name__
    return WeightsError(
        where=where,
        found=f"{len(data)} bytes that torch cannot read ({detail})",
        expected="a complete file written by torch.save with pickle protocol 2",
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
            where=where,
            found=f"tensor {name} of {tensor.dtype}, {tensor.layout}",
            expected="dense floating point",
            remedy="Convert the network to float32 and save it again.",
        )
    return tensor.detach().to(torch.float32)
