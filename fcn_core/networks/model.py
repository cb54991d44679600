"""The fully convolutional networks of the paper, layer by layer, under the paper's names.

Shape suffixes: B batch, C channel, K class, H height px, W width px.

Source: Long, Shelhamer, Darrell 2015, sections 3-4; net.py and the prototxt files of
shelhamer/fcn.berkeleyvision.org (pads, crops, layer names). Deviations:

- The deconvolutions are fixed to bilinear interpolation unless the architecture says "learned", as
  in the reference code (lr_mult 0); the paper learns the two 2x ones.
- Trunks narrower than published (`width` < 1), FCN-GoogLeNet's pad and crop, and dilation are this
  project's (docs/networks.md).
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
"""Trunks of a net that has several: the suffix of their layers, and the channels each reads."""


class FCN(nn.Module):
    """Any network of `Architecture`.

    Any input of 1x1 pixels and up gives logits of exactly its size: the pads, the ceil-mode pools
    and the constant crops fit together for every height and width.
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
        # Elementwise, as Caffe's (pytorch-fcn drops whole channels). GoogLeNet has 0.4.
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
        """Weights to start training from nothing.

        He initialisation in the trunk (VGG's own needs pretraining); scores start at zero (paper
        section 4.3: "zero-initialize the class scoring layer"), so that a skip begins by adding
        nothing; learned deconvolutions start bilinear.
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
        """Logits of one head.

        Args:
            image_BCHW: preprocessed pixels, float, H and W at least 1; 4 channels for early fusion
                (BGR, log-depth), 6 for late fusion (BGR, HHA).
            head: its name, for a net with several. Default: the first.

        Returns:
            (B, K, H, W) in the dtype of the computation.
        """
        head = next(iter(self.architecture.head_classes)) if head is None else head
        score_BKHW = self._fused(self._features(image_BCHW), head)
        return self.upscored(score_BKHW, head, *image_BCHW.shape[-2:])

    def forward_heads(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        """Logits (B, K, H, W) of every head, by its name, for one pass through the trunk."""
        features = self._features(image_BCHW)
        size = image_BCHW.shape[-2:]
        return {
            head: self.upscored(self._fused(features, head), head, *size)
            for head in self.architecture.head_classes
        }

    def with_output_stride(self, output_stride: int) -> FCN:
        """This network with denser (or coarser) scores: the same parameters, shared.

        Raises:
            WeightsError: the variant cannot be dilated, or its upsampling is learned, whose
                kernels fit one stride only.
        """
        own = self.architecture
        if own.upsampling != "fixed" and output_stride != own.output_stride:
            raise WeightsError(
                where="network",
                found=f"learned upsampling of stride {own.output_stride}",
                expected=f"fixed upsampling, to have output stride {output_stride}",
                remedy="Use it at its own stride, or train at the other.",
            )
        model = FCN(replace(own, output_stride=output_stride))
        model.load_state_dict(self.state_dict(keep_vars=True), assign=True)
        return model.train(self.training)

    def coarse_score(self, image_BCHW: Tensor, head: str | None = None) -> Tensor:
        """(B, K, h, w): the scores before the last deconvolution, one cell per its stride."""
        head = next(iter(self.architecture.head_classes)) if head is None else head
        return self._fused(self._features(image_BCHW), head)

    def _features(self, image_BCHW: Tensor) -> list[dict[str, Tensor]]:
        """Per trunk: the pools that skips need, and the last layer."""
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
        """(B, K, h, w): the coarse scores joined by the skips."""
        suffix, last = head_suffix(head), self.layers[-1].name
        scores = [
            self.get_submodule(f"score_fr{stream}{suffix}")(found[last])
            for stream, found in zip(self.streams, features, strict=True)
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

    def upscored(self, score_BKHW: Tensor, head: str, height: int, width: int) -> Tensor:
        """(B, K, height, width): the last deconvolution, cropped to the image."""
        name, stride = self.plan.upscore, self.plan.stride
        offset = self.crops[name]
        if offset < 0:
            # The grid of a dilated net begins within the image: its first cells go on outwards.
            missing = -(offset // stride)
            score_BKHW = F.pad(score_BKHW, (missing, 0, missing, 0), mode="replicate")
            offset += missing * stride
        return _crop(
            self.get_submodule(name + head_suffix(head))(score_BKHW), offset, height, width
        )


def head_suffix(head: str) -> str:
    """What the names of a head's layers end with."""
    return f"_{head}" if head else ""


def _crop(x_BCHW: Tensor, offset: int, height: int, width: int) -> Tensor:
    return x_BCHW[..., offset : offset + height, offset : offset + width]
