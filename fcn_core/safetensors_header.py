"""The header of a safetensors file, read without torch and without its tensors.

Source: the safetensors README, section "Format": 8 bytes of little-endian header length, a JSON
header, tensors.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fcn_core.errors import WeightsError


@dataclass(frozen=True)
class TensorInfo:
    """What the header of a weights file says of a tensor: "F32" or "F16", and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What stands before the tensors.

    Attributes:
        metadata: as it is, which may be anything in a damaged file.
        tensors: by name.
    """

    metadata: Any
    tensors: Mapping[str, TensorInfo]


def read_header(data: bytes, where: str, remedy: str) -> Header:
    """The header of a whole file.

    Raises:
        WeightsError: not safetensors, or not as long as its header says.
    """
    expected = "a whole safetensors file"
    if len(data) < 8:
        raise WeightsError(where, f"{len(data)} bytes", expected, remedy)
    (length,) = struct.unpack("<Q", data[:8])
    try:
        header = dict(json.loads(data[8 : 8 + length]))
        metadata = header.pop("__metadata__", None)
        ends = [found["data_offsets"][1] for found in header.values()]
        size = 8 + length + max(ends, default=0)
        tensors = {
            name: TensorInfo(str(found["dtype"]), tuple(int(side) for side in found["shape"]))
            for name, found in sorted(header.items())
        }
    except (ValueError, LookupError, TypeError) as error:
        raise WeightsError(where, "no safetensors header", expected, remedy) from error
    if len(data) != size:
        raise WeightsError(
            where,
            f"{len(data)} bytes",
            f"its header promises {size}",
            "The file is truncated or damaged: copy it again.",
        )
    return Header(metadata, tensors)
