"""Optimizer steps of a training: forward and backward pass, loss, and update.

A step depends only on the weights, the optimizer's state, the images and (seed, step): dropout
draws the mask of an image from its position in the step. So an interrupted training continues as if
it had not stopped, and any number of processes that share the images of a step learn the same, up
to rounding of sums.

Shape suffixes: B batch, C channel, K class, H height px, W width px.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from fcn_core.errors import TrainingError, WeightsError
from fcn_core.labels import VOID
from fcn_core.networks.model import FCN
from fcn_core.training.batch import TrainingBatch
from fcn_core.training.recipes import Recipe

TrainPrecision = Literal["fp32", "bf16"]


class ProcessGroup(Protocol):
    """The processes that share the images of every step, seen from one of them."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap a model so that gradients are averaged over all processes."""
        ...

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """Accumulate gradients locally, until the next backward pass outside this context."""
        ...

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum each value over all processes, in float64."""
        ...


class SingleProcess:
    """A group of one process."""

    rank = 0
    size = 1

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model unchanged."""
        return model

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """Return a context that does nothing."""
        return nullcontext()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the values as floats."""
        return [float(value) for value in values]


@dataclass(frozen=True)
class StepPlan:
    """Settings that all steps of a training stage share.

    Attributes:
        recipe: Optimizer, loss and schedule.
        max_steps: Number of steps of the stage.
        seed: Seed of dropout.
        precision: Precision of the forward pass; weights, loss and updates are always float32.
    """

    recipe: Recipe
    max_steps: int
    seed: int = 0
    precision: TrainPrecision = "fp32"


@dataclass(frozen=True)
class StepResult:
    """The result of one step.

    Attributes:
        number: Step number in the stage, from 1.
        loss: Mean cross-entropy per labeled pixel before the update, nats; 0 without labeled
            pixels. A mean also for recipes with a summed loss, so that recipes can be compared.
        learning_rate: Learning rate of weights in the update.
        labeled_pixels: Number of pixels that had a class.
    """

    number: int
    loss: float
    learning_rate: float
    labeled_pixels: int


class SampleDropout(nn.Module):
    """Elementwise dropout whose mask for an image depends only on the seed of that image."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self._generators: list[torch.Generator] = []

    def begin(self, seeds: Sequence[int], device: torch.device) -> None:
        """Set the seeds of the images of the next forward pass."""
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Drop elements and divide the others by 1 - p; in eval mode, return the input."""
        if not self.training or self.p == 0:
            return x_BCHW
        keep_BCHW = torch.empty_like(x_BCHW)
        for keep_CHW, generator in zip(keep_BCHW, self._generators, strict=True):
            keep_CHW.bernoulli_(1 - self.p, generator=generator)
        return x_BCHW * keep_BCHW / (1 - self.p)


class Learner:
    """Train a network in place, step by step.

    Args:
        model: Network in float32. Its dropout is replaced, and it is moved to the device.
        plan: Settings shared by all steps.
        device: "cpu", "cuda" or "cuda:1".
        group: Processes that train together. Default: this one only.
    """

    def __init__(
        self, model: FCN, plan: StepPlan, device: str = "cpu", group: ProcessGroup | None = None
    ) -> None:
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.plan = plan
        self.device = torch.device(device)
        self.group = SingleProcess() if group is None else group
        self.dropout = SampleDropout(plan.recipe.dropout)
        model.dropout = self.dropout  # type: ignore[assignment]  # both are modules
        self.optimizer = _optimizer(self.model, plan.recipe)
        self._rate = plan.recipe.base_rate(model.architecture)
        self._wrapped = self.group.wrap(self.model)

    def learn(self, number: int, batches: Sequence[TrainingBatch]) -> StepResult:
        """Do one optimizer step.

        Args:
            number: Step number, from 1.
            batches: This process's part of the images of the step.

        Raises:
            TrainingError: A loss or gradient that is not finite; the weights are then unchanged.
        """
        self.model.train()
        recipe, group = self.plan.recipe, self.group
        labeled = group.sum([sum(batch.labeled_pixels for batch in batches)])[0]
        # The group averages gradients; multiplied by its size, they are sums.
        scale = group.size / (max(labeled, 1) if recipe.loss == "mean" else recipe.batch_size)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        for index, batch in enumerate(batches):
            is_last = index == len(batches) - 1
            with nullcontext() if is_last else group.no_sync(self._wrapped):
                loss = self._loss(number, batch)
                torch.autograd.backward(loss * scale)
                total += loss.detach()
        mean = group.sum([float(total)])[0] / max(labeled, 1)
        if not math.isfinite(mean):
            raise _diverged(number, f"the loss is {mean}")
        factor = recipe.schedule(number, self.plan.max_steps)
        self._update(number, factor)
        return StepResult(number, mean, self._rate * factor, int(labeled))

    def check_is_finite(self, number: int) -> None:
        """Check that no weight is NaN or infinite.

        Raises:
            TrainingError: A parameter that is not finite; the message names it.
        """
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise _diverged(number, f"{name} holds NaN or infinity")

    def _loss(self, number: int, batch: TrainingBatch) -> Tensor:
        """Compute the cross-entropy, summed over labeled pixels, in float32."""
        seeds = [_seed(self.plan.seed, number, slot) for slot in batch.slots]
        self.dropout.begin(seeds, self.device)
        low = self.plan.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            logits_BKHW = self._wrapped(batch.image.to(self.device, non_blocking=True))
        label_BHW = batch.label.to(self.device, non_blocking=True)
        return summed_cross_entropy(logits_BKHW, label_BHW)

    def _update(self, number: int, factor: float) -> None:
        recipe = self.plan.recipe
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(norm):
            raise _diverged(number, f"the norm of the gradients is {float(norm)}")
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate * factor * group["rate"]
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), recipe.clip_norm, norm)
        self.optimizer.step()

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's state on the CPU: "conv1_1.weight.momentum_buffer", …."""
        return {
            f"{name}.{key}": value.detach().to("cpu").contiguous()
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
            if isinstance(value, Tensor)
        }

    def load_optimizer(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Restore the state that `optimizer_tensors` returned.

        Raises:
            WeightsError: State of another network or another optimizer.
        """
        parameters = dict(self.model.named_parameters())
        for full, value in tensors.items():
            name, _, key = full.rpartition(".")
            fits = name in parameters and value.shape in ((), parameters[name].shape)
            if not fits:
                raise WeightsError(
                    where=where,
                    found=f"optimizer state {full} of shape {tuple(value.shape)}",
                    expected="the optimizer state of this network",
                    remedy="Train into a new directory.",
                )
            # AdamW keeps its step counter on the CPU.
            device = "cpu" if key == "step" else self.device
            self.optimizer.state[parameters[name]][key] = value.to(device)


def summed_cross_entropy(logits_BKHW: Tensor, label_BHW: Tensor) -> Tensor:
    """Compute the cross-entropy, summed over labeled pixels, in float32; 0 if there are none.

    Args:
        logits_BKHW: Logits of any float dtype.
        label_BHW: int64 in [0, K), or 255 for pixels that are ignored.
    """
    return F.cross_entropy(logits_BKHW.float(), label_BHW, ignore_index=VOID, reduction="sum")


def _diverged(number: int, found: str) -> TrainingError:
    return TrainingError(
        where=f"training, step {number}", found=found, expected="finite numbers",
        remedy="Lower the learning rate (--set train.learning_rate=…, first to a tenth), or "
        "lengthen the warm-up; if the same sample fails every time, inspect it. The same command "
        "repeats the same steps: train into a new directory, with --init from the last checkpoint.",
    )  # fmt: skip


def _seed(seed: int, number: int, slot: int) -> int:
    return int(np.random.SeedSequence([seed, number, slot]).generate_state(1)[0])


def _optimizer(model: FCN, recipe: Recipe) -> torch.optim.Optimizer:
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": recipe.weight_decay, "rate": 1.0},
        {"params": biases, "weight_decay": 0.0, "rate": recipe.bias_rate},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, momentum=recipe.momentum)
