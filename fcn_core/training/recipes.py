"""Training recipes: all settings that decide how a network learns, by name.

`heavy`, `accum` and `online` are the three training modes of the paper's authors. `modern` is this
project's recipe for training from scratch. docs/training.md compares them in a table.

Sources: solver.prototxt, solve.py and net.py of shelhamer/fcn.berkeleyvision.org; Long, Shelhamer,
Darrell 2015, section 4.3. The authors published only solvers of `heavy`, and one of FCN-AlexNet,
which accumulates 20 images. Here, `accum` and `online` are the heavy solver with the batch size and
momentum of their descriptions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fcn_core.networks.architecture import Architecture, Variant

REFERENCE_WIDTH = 1 / 8
"""The width for which the learning rate of `modern` is given; see `Recipe.rate_by_width`."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of an image and its label before training.

    Attributes:
        crop: Side of the square crop, px; smaller images are padded with the mean color, and their
            labels with void. None: the whole image, in its own size.
        scale: Smallest and largest scale factor before cropping; needs a crop.
        flip: Whether half of the images are mirrored left to right.
        jitter: Largest relative change of contrast, and of each channel's brightness; 0 for none.
    """

    crop: int | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    jitter: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """Settings of a training. Learning rates are those of weights; biases multiply them.

    Attributes:
        name: Name of the recipe in commands.
        optimizer: "sgd" (with momentum, as in Caffe) or "adamw".
        learning_rate: Learning rate after the warm-up.
        stage_rates: Learning rates of the variants that have their own.
        rate_by_width: Whether the learning rate is that of a trunk of width 1/8 and other widths
            multiply it by 1/8 / width: the best rate of Adam is proportional to one over the width
            (Yang et al. 2022, Tensor Programs V).
        momentum: Momentum of SGD.
        batch_size: Images per step. Images of one crop size share a forward pass; whole images are
            passed one by one, and their gradients are summed (Caffe's iter_size).
        loss: "sum": cross-entropy summed over the labeled pixels of an image, then averaged over
            the images (Caffe's normalize: false). "mean": mean over all labeled pixels of a batch.
        weight_decay: Weight decay of weights; biases have none.
        bias_rate: Factor of the learning rate of biases (Caffe's lr_mult).
        warmup_steps: Steps over which the rate rises linearly from near zero; at most a tenth of
            all steps.
        power: After the warm-up, the rate falls as (1 - progress) ** power; 0 keeps it constant.
        clip_norm: Largest norm of the gradient; longer ones are scaled down. None for no limit.
            Without batch normalization, a single step could otherwise destroy a new network.
        dropout: Dropout probability at fc6 and fc7, elementwise.
        augmentation: Random changes of the images.
        max_steps: Default number of optimizer steps of a stage.
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
        """Return the learning rate of a network's weights, before the schedule."""
        rate = self.stage_rates.get(architecture.variant, self.learning_rate)
        return rate * REFERENCE_WIDTH / architecture.width if self.rate_by_width else rate

    def schedule(self, step: int, max_steps: int) -> float:
        """Return the factor of the learning rate at a step.

        Args:
            step: Step number in the stage, from 1.
            max_steps: Number of steps of the stage.
        """
        warmup = min(self.warmup_steps, max_steps // 10)
        if step <= warmup:
            return step / warmup
        return float((1 - (step - 1 - warmup) / (max_steps - warmup)) ** self.power)


_STAGES: Mapping[Variant, float] = {"fcn16s": 1e-12, "fcn8s": 1e-14}


HEAVY = Recipe("heavy", "sgd", 1e-10, _STAGES, momentum=0.99)
"""One image per step, high momentum. Source: solver.prototxt of voc-fcn32s, 16s, 8s, 8s-atonce."""


ONLINE = Recipe("online", "sgd", 1e-10, _STAGES, momentum=0.9)
"""One image per step; the heavy solver with the paper's momentum."""


ACCUM = Recipe("accum", "sgd", 1e-10, _STAGES, momentum=0.9, batch_size=20)
"""Gradients of 20 images per step, as in the paper (minibatch 20, momentum 0.9)."""


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
"""AdamW, warm-up, polynomial decay, and crops of scaled, mirrored images: trains from scratch."""


RECIPES: Mapping[str, Recipe] = {r.name: r for r in (HEAVY, ACCUM, ONLINE, MODERN)}
"""Recipes by the names that commands accept."""
