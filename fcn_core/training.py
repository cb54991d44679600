"""The recipe of the shipped demo weights, and the small trainer that made them.

`python -m fcn_core.training FILE` makes the demo weights from nothing and scores them. It is kept
as it was, because its bytes are published; `fcnseg train` (`fcn_core.training_learner`) trains
everything else.

Shape suffixes: B batch, C channel, K class, H height px, W width px.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fcn_core.architecture import Architecture
from fcn_core.checkpoint import WeightsFile, WeightsInfo, save_weights
from fcn_core.errors import FcnError, LabelError
from fcn_core.labels import SCENES, VOID
from fcn_core.metrics import ConfusionMatrix, Scores
from fcn_core.model import FCN
from fcn_core.predictor import Predictor
from fcn_core.preprocessing import CENTRED_RGB, Preprocessing
from fcn_core.scenes import render_scene, training_scenes
from fcn_core.training_batch import Sample, tensors
from fcn_core.training_learner import summed_cross_entropy


@dataclass(frozen=True)
class TrainSettings:
    """How to train. The defaults suit slim networks that start from nothing.

    Attributes:
        max_steps: optimizer steps.
        batch_size: crops per step.
        crop: side of the square cut out of each picture, px. Smaller pictures are filled up with
            the mean colour, and their labels with void.
        learning_rate: of AdamW, at the end of the warm-up.
        warmup_steps: over which the rate rises linearly from near zero.
        power: the rate then falls as (1 - progress) ** power.
        weight_decay: of AdamW, on weights only: biases have none, as in the reference code.
        clip_norm: longest gradient; longer ones are shortened. Without batch normalisation single
            steps can otherwise throw the network back to nothing.
        dropout: probability at fc6 and fc7; the paper has 0.5, but slim layers less to spare.
        flip: mirror half the crops left to right.
        jitter: largest relative change of contrast, and of each channel's brightness; 0 for none.
        seed: of crops, flips, jitter and dropout.
    """

    max_steps: int
    batch_size: int = 4
    crop: int = 224
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    power: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    dropout: float = 0.1
    flip: bool = True
    jitter: float = 0.1
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        progress = (step - 1 - self.warmup_steps) / (self.max_steps - self.warmup_steps)
        return self.learning_rate * float((1 - progress) ** self.power)


@dataclass(frozen=True)
class TrainStep:
    """A finished step.

    Attributes:
        number: counted from 1.
        loss: mean cross-entropy per labelled pixel, nats, before the step's update.
        learning_rate: of the update.
    """

    number: int
    loss: float
    learning_rate: float


def train(
    model: FCN,
    preprocessing: Preprocessing,
    samples: Iterable[Sample],
    settings: TrainSettings,
    on_step: Callable[[TrainStep], None] | None = None,
) -> None:
    """Train in place, on the model's device, and leave it in eval mode.

    Equal weights, samples, settings and thread counts give bitwise equal weights on one CPU.

    Args:
        model: starts from the weights it has (see `FCN.reset_parameters`), in float32.
        preprocessing: goes into the weights file with the result.
        samples: `max_steps` x `batch_size` are taken, in order.
        settings: the recipe.
        on_step: called after each step.

    Raises:
        FcnError: the loss is not finite, or the samples run out.
        LabelError: a label holds a value that is no class, or does not fit its image.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(_groups(model, settings.weight_decay))
    stream = _checked(samples, model.architecture.num_classes)
    rng = np.random.default_rng(settings.seed)
    model.train().to(memory_format=torch.channels_last)
    model.dropout.p = settings.dropout
    # Dropout draws from torch's global generator: seed it here, and hand the caller's back.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        for number in range(1, settings.max_steps + 1):
            crops = [_crop(*s, settings, rng) for s in islice(stream, settings.batch_size)]
            image_BCHW, label_BHW = _batch(crops, preprocessing, settings, number)
            loss = mean_cross_entropy(model(image_BCHW.to(device)), label_BHW.to(device))
            value = _finite(float(loss.detach()), number)
            _update(loss, optimizer, settings.rate(number), settings.clip_norm)
            if on_step is not None:
                on_step(TrainStep(number, value, settings.rate(number)))
    model.eval()


def _update(loss: Tensor, optimizer: torch.optim.Optimizer, rate: float, clip_norm: float) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    for group in optimizer.param_groups:
        group["lr"] = rate
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    optimizer.step()


def mean_cross_entropy(logits_BKHW: Tensor, label_BHW: Tensor) -> Tensor:
    """Mean over the labelled pixels of the whole batch, in float32; 0 where none is labelled.

    Args:
        logits_BKHW: any float dtype.
        label_BHW: int64 in [0, K) or 255, which counts for nothing.
    """
    return summed_cross_entropy(logits_BKHW, label_BHW) / (label_BHW != VOID).sum().clamp(min=1)


def _finite(loss: float, number: int) -> float:
    if not math.isfinite(loss):
        where, remedy = (
            f"training, step {number}",
            "Lower the learning rate, or look at the samples.",
        )
        raise FcnError(where, f"the loss is {loss}", "a finite number", remedy)
    return loss


def _groups(model: FCN, weight_decay: float) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]


