"""Features of a canvas without an image: what stands around the image in every layer.

Shape suffixes: B batch, C channel, H height cells, W width cells.

Between the reach of its edges a blank canvas is even, so that a small one, stretched there, stands
for all canvases whose sides leave the same remainder. No bit of it depends on which sizes of
image came before: even features come from one fixed canvas, each other blank from its remainders.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from fcn_core.inference.arithmetic import Arithmetic
from fcn_core.inference.windows import Axis, axes, blank_side, stretched
from fcn_core.networks.layers import Layer

BLANK_BYTES = 32 * 2**20
"""Kept, per trunk. An entry of VGG-16 is 0.1 MiB in fp32, and there are at most 256 of them."""


_INDEX_BYTES = 2**20


class BoundedCache:
    """Tensors by key, the least recently used ones forgotten; safe among threads.

    Attributes:
        nbytes: of all that is kept, never above the limit.
    """

    def __init__(self, limit: int) -> None:
        """Nothing kept yet.

        Args:
            limit: bytes.
        """
        self.limit = limit
        self.nbytes = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of a key, made if it is not kept."""
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
    """The blank canvases of a trunk whose weights stay as they are.

    Attributes:
        cache: of the canvases.
        indices: of the cells of a canvas in its small one, by the side of the canvas.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        arithmetic: Arithmetic,
        picture: Tensor,
        limit: int = BLANK_BYTES,
    ) -> None:
        """Compute the even features.

        Args:
            layers: of the trunk, as far as blanks are wanted.
            arithmetic: computes them.
            image: (B, C, H, W) any, for its channels, device and dtype.
            limit: bytes of the canvases kept.
        """
        self._layers = tuple(layers)
        self._arithmetic = arithmetic
        self._channels = picture.shape[1]
        self._like = picture.new_empty(0)
        self.cache = BoundedCache(limit)
        self.indices = BoundedCache(_INDEX_BYTES)
        side = blank_side(self._layers, 0)
        line = axes(self._layers, Axis.blank(side))
        self.even = [
            x_HWC[axis.even.start, axis.even.start].clone()
            for axis, x_HWC in zip(line, self._features(side, side), strict=True)
        ]
        """(C,) of the canvas and of each layer: what is where neither edges nor an image reach."""

    def canvas(self, height: int, width: int) -> Tensor:
        """(H, W, C) of the last layer.

        Args:
            height: of the canvas, border included, px.
            width: likewise.
        """
        rows, columns = (blank_side(self._layers, side) for side in (height, width))
        small_HWC = self.cache.get(
            (rows, columns), lambda: self._features(rows, columns)[-1].clone()
        )
        row_index, column_index = (self._stretched(side) for side in (height, width))
        return small_HWC[row_index[:, None], column_index[None]]

    def _stretched(self, side: int) -> Tensor:
        # Kept, for a copy of a list to a GPU waits for all that is queued there.
        device = self._like.device
        return self.indices.get(
            side, lambda: torch.tensor(stretched(self._layers, side), device=device)
        )

    @torch.inference_mode()
    def _features(self, height: int, width: int) -> list[Tensor]:
        """(H, W, C) of a blank canvas and of each layer."""
        x_BCHW = self._like.new_zeros(1, self._channels, height, width)
        x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
        x_BCHW = self._arithmetic.entered(x_BCHW)
        found = [x_BCHW]
        first, *others = self._layers
        x_BCHW = self._arithmetic.unpadded(first, x_BCHW)
        if self._arithmetic.leaves_relu:
            x_BCHW = F.relu(x_BCHW)
        found.append(x_BCHW)
        for layer in others:
            x_BCHW = self._arithmetic.apply(layer, x_BCHW)
            found.append(x_BCHW)
        return [x_BCHW[0].permute(1, 2, 0) for x_BCHW in found]
