"""Features of a canvas without an image: the surroundings of the image in every layer.

Shape suffixes: B batch, C channel, H height cells, W width cells.

Between the regions that its edges reach, a blank canvas is even: all cells are equal. So a small
canvas, stretched in this region, represents all canvases whose sides have the same remainder. No
bit depends on the sizes of earlier images: even features come from one fixed canvas, and every
other blank canvas is determined by its remainders.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from fcn_core.inference.arithmetic import Arithmetic
from fcn_core.inference.windows import Axis, axes, blank_side, stretch_indices
from fcn_core.networks.layers import Layer

BLANK_BYTES = 32 * 2**20
"""Limit of cached canvases per trunk. One of VGG-16 takes 0.1 MiB in fp32; at most 256 exist."""


_INDEX_BYTES = 2**20


class BoundedCache:
    """A thread-safe cache of tensors that drops the least recently used ones.

    Attributes:
        nbytes: Bytes of all cached tensors, never above the limit.
    """

    def __init__(self, limit: int) -> None:
        """Create an empty cache.

        Args:
            limit: Maximum number of bytes.
        """
        self.limit = limit
        self.nbytes = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return the tensor of a key, created by `make` if it is not cached."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            made = make()
            if made.nbytes <= self.limit:
                self._kept[key] = made
                self.nbytes += made.nbytes
            while self.nbytes > self.limit:
                self.nbytes -= self._kept.popitem(last=False)[1].nbytes
            return made


class BlankFeatures:
    """The features of blank canvases for one trunk with constant weights.

    Attributes:
        cache: Cached canvases.
        indices: Cached indices, by side of a large canvas, of the cells of its small canvas.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        arithmetic: Arithmetic,
        image: Tensor,
        limit: int = BLANK_BYTES,
    ) -> None:
        """Compute the even features.

        Args:
            layers: The layers of the trunk up to the last one that needs blank features.
            arithmetic: Arithmetic of these layers.
            image: Any (B, C, H, W) tensor with the channels, device and dtype of the images.
            limit: Maximum number of bytes of cached canvases.
        """
        self._layers = tuple(layers)
        self._arithmetic = arithmetic
        self._channels = image.shape[1]
        self._like = image.new_empty(0)
        self.cache = BoundedCache(limit)
        self.indices = BoundedCache(_INDEX_BYTES)
        side = blank_side(self._layers, 0)
        line = axes(self._layers, Axis.blank(side))
        self.even = [
            x_HWC[axis.even.start, axis.even.start].clone()
            for axis, x_HWC in zip(line, self._features(side, side), strict=True)
        ]
        """(C,) of the canvas and of each layer: the value of cells beyond the reach of edges."""

    def canvas(self, height: int, width: int) -> Tensor:
        """Return the (H, W, C) features of the last layer.

        Args:
            height: Height of the canvas with its border, px.
            width: Width of the canvas with its border, px.
        """
        rows, columns = (blank_side(self._layers, side) for side in (height, width))
        small_HWC = self.cache.get(
            (rows, columns), lambda: self._features(rows, columns)[-1].clone()
        )
        row_index, column_index = (self._stretch_indices(side) for side in (height, width))
        return small_HWC[row_index[:, None], column_index[None]]

    def _stretch_indices(self, side: int) -> Tensor:
        # Cached, because copying a list to a GPU waits for all work that is queued there.
        device = self._like.device
        return self.indices.get(
            side, lambda: torch.tensor(stretch_indices(self._layers, side), device=device)
        )

    @torch.inference_mode()
    def _features(self, height: int, width: int) -> list[Tensor]:
        """Return (H, W, C) of a blank canvas and of each layer."""
        x_BCHW = self._like.new_zeros(1, self._channels, height, width)
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        x_BCHW = self._arithmetic.to_input(x_BCHW)
        outputs = [x_BCHW]
        first, *others = self._layers
        x_BCHW = self._arithmetic.apply_unpadded(first, x_BCHW)
        if self._arithmetic.leaves_relu:
            x_BCHW = F.relu(x_BCHW)
        outputs.append(x_BCHW)
        for layer in others:
            x_BCHW = self._arithmetic.apply(layer, x_BCHW)
            outputs.append(x_BCHW)
        return [x_BCHW[0].permute(1, 2, 0) for x_BCHW in outputs]
