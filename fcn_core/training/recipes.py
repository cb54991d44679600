"""Recipes: everything that decides how a network learns, under names that can be looked up.

`heavy`, `accum` and `online` are the three regimes of the authors, `modern` is this project's, for
networks that start from nothing. docs/training.md has them as a table.

Sources: solver.prototxt, solve.py and net.py of shelhamer/fcn.berkeleyvision.org; Long, Shelhamer,
Darrell 2015, section 4.3. The authors published solvers of `heavy` alone, and of FCN-AlexNet, which
accumulates 20 images; `accum` and `online` are heavy's solver with the batch and the momentum of
their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fcn_core.networks.architecture import Architecture, Variant

REFERENCE_WIDTH = 1 / 8
"""The width at which the rate of `modern` holds; see `Recipe.rate_by_width`."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to an image, and to its label with it, before the network sees them.

    Attributes:
        crop: side of the square that is cut out, px; smaller images are filled up with the mean
            colour, and their labels with void. None: the whole image, in its own size.
        scale: least and greatest factor by which it is enlarged first; needs a crop.
        flip: whether half of them are mirrored left to right.
        jitter: largest relative change of contrast, and of each channel's brightness; 0 for none.
    """

    crop: int | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    jitter: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How to train. All rates are those of weights; biases have `bias_rate` times as much.

    Attributes:
        name: how commands name it.
        optimizer: "sgd" (with momentum, as Caffe's) or "adamw".
        learning_rate: after the warm-up.
        stage_rates: the rates of those variants that have their own.
        rate_by_width: whether the rate is that of a trunk of width 1/8, and others have it times
            1/8 / width: Adam's best rate goes with one over the width (Yang et al. 2022, Tensor
            Programs V).
        momentum: of SGD.
        batch_size: images per step. Those of one crop size share a forward pass; whole images
            go one by one, and their gradients are summed up (Caffe's iter_size).
        loss: "sum": cross-entropy summed over the labeled pixels of an image, then averaged over
            the images (Caffe's normalize: false). "mean": over all labeled pixels of the batch.
        weight_decay: of weights; biases have none.
        bias_rate: Caffe's lr_mult of biases.
        warmup_steps: over which the rate rises linearly from near zero; never more than a tenth of
            all steps.
        power: the rate then falls as (1 - progress) ** power; 0 keeps it.
        clip_norm: longest gradient, longer ones are shortened; None for any. Without batch
            normalisation single steps can otherwise throw a new network back to nothing.
        dropout: probability at fc6 and fc7, elementwise.
        augmentation: see there.
        max_steps: optimizer steps of a stage, unless told otherwise.
    """

    name: str
    optimizer: Literal["sgd", "adamw"]
    learning_rate: float
    stage_rates: Mapping[Variant, float] = field(default_factory=dict)
    rate_by_width: bool = False
    momentum: float = 0.9
    batch_size: int = 1
    loss: Literal["sum", "mean"] = "sum"
    weight_decay: float = 5e-4
    bias_rate: float = 2.0
    warmup_steps: int = 0
    power: float = 0.0
    clip_norm: float | None = None
    dropout: float = 0.5
    augmentation: Augmentation = Augmentation()
    max_steps: int = 100_000

    def base_rate(self, architecture: Architecture) -> float:
        """The learning rate of a network's weights, before the schedule."""
        rate = self.stage_rates.get(architecture.variant, self.learning_rate)
        return rate * REFERENCE_WIDTH / architecture.width if self.rate_by_width else rate

    def schedule(self, step: int, max_steps: int) -> float:
        """What the rate is multiplied by.

        Args:
            step: of the stage, counted from 1.
            max_steps: of the stage.
        """
        warmup = min(self.warmup_steps, max_steps // 10)
        if step <= warmup:
            return step / warmup
        return float((1 - (step - 1 - warmup) / (max_steps - warmup)) ** self.power)


_STAGES: Mapping[Variant, float] = {"fcn16s": 1e-12, "fcn8s": 1e-14}


HEAVY = Recipe("heavy", "sgd", 1e-10, _STAGES, momentum=0.99)
"""One image a step, high momentum. Source: solver.prototxt of voc-fcn32s, 16s, 8s, 8s-atonce."""


ONLINE = Recipe("online", "sgd", 1e-10, _STAGES, momentum=0.9)
"""One image a step; heavy's solver with the momentum of the paper."""


ACCUM = Recipe("accum", "sgd", 1e-10, _STAGES, momentum=0.9, batch_size=20)
"""Gradients of 20 images a step, as in the paper (minibatch 20, momentum 0.9)."""


MODERN = Recipe(
    "modern",
    "adamw",
    1e-3,
    rate_by_width=True,
    batch_size=8,
    loss="mean",
    weight_decay=1e-4,
    bias_rate=1.0,
    warmup_steps=200,
    power=0.9,
    clip_norm=1.0,
    dropout=0.1,
    augmentation=Augmentation(crop=320, scale=(0.75, 1.5), flip=True, jitter=0.1),
    max_steps=20_000,
)
"""AdamW, warm-up and polynomial decay, crops of enlarged, mirrored images: from nothing."""


RECIPES: Mapping[str, Recipe] = {r.name: r for r in (HEAVY, ACCUM, ONLINE, MODERN)}
"""By the names under which commands find them."""
