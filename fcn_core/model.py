"""The fully convolutional networks of the paper, layer by layer, under the paper's names.

Shape suffixes: B batch, C channel, K class, H height px, W width px.

Source: Long, Shelhamer, Darrell 2015, sections 3-4; net.py and the prototxt files of
shelhamer/fcn.berkeleyvision.org (pads, crops, layer names). Deviations:

- The deconvolutions are fixed to bilinear interpolation, as in the reference code (lr_mult 0); the
  paper learns the two 2x ones. Their dense K x K weight is diagonal, so that here each class is
  upsampled on its own (`groups=K`), which gives the same numbers.
- Trunks narrower than VGG-16 (`width` < 1) are this project's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

Variant = Literal["fcn32s", "fcn16s", "fcn8s", "fcn8s-atonce"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

PAD = 100
"""conv1_1 pads 100 px, so that every input from 1x1 up leaves at least one cell after fc6 (7x7)."""

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""VGG-16: (channels, convolutions) of each block; a 2x2 pool of stride 2 follows each."""

FC_CHANNELS = 4096

# Where the finer side is cropped, in its own pixels (net.py; follows from the pads and strides by
# caffe.coord_map, and is the same for every input size).
CROP_UPSCORE = {"fcn32s": 19, "fcn16s": 27, "fcn8s": 31, "fcn8s-atonce": 31}
CROP_POOL4 = 5
CROP_POOL3 = 9

# net.py of voc-fcn8s-atonce: fixed Scale layers before the skip scores.
ATONCE_SCALE_POOL4 = 0.01
ATONCE_SCALE_POOL3 = 0.0001


@dataclass(frozen=True)
class Architecture:
    """What decides the shapes of a network's weights, and how its layers are joined.

    Attributes:
        variant: one of `VARIANTS`. A staged and an at-once FCN-8s have the same shapes.
        num_classes: K.
        width: multiplies every channel count of the trunk (1.0 = VGG-16).
    """

    variant: Variant
    num_classes: int
    width: float = 1.0

    def channels(self, full: int) -> int:
        """Channels of a layer that has `full` in VGG-16."""
        return max(1, round(full * self.width))


