"""Shift-and-stitch (paper, section 3.2): denser scores from the same network, run many times.

Shape suffixes: B batch, C channel, K class, H height px, W width px.

A network scores one cell per s px. Run on the image moved right and down by every multiple of r
below s, its cells together lie r px apart; interlaced they are one score map of stride r. For the
cells that see nothing of the border of the padded image, and for all where the trunk has no
biases, it is what a dilated network computes in one pass (docs/networks.md, "Denser scores").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from fcn_core.errors import FcnError
from fcn_core.networks.crops import places
from fcn_core.networks.model import FCN
from fcn_core.networks.upsampling import bilinear_upsampling


class ShiftAndStitch(nn.Module):
    """A network as it is, at a finer output stride; (s / r)² forward passes per image.

    Stands wherever an `FCN` does, in a `Predictor` too.

    Attributes:
        architecture: of the network.
        output_stride: r, px.
    """

    def __init__(self, model: FCN, output_stride: int) -> None:
        """Wrap a network.

        Args:
            model: any; its last deconvolutions must be fixed, as they are replaced by those of
                the finer stride.
            output_stride: a divisor of the stride of the model's last deconvolution (32, 16 or 8).

        Raises:
            FcnError: the stride does not divide it, or the deconvolutions are learned.
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
                remedy="Choose such a stride.",
            )
        if self.architecture.upsampling != "fixed":
            raise FcnError(
                where="shift-and-stitch",
                found="learned upsampling",
                expected="fixed deconvolutions, which have an equal at every stride",
                remedy="Use the network as it is.",
            )
        # Odd kernels stay odd, so that cells keep falling on pixel centres (AlexNet, GoogLeNet).
        self._kernel = 2 * output_stride - model.plan.kernel % 2
        self._offset = _offset(model, output_stride, self._kernel)

    def forward(self, image_BCHW: Tensor, head: str | None = None) -> Tensor:
        """Logits (B, K, H, W) of one head, as `FCN.forward` gives them."""
        height, width = image_BCHW.shape[-2:]
        score_BKHW = self.coarse_score(image_BCHW, head)
        full_BKHW = bilinear_upsampling(score_BKHW, self.output_stride, self._kernel)
        first = self._offset
        return full_BKHW[..., first : first + height, first : first + width]

    def coarse_score(self, image_BCHW: Tensor, head: str | None = None) -> Tensor:
        """(B, K, h, w): the stitched scores, one cell per `output_stride` px.

        Its first cells lie s - r px above and left of those of the network's own score map.
        """
        room = self._coarse - self.output_stride
        shifts = range(room, -1, -self.output_stride)
        rows = []
        for down in shifts:
            # Zero, the mean colour, enters from the left and from above. What room is left goes to
            # the other side (the paper leaves it out), so that every run has as many cells.
            row = [F.pad(image_BCHW, (right, room - right, down, room - down)) for right in shifts]
            scores = [self.model.coarse_score(moved_BCHW, head) for moved_BCHW in row]
            rows.append(_interlaced(scores, dim=3))
        return _interlaced(rows, dim=2)


def _interlaced(parts: list[Tensor], dim: int) -> Tensor:
    """Cell 0 of every part, cell 1 of every part, …."""
    return torch.stack(parts, dim + 1).flatten(dim, dim + 1)


def _offset(model: FCN, output_stride: int, kernel: int) -> int:
    """Where the upsampled stitched scores meet pixel 0."""
    found = places(model.architecture)
    place = found["score_fr"]
    for _ in model.plan.skips:
        place = place.upsampled(4, 2)
    shifted = place.moved(-(model.plan.stride - output_stride), output_stride)
    return shifted.upsampled(kernel, output_stride).offset(found["data"])
