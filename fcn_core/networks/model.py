"""`FCN`: the fully convolutional networks of the paper as torch modules.

Layers have the paper's names. Shape suffixes: B batch, C channel, K class, H height px, W width px.

Source: Long, Shelhamer, Darrell 2015, sections 3-4; net.py and the prototxt files of
shelhamer/fcn.berkeleyvision.org (pads, crops, layer names). Deviations:

- Deconvolutions are fixed to bilinear interpolation unless the architecture says "learned", as in
  the reference code (lr_mult 0); the paper learns the two 2x ones.
- Narrower trunks (`width` < 1), the pad and crop of FCN-GoogLeNet, and dilation are additions of
  this project (docs/networks.md).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from fcn_core.errors import WeightsError
from fcn_core.networks import trunks
from fcn_core.networks.architecture import Architecture
from fcn_core.networks.crops import crops
from fcn_core.networks.layers import decoder, trunk
from fcn_core.networks.upsampling import Upscore

STREAMS = {"fcn32s-color-hha": {"color": 3, "hha": 3}}
"""Networks with several trunks: the suffix of each trunk's layers, and its input channels."""


class FCN(nn.Module):
    """A network of any `Architecture`.

    An input of any size from 1x1 px up gives logits of exactly that size: pads, ceil-mode pools and
    constant crops fit together for every height and width.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.plan = decoder(architecture)
        self.crops = crops(architecture)
        self.layers = trunk(architecture)
        self.streams = STREAMS.get(architecture.variant, {"": architecture.input_channels})
        for stream, inputs in self.streams.items():
            for name, module in trunks.modules(self.layers, architecture, inputs):
                self.add_module(name + stream, module)
        # Elementwise, as in Caffe (pytorch-fcn drops whole channels). GoogLeNet uses 0.4.
        self.dropout = nn.Dropout(0.4 if architecture.variant == "fcn-googlenet32s" else 0.5)
        for head, classes in architecture.head_classes.items():
            self._add_decoder(head_suffix(head), classes)

    def _add_decoder(self, suffix: str, classes: int) -> None:
        def score(layer: str) -> nn.Conv2d:
            channels = trunks.output_channels(self.layers, self.architecture, layer)
            return nn.Conv2d(channels, classes, 1)

        learned = self.architecture.upsampling == "learned"
        for stream in self.streams:
            self.add_module(f"score_fr{stream}{suffix}", score(self.layers[-1].name))
        for skip in self.plan.skips:
            self.add_module(skip.upscore + suffix, Upscore(classes, 2, learned=learned))
            self.add_module(skip.score + suffix, score(skip.pool))
        last = Upscore(classes, self.plan.stride, self.plan.kernel, learned=learned)
        self.add_module(self.plan.upscore + suffix, last)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Set initial weights for training from scratch.

        The trunk gets He initialization (VGG's original one needs pretraining). Scores start at
        zero (paper section 4.3: "zero-initialize the class scoring layer"), so that a new skip adds
        nothing at first. Learned deconvolutions start bilinear.
        """
        for name, layer in self.named_children():
            if isinstance(layer, Upscore):
                layer.reset_parameters()
            elif isinstance(layer, nn.Conv2d):
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
                if name.startswith("score"):
                    nn.init.zeros_(layer.weight)
                else:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)

    def forward(self, image_BCHW: Tensor, head: str | None = None) -> Tensor:
        """Compute the logits of one head.

        Args:
            image_BCHW: Preprocessed pixels, float, H and W at least 1; 4 channels for early fusion
                (BGR, log-depth), 6 for late fusion (BGR, HHA).
            head: Name of the head, for a network with several. Default: the first.

        Returns:
            (B, K, H, W) in the dtype of the computation.
        """
        head = next(iter(self.architecture.head_classes)) if head is None else head
        score_BKHW = self._fused(self._features(image_BCHW), head)
        return self.upsample_scores(score_BKHW, head, *image_BCHW.shape[-2:])

    def forward_heads(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        """Compute the logits (B, K, H, W) of every head, by name, in one pass through the trunk."""
        features = self._features(image_BCHW)
        size = image_BCHW.shape[-2:]
        return {
            head: self.upsample_scores(self._fused(features, head), head, *size)
            for head in self.architecture.head_classes
        }

    def with_output_stride(self, output_stride: int) -> FCN:
        """Return a network with denser or coarser scores that shares these parameters.

        Raises:
            WeightsError: A variant that cannot be dilated, or learned upsampling, whose kernels fit
                one stride only.
        """
        own = self.architecture
        if own.upsampling != "fixed" and output_stride != own.output_stride:
            raise WeightsError(
                where="network",
                found=f"learned upsampling of stride {own.output_stride}",
                expected=f"fixed upsampling, which output stride {output_stride} needs",
                remedy="Use the stride of the network, or train a network at the other stride.",
            )
        model = FCN(replace(own, output_stride=output_stride))
        model.load_state_dict(self.state_dict(keep_vars=True), assign=True)
        return model.train(self.training)

    def coarse_score(self, image_BCHW: Tensor, head: str | None = None) -> Tensor:
        """Compute the scores before the last deconvolution, (B, K, h, w), one cell per stride."""
        head = next(iter(self.architecture.head_classes)) if head is None else head
        return self._fused(self._features(image_BCHW), head)

    def _features(self, image_BCHW: Tensor) -> list[dict[str, Tensor]]:
        """Return, per trunk, the pools that skips need and the output of the last layer."""
        pools = [skip.pool for skip in self.plan.skips]
        parts = torch.split(image_BCHW, list(self.streams.values()), dim=1)
        return [
            trunks.features(
                self.layers,
                lambda name, stream=stream: self.get_submodule(name + stream),  # type: ignore[misc]
                self.dropout,
                part_BCHW,
                pools,
            )
            for stream, part_BCHW in zip(self.streams, parts, strict=True)
        ]

    def _fused(self, features: list[dict[str, Tensor]], head: str) -> Tensor:
        """Return the coarse scores (B, K, h, w) with all skips added."""
        suffix, last = head_suffix(head), self.layers[-1].name
        scores = [
            self.get_submodule(f"score_fr{stream}{suffix}")(outputs[last])
            for stream, outputs in zip(self.streams, features, strict=True)
        ]
        # Late fusion: score_fused = 0.5 color + 0.5 hha (net.py; the paper says sum).
        fused: Tensor = scores[0] if len(scores) == 1 else sum(scores) / len(scores)
        for skip in self.plan.skips:
            fused = self.get_submodule(skip.upscore + suffix)(fused)
            pool = features[0][skip.pool]
            pool = pool if skip.scale == 1 else pool * skip.scale
            finer = self.get_submodule(skip.score + suffix)(pool)
            fused = fused + _crop(finer, self.crops[skip.score], *fused.shape[-2:])
        return fused

    def upsample_scores(self, score_BKHW: Tensor, head: str, height: int, width: int) -> Tensor:
        """Apply the last deconvolution and crop to the image: (B, K, height, width)."""
        name, stride = self.plan.upscore, self.plan.stride
        offset = self.crops[name]
        if offset < 0:
            # The grid of a dilated network starts inside the image: repeat its first cells.
            missing = -(offset // stride)
            score_BKHW = F.pad(score_BKHW, (missing, 0, missing, 0), mode="replicate")
            offset += missing * stride
        return _crop(
            self.get_submodule(name + head_suffix(head))(score_BKHW), offset, height, width
        )


def head_suffix(head: str) -> str:
    """Return the suffix of a head's layer names."""
    return f"_{head}" if head else ""


def _crop(x_BCHW: Tensor, offset: int, height: int, width: int) -> Tensor:
    return x_BCHW[..., offset : offset + height, offset : offset + width]