def _checked(samples: Iterable[Sample], num_classes: int) -> Iterator[Sample]:
    """The samples, looked at before the loss meets them: a GPU would die without saying where."""
    for index, (image, label) in enumerate(samples):
        where = f"training sample {index}"
        if label.shape != image.shape[:2]:
            found = f"label is {label.shape}, image is {image.shape}"
            raise LabelError(where, found, "labels must match the image size", "Drop the sample.")
        highest = int(label.max(initial=0, where=label != VOID))
        if highest >= num_classes:
            expected = f"classes are 0-{num_classes - 1}, and {VOID} is void"
            remedy = "Use the label set that the labels were made with."
            raise LabelError(where, f"label value {highest}", expected, remedy)
        yield image, label


def _crop(
    image: NDArray[np.uint8],
    label: NDArray[np.uint8],
    settings: TrainSettings,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A random window of at most crop x crop, mirrored and jittered; pixels still RGB in 0-255."""
    side, jitter = settings.crop, settings.jitter
    top, left = (int(rng.integers(max(0, size - side), endpoint=True)) for size in label.shape)
    window = (slice(top, top + side), slice(left, left + side))
    pixels, label = image[window].astype(np.float32), label[window]
    if settings.flip and rng.random() < 0.5:
        pixels, label = pixels[:, ::-1], label[:, ::-1]
    if jitter > 0:
        contrast, *brightness = rng.uniform(-jitter, jitter, 4).astype(np.float32)
        pixels = pixels + contrast * (pixels - pixels.mean()) + 128 * np.array(brightness)
    return np.clip(pixels, 0, 255), label


def _batch(
    crops: Sequence[tuple[NDArray[np.float32], NDArray[np.uint8]]],
    preprocessing: Preprocessing,
    settings: TrainSettings,
    number: int,
) -> tuple[Tensor, Tensor]:
    """Float32 (B, 3, crop, crop), channels last, and int64 (B, crop, crop)."""
    if len(crops) < settings.batch_size:
        expected = f"{settings.max_steps} steps take {settings.max_steps * settings.batch_size}"
        remedy = "Repeat the samples, or train for fewer steps."
        raise FcnError(f"training, step {number}", "the samples have run out", expected, remedy)
    return tensors(crops, (settings.crop, settings.crop), preprocessing)


DEMO_SETTINGS = TrainSettings(
    max_steps=6000, batch_size=2, crop=320, learning_rate=3e-3, warmup_steps=200
)
DEMO_TEST_SEEDS = range(1_000_000, 1_000_200)
"""Scenes that score the demo weights; training takes seeds from 0 up and never comes near."""


def score_scenes(predictor: Predictor, seeds: Sequence[int]) -> Scores:
    """The scores on the scenes of those seeds, in the sizes that they draw."""
    confusion = ConfusionMatrix(SCENES.num_classes)
    for seed in seeds:
        scene = render_scene(seed)
        confusion.update(scene.label, predictor.predict([scene.image])[0].mask)
    return confusion.scores()


def make_demo_weights(
    settings: TrainSettings, on_step: Callable[[TrainStep], None] | None = None
) -> WeightsFile:
    """The demo weights, trained from nothing; their origin tells recipe, seeds and scores."""
    seeds = range(settings.max_steps * settings.batch_size)
    model = FCN(Architecture("fcn8s", SCENES.num_classes, 1 / 8))
    model.reset_parameters(torch.Generator().manual_seed(settings.seed))
    samples = ((s.image, s.label) for s in training_scenes(seeds, settings.crop))
    train(model, CENTRED_RGB, samples, settings, on_step)
    origin = {
        "settings": asdict(settings),
        "threads": torch.get_num_threads(),
        "train_seeds": [seeds[0], seeds[-1]],
        "test_seeds": [DEMO_TEST_SEEDS[0], DEMO_TEST_SEEDS[-1]],
    }
    info = WeightsInfo(model.architecture, SCENES, CENTRED_RGB, origin)
    # Scored as stored, that is after rounding to float16.
    stored = WeightsFile(save_weights(model, info, half=True), "demo weights")
    scores = score_scenes(Predictor.load(stored), DEMO_TEST_SEEDS).to_dict()
    info = replace(info, origin={**origin, "scores": scores})
    return WeightsFile(save_weights(model, info, half=True), "demo weights")


def main(argv: Sequence[str] | None = None) -> None:
    """Make the demo weights and print their scores."""
    parser = argparse.ArgumentParser(prog="python -m fcn_core.training", description=main.__doc__)
    parser.add_argument("file", type=Path, help="the weights file to write")
    path = parser.parse_args(argv).file
    torch.set_num_threads(2)  # part of the recipe: sums round by the number of threads
    losses: list[float] = []

    def report(step: TrainStep) -> None:
        losses.append(step.loss)
        if step.number % 50 == 0:
            print(f"step {step.number}: loss {np.mean(losses[-50:]):.4f}", file=sys.stderr)

    weights = make_demo_weights(DEMO_SETTINGS, report)
    path.write_bytes(weights.data)
    scores = weights.info.origin["scores"]
    print(f"pixel accuracy {scores['pixel_accuracy']:.4f}, mean IU {scores['mean_iou']:.4f}")
    for name, iou in zip(SCENES.classes, scores["iou"], strict=True):
        print(f"{name:<12} {iou:.4f}")
    print(f"{len(weights.data)} bytes, sha256 {weights.sha256}")


if __name__ == "__main__":
    main()