def bilinear_kernel(size: int) -> Tensor:
    """(size, size) float32 weights of bilinear upsampling by `(size + 1) // 2`.

    Source: surgery.upsample_filt: with f the factor and c the centre,
    w[i, j] = (1 - |i - c| / f) (1 - |j - c| / f).
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    # On the CPU also inside `torch.device("meta")`: the kernel is not loaded from a file.
    cells = torch.arange(size, dtype=torch.float64, device="cpu")
    line = 1 - (cells - centre).abs() / factor
    return torch.outer(line, line).to(torch.float32)


class Upscore(nn.Module):
    """Fixed bilinear deconvolution, class by class: (B, K, H, W) to (B, K, sH + s, sW + s)."""

    kernel: Tensor

    def __init__(self, num_classes: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        weight = bilinear_kernel(2 * stride).repeat(num_classes, 1, 1, 1)
        # Not saved: a function of the architecture.
        self.register_buffer("kernel", weight, persistent=False)

    def forward(self, score_BKHW: Tensor) -> Tensor:
        """(B, K, sH + s, sW + s) from (B, K, H, W), s being the stride."""
        return F.conv_transpose2d(
            score_BKHW, self.kernel, stride=self.stride, groups=self.kernel.shape[0]
        )


class FCN(nn.Module):
    """FCN-32s, -16s, -8s or -8s at-once on a VGG-16 trunk.

    Any input of 1x1 pixels and up gives logits of exactly its size: the pads, the ceil-mode pools
    and the constant crops fit together for every height and width.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = arch = architecture
        classes = arch.num_classes
        inputs = 3
        for block, (full, depth) in enumerate(BLOCKS, start=1):
            for index in range(1, depth + 1):
                first = block == index == 1
                outputs = arch.channels(full)
                conv = nn.Conv2d(inputs, outputs, 3, padding=PAD if first else 1)
                self.add_module(f"conv{block}_{index}", conv)
                inputs = outputs
        hidden = arch.channels(FC_CHANNELS)
        self.fc6 = nn.Conv2d(inputs, hidden, 7)
        self.fc7 = nn.Conv2d(hidden, hidden, 1)
        # Elementwise, as Caffe's (pytorch-fcn drops whole channels).
        self.dropout = nn.Dropout(0.5)
        self.score_fr = nn.Conv2d(hidden, classes, 1)
        if arch.variant == "fcn32s":
            self.upscore = Upscore(classes, 32)
        else:
            self.upscore2 = Upscore(classes, 2)
            self.score_pool4 = nn.Conv2d(arch.channels(BLOCKS[3][0]), classes, 1)
        if arch.variant == "fcn16s":
            self.upscore16 = Upscore(classes, 16)
        if arch.variant in ("fcn8s", "fcn8s-atonce"):
            self.upscore_pool4 = Upscore(classes, 2)
            self.score_pool3 = nn.Conv2d(arch.channels(BLOCKS[2][0]), classes, 1)
            self.upscore8 = Upscore(classes, 8)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Weights to start training from nothing.

        He initialisation in the trunk (VGG's own needs pretraining); scores start at zero (paper
        section 4.3: "zero-initialize the class scoring layer"), so that a skip begins by adding
        nothing.
        """
        for name, layer in self.named_children():
            if isinstance(layer, nn.Conv2d):
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
                if name.startswith("score"):
                    nn.init.zeros_(layer.weight)
                else:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Logits.

        Args:
            image_BCHW: preprocessed pixels, float, H and W at least 1.

        Returns:
            (B, K, H, W) in the dtype of the computation.
        """
        height, width = image_BCHW.shape[-2:]
        pool3, pool4, score = self._score_fr(image_BCHW)
        variant = self.architecture.variant
        if variant == "fcn32s":
            return _crop(self.upscore(score), CROP_UPSCORE[variant], height, width)
        upscore2 = self.upscore2(score)
        atonce = variant == "fcn8s-atonce"
        score_pool4 = self.score_pool4(pool4 * ATONCE_SCALE_POOL4 if atonce else pool4)
        fuse_pool4 = upscore2 + _crop(score_pool4, CROP_POOL4, *upscore2.shape[-2:])
        if variant == "fcn16s":
            return _crop(self.upscore16(fuse_pool4), CROP_UPSCORE[variant], height, width)
        upscore_pool4 = self.upscore_pool4(fuse_pool4)
        score_pool3 = self.score_pool3(pool3 * ATONCE_SCALE_POOL3 if atonce else pool3)
        fuse_pool3 = upscore_pool4 + _crop(score_pool3, CROP_POOL3, *upscore_pool4.shape[-2:])
        return _crop(self.upscore8(fuse_pool3), CROP_UPSCORE[variant], height, width)

    def _score_fr(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(pool3, pool4, score_fr)."""
        pools = []
        for block, (_, depth) in enumerate(BLOCKS, start=1):
            for index in range(1, depth + 1):
                x_BCHW = F.relu(self.get_submodule(f"conv{block}_{index}")(x_BCHW), inplace=True)
            # Caffe rounds the size of a pool up; floor breaks the crops for 1139 of 2999 sizes.
            x_BCHW = F.max_pool2d(x_BCHW, 2, 2, ceil_mode=True)
            pools.append(x_BCHW)
        x_BCHW = self.dropout(F.relu(self.fc6(x_BCHW)))
        x_BCHW = self.dropout(F.relu(self.fc7(x_BCHW)))
        return pools[2], pools[3], self.score_fr(x_BCHW)


def _crop(x_BCHW: Tensor, offset: int, height: int, width: int) -> Tensor:
    return x_BCHW[..., offset : offset + height, offset : offset + width]
