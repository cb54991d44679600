"""Between the memory of the host and that of the device, beside the computing.

Shape suffixes: B batch, C channel, H height px, W width px.

On CUDA a forward pass is only queued. While it computes, the images of the next batch are stacked
in pinned memory and copied over on a stream of their own, and the results of the batch before are
copied back on another (`CudaTransfer`). The streams wait for each other where one reads what another
writes; the allocators of both memories are told who uses what, so that nothing is overwritten too
early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Transferred = Callable[[], list[NDArray[Any]]]
"""Waits for results, and gives them."""


class DeviceTransfer:
    """One thing after the other; on a CPU there is nothing to carry.

    Attributes:
        ahead: how many batches are queued before the results of one are waited for.
    """

    ahead = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def stack(self, arrays: Sequence[NDArray[Any]], slots: int) -> Tensor:
        """(slots, ...) on the device: the arrays, then zeros.

        Args:
            arrays: of one shape and dtype, at most `slots`.
            slots: B.
        """
        return _filled(torch.zeros, arrays, slots).to(self._device)

    def fetch(self, tensors: Sequence[Tensor]) -> Transferred:
        """Begin to bring tensors back."""
        return lambda: [tensor.cpu().numpy() for tensor in tensors]


class CudaTransfer(DeviceTransfer):
    """Of a CUDA device, as above."""

    ahead = 1

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._there: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._back: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def stack(self, arrays: Sequence[NDArray[Any]], slots: int) -> Tensor:
        """See `DeviceTransfer`. Pinned memory is freed at once: its allocator waits for the copy."""
        pinned = _filled(_pinned, arrays, slots)
        with torch.cuda.stream(self._there):
            carried = torch.empty_like(pinned, device=self._device)
            copy(pinned, carried)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._there)
        keep(carried, computing)
        return carried

    def fetch(self, tensors: Sequence[Tensor]) -> Transferred:
        """See `DeviceTransfer`."""
        self._back.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._back):
            pinned = [_pinned(tensor.shape, dtype=tensor.dtype) for tensor in tensors]
            for tensor, place in zip(tensors, pinned, strict=True):
                copy(tensor, place)
                keep(tensor, self._back)
            done = self._back.record_event()

        def landed() -> list[NDArray[Any]]:
            done.synchronize()
            # Copied, for pinned memory is scarce and a mask may be kept for long.
            return [place.numpy().copy() for place in pinned]

        return landed


def copy(source: Tensor, target: Tensor) -> None:
    """Queue a copy on the current stream."""
    target.copy_(source, non_blocking=True)


def keep(tensor: Tensor, stream: torch.cuda.Stream) -> None:
    """The memory of a tensor is not given to another before the stream is done with it."""
    tensor.record_stream(stream)


def _pinned(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)


def _filled(make: Callable[..., Tensor], arrays: Sequence[NDArray[Any]], slots: int) -> Tensor:
    first = arrays[0]
    dtype = torch.uint8 if first.dtype == np.uint8 else torch.float32
    stack = make((slots, *first.shape), dtype=dtype)
    stack[len(arrays) :] = 0
    np.stack(arrays, out=stack[: len(arrays)].numpy())
    return stack
