"""Copy images to the device and results back, in parallel with the computation.

Shape suffixes: B batch, C channel, H height px, W width px.

A forward pass on CUDA is only queued. While it runs, `CudaTransfer` stacks the images of the next
batch in pinned memory and copies them on one stream, and copies the results of the batch before on
another. A stream waits for another one before it reads that stream's results. The memory allocators
know which stream uses a tensor, so that no memory is overwritten too early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PendingArrays = Callable[[], list[NDArray[Any]]]
"""Function that waits for a transfer and returns its arrays."""


class DeviceTransfer:
    """Transfers that finish before they return; on a CPU there is nothing to copy.

    Attributes:
        ahead: Number of batches that are queued before the results of one are awaited.
    """

    ahead = 0

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def stack(self, arrays: Sequence[NDArray[Any]], slots: int) -> Tensor:
        """Stack arrays on the device, (slots, ...), and fill empty slots with zeros.

        Args:
            arrays: At most `slots` arrays of one shape and dtype.
            slots: Batch size B.
        """
        return _filled(torch.zeros, arrays, slots).to(self._device)

    def fetch(self, tensors: Sequence[Tensor]) -> PendingArrays:
        """Start copying tensors to the host."""
        return lambda: [tensor.cpu().numpy() for tensor in tensors]


class CudaTransfer(DeviceTransfer):
    """Transfers that run in parallel with the computation on a CUDA device."""

    ahead = 1

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._upload: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._download: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def stack(self, arrays: Sequence[NDArray[Any]], slots: int) -> Tensor:
        """Stack arrays on the device; the allocator keeps pinned memory until the copy is done."""
        pinned = _filled(pinned_tensor, arrays, slots)
        with torch.cuda.stream(self._upload):
            uploaded = torch.empty_like(pinned, device=self._device)
            queue_copy(pinned, uploaded)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._upload)
        keep_until_done(uploaded, computing)
        return uploaded

    def fetch(self, tensors: Sequence[Tensor]) -> PendingArrays:
        """Start copying tensors to the host; the returned function waits for the copies."""
        self._download.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._download):
            pinned = [pinned_tensor(tensor.shape, dtype=tensor.dtype) for tensor in tensors]
            for tensor, target in zip(tensors, pinned, strict=True):
                queue_copy(tensor, target)
                keep_until_done(tensor, self._download)
            done = self._download.record_event()

        def wait() -> list[NDArray[Any]]:
            done.synchronize()
            # Copied, because pinned memory is scarce and callers may keep masks for long.
            return [target.numpy().copy() for target in pinned]

        return wait


def queue_copy(source: Tensor, target: Tensor) -> None:
    """Queue a copy on the current stream."""
    target.copy_(source, non_blocking=True)


def keep_until_done(tensor: Tensor, stream: torch.cuda.Stream) -> None:
    """Keep the memory of a tensor reserved until the stream has finished with it."""
    tensor.record_stream(stream)


def pinned_tensor(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an empty tensor in page-locked memory of the host."""
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)


def _filled(make: Callable[..., Tensor], arrays: Sequence[NDArray[Any]], slots: int) -> Tensor:
    first = arrays[0]
    dtype = torch.uint8 if first.dtype == np.uint8 else torch.float32
    stack = make((slots, *first.shape), dtype=dtype)
    stack[len(arrays) :] = 0
    np.stack(arrays, out=stack[: len(arrays)].numpy())
    return stack
