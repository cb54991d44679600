"""Shift-and-stitch (paper, section 3.2): denser scores from many passes through the same network.

Shape suffixes: B batch, C channel, K class, H height px, W width px.

A network has one score cell per s px. With passes on the image shifted right and down by every
multiple of r below s, all cells together lie r px apart; interlaced, they form one score map of
stride r. For cells that do not see the border of the padded image, and for all cells if the trunk
has no biases, the result equals one pass of a dilated network (docs/networks.md, "Denser scores").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from fcn_core.errors import FcnError
from fcn_core.networks.crops import layer_positions
from fcn_core.networks.model import FCN
from fcn_core.networks.upsampling import upsample_bilinear


class ShiftAndStitch(nn.Module):
    """A network at a finer output stride r, with (s / r)² forward passes per image.

    Can replace an `FCN`, also in a `Predictor`.

    Attributes:
        architecture: Architecture of the network.
        output_stride: Output stride r, px.
    """

    def __init__(self, model: FCN, output_stride: int) -> None:
        """Wrap a network.

        Args:
            model: Any network with fixed last deconvolutions, which are replaced by those of the
                finer stride.
            output_stride: A divisor of the stride of the model's last deconvolution (32, 16 or 8).

        Raises:
            FcnError: A stride that is not a divisor, or learned deconvolutions.
        """
        super().__init__()
        self.model = model
        self.architecture = model.architecture
        self.output_stride = output_stride
        self._coarse = model.plan.stride
        if output_stride < 1 or self._coarse % output_stride:
            raise FcnError(
                where="shift-and-stitch",
                found=f"output stride {output_stride}",
                expected=f"a divisor of {self._coarse}, the stride of {self.architecture.variant}",
                remedy="Choose one of its divisors.",
            )
        if self.architecture.upsampling != "fixed":
            raise FcnError(
                where="shift-and-stitch",
                found="learned upsampling",
                expected="fixed deconvolutions, which exist for every stride",
                remedy="Use the network without shift-and-stitch.",
            )
        # Odd kernels stay odd, so that cells stay on pixel centers (AlexNet, GoogLeNet).
        self._kernel = 2 * output_stride - model.plan.kernel % 2
        self._offset = _offset(model, output_stride, self._kernel)

    def forward(self, image_BCHW: Tensor, head: str | None = None) -> Tensor:
        """Return the logits (B, K, H, W) of one head, as `FCN.forward` does."""
        height, width = image_BCHW.shape[-2:]
        score_BKHW = self.coarse_score(image_BCHW, head)
        full_BKHW = upsample_bilinear(score_BKHW, self.output_stride, self._kernel)
        first = self._offset
        return full_BKHW[..., first : first + height, first : first + width]

    def coarse_score(self, image_BCHW: Tensor, head: str | None = None) -> Tensor:
        """Compute the stitched scores (B, K, h, w), one cell per `output_stride` px.

        Their first cells lie s - r px above and left of the first cells of the network's own
        scores.
        """
        room = self._coarse - self.output_stride
        shifts = range(room, -1, -self.output_stride)
        rows = []
        for down in shifts:
            # Zeros, the mean color, enter from the left and from above. The other side is padded as
            # well (not in the paper), so that all passes have the same number of cells.
            row = [F.pad(image_BCHW, (right, room - right, down, room - down)) for right in shifts]
            scores = [self.model.coarse_score(moved_BCHW, head) for moved_BCHW in row]
            rows.append(_interlaced(scores, dim=3))
        return _interlaced(rows, dim=2)


def _interlaced(parts: list[Tensor], dim: int) -> Tensor:
    """Interlace cells: cell 0 of every part, cell 1 of every part, …."""
    return torch.stack(parts, dim + 1).flatten(dim, dim + 1)


def _offset(model: FCN, output_stride: int, kernel: int) -> int:
    """Return the offset at which the upsampled stitched scores start at pixel 0."""
    positions = layer_positions(model.architecture)
    position = positions["score_fr"]
    for _ in model.plan.skips:
        position = position.upsampled(4, 2)
    shifted = position.moved(-(model.plan.stride - output_stride), output_stride)
    return shifted.upsampled(kernel, output_stride).offset(positions["data"])
