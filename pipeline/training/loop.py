"""The training loop, from the last checkpoint to the last step, in each process of a training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from fcn_core.errors import TrainingError
from fcn_core.networks.model import FCN
from fcn_core.predictor import Predictor
from fcn_core.training.initialization import initialize_network, transplant
from fcn_core.training.learner import Learner, ProcessGroup, StepPlan, StepResult
from fcn_core.weights.weights_file import build, save_weights
from fcn_core.weights.weights_info import WeightsInfo
from pipeline.concurrency import prefetch
from pipeline.inputs.sample import Failure
from pipeline.storage.store import Store
from pipeline.text import list_names
from pipeline.training.checkpoint import Checkpoint, latest_checkpoint, write_checkpoint
from pipeline.training.data import Cursor, Share, Step, steps, stream
from pipeline.training.log import TrainLog
from pipeline.training.prepare import PreparedTraining
from pipeline.training.progress import TrainOutcome, TrainProgress
from pipeline.training.source import BadSamples
from pipeline.training.validation import ValidationRequest, validate

LAST = "last.safetensors"

BEST = "best.safetensors"

_NAMED = 20

_CURVES_SECONDS = 60.0

log = logging.getLogger("fcnseg")


@dataclass(frozen=True)
class TrainingHooks:
    """The environment of one training process.

    Attributes:
        output: store of the training's directory; only the first process writes, except overlays,
            which every process writes for its share.
        group: processes that train together.
        device: "cpu", "cuda" or "cuda:1".
        stop: whether to stop after the current step.
        on_progress: called after each line of metrics and each validation.
    """

    output: Store
    group: ProcessGroup
    device: str
    stop: Callable[[], bool]
    on_progress: Callable[[TrainProgress], None] = lambda _: None


class TrainingLoop:
    """The training loop of one process.

    Args:
        prepared: resolved settings of the training.
        hooks: environment of the process.
        bad: bad samples found by the label check; None if labels were not checked.
    """

    def __init__(
        self, prepared: PreparedTraining, hooks: TrainingHooks, bad: BadSamples | None = None
    ) -> None:
        self.prepared, self.hooks = prepared, hooks
        self.config = prepared.config.train
        self.recipe = prepared.config.recipe()
        self.is_first = hooks.group.rank == 0
        checkpoint = latest_checkpoint(hooks.output)
        self.step = checkpoint.step if checkpoint else 0
        self.cursor = checkpoint.cursor if checkpoint else Cursor()
        self.stage = max(self.step - 1, 0) // prepared.stage_steps
        self.learner = self._learner(checkpoint)
        self.log = TrainLog(hooks.output, self.step, prepared.labels) if self.is_first else None
        self.bad = bad or BadSamples(prepared.data.where, prepared.data.limits)
        self.started, self.first = time.monotonic(), self.step

    def run(self) -> TrainOutcome:
        """Train until the last step, or until `hooks.stop`; return how the loop ended.

        Raises:
            TrainingError: the training diverged.
            LabelError, LimitsError, InputError, ShardError: the data cannot be used.
            StoreError: a store fails; run again to resume.
        """
        try:
            is_stopped = self._evaluate_if_due()
            while not is_stopped and self.step < self.prepared.total_steps:
                if self.step and self.step % self.prepared.stage_steps == 0:
                    self._next_stage()
                is_stopped = self._run_stage()
        finally:
            self._end_log()
        is_finished = self.step == self.prepared.total_steps and not is_stopped
        if is_finished and self.step == self.first and self.is_first:
            # An earlier process can stop after the last checkpoint and before its weights.
            self._write_weights(LAST, {})
        failures = tuple(self.bad.failures.values())
        return TrainOutcome(self.first, self.step, is_finished, failures)

    def _end_log(self) -> None:
        """Write the log, also after an error: the log shows how a training diverged."""
        if self.log is not None:
            self._end_line()
            self.log.write()
            self.log.write_curves()
            self.log.close()

    def _run_stage(self) -> bool:
        """Train until the end of the stage or a stop request; return whether stopped."""
        hooks, config = self.hooks, self.config
        samples = stream(self.prepared.data, config.seed, config.shuffle_samples, self.cursor)
        share = Share(
            self.recipe, self.prepared.preprocessing, config.seed, hooks.group.rank,
            hooks.group.size, self.prepared.config.compute.loaders,
        )  # fmt: skip
        work = steps(self.prepared.data, samples, share, self.step + 1)
        moment = time.monotonic()
        with closing(samples), closing(work), closing(prefetch(work)) as ready:
            for step in ready:
                result = self._learn(step)
                self._note(step, result, time.monotonic() - moment)
                is_stopped = self._agree(step)
                is_end = self.step % self.prepared.stage_steps == 0
                is_mark = is_end or self.step % config.checkpoint_every == 0
                if is_stopped or is_mark:
                    self._save()
                if not is_stopped and self._evaluate_if_due():
                    is_stopped = True
                    if not is_mark:
                        self._save()
                moment = time.monotonic()
                if is_stopped or is_end:
                    return is_stopped
        raise AssertionError("a stream of steps has no end")

    def _learn(self, step: Step) -> StepResult:
        number = step.number - self.stage * self.prepared.stage_steps
        try:
            result = self.learner.learn(number, step.batches)
        except TrainingError as error:
            keys = list_names(step.keys, _NAMED)
            where = f"training, step {step.number}, samples {keys}"
            raise error.at(where) from error
        self.step, self.cursor = step.number, step.cursor
        return result

    def _agree(self, step: Step) -> bool:
        """Share the bad samples of the step among all processes; return whether to stop.

        Raises:
            LimitsError: too many samples are bad; raised in every process.
        """
        slots = range(self.recipe.batch_size)
        bad = [float(slot in step.failures) for slot in slots]
        stop, *bad = self.hooks.group.sum([float(self.hooks.stop()), *bad])
        for slot in (slot for slot in slots if bad[slot]):
            own = step.failures.get(slot)
            failure = own or Failure(
                step.keys[slot], "skipped by another process", "ImageError", step.locations[slot]
            )
            if self.bad.add(failure) and own:
                log.warning("skipped %s: %s", own.location, own.reason)
        self.bad.count_step(self.recipe.batch_size, step.cursor.epoch)
        self.bad.check()
        return stop > 0

    def _note(self, step: Step, result: StepResult, seconds: float) -> None:
        if self.log is None:
            return
        size = self.hooks.group.size
        self.log.add_step(result, self.recipe.batch_size, step.pixels * size, seconds)
        if self.log.waiting >= self.config.log_every:
            self._end_line()

    def _end_line(self) -> None:
        assert self.log is not None
        variant = self.prepared.config.variants()[self.stage]
        line = self.log.end_line(self.step, variant=variant, epoch=self.cursor.epoch)
        if line is not None:
            self._report_progress(line)

    def _report_progress(self, line: Mapping[str, Any]) -> None:
        elapsed = time.monotonic() - self.started
        done, left = self.step - self.first, self.prepared.total_steps - self.step
        eta = elapsed / done * left if done else None
        bad = len(self.bad.failures)
        self.hooks.on_progress(TrainProgress(line, self.prepared.total_steps, eta, bad))

    def _save(self) -> None:
        """Write the log, then the checkpoint, then the current weights, in this order."""
        self.learner.check_is_finite(self.step)
        if self.log is None:
            return
        self._end_line()
        self.log.write()
        model = self.learner.model
        state = Checkpoint(
            self.step, self.cursor, model.state_dict(), self.learner.optimizer_tensors()
        )
        write_checkpoint(self.hooks.output, state, self.config.keep_checkpoints)
        self._write_weights(LAST, {})

    def _write_weights(self, path: str, about: Mapping[str, Any]) -> None:
        info = self._info(about)
        self.hooks.output.write(path, save_weights(self.learner.model, info))

    def _info(self, about: Mapping[str, Any]) -> WeightsInfo:
        """Return the header of the weights; no time and no path, so equal trainings are equal."""
        prepared = self.prepared
        names = ("recipe", "variants", "init_sha256", "seed", "precision")
        origin = {
            "by": "fcnseg train",
            "step": self.step,
            **{name: prepared.parts[name] for name in names},
            **about,
        }
        network = self.learner.model.architecture
        return WeightsInfo(network, prepared.labels, prepared.preprocessing, origin)

    def _evaluate_if_due(self) -> bool:
        """Validate the weights if due and not done before; return whether interrupted."""
        prepared, step = self.prepared, self.step
        is_due = step % self.config.eval_every == 0 or step % prepared.stage_steps == 0
        if prepared.val is None or not step or not is_due:
            return False
        done = self.log is not None and any(e["step"] == step for e in self.log.evaluations())
        if self.hooks.group.sum([float(done)])[0]:
            return False
        self.learner.check_is_finite(step)  # before the best weights are written
        request = ValidationRequest(self.config.eval_images, self.config.overlays)
        # The network under training itself, not a copy; `learn` sets it back to training mode.
        # Batch size 1, because `validate` predicts single images.
        predictor = Predictor(
            self.learner.model, self._info({}), device=self.hooks.device, batch_size=1
        )
        result = validate(predictor, prepared.val, request, self.hooks.group, self.hooks.stop)
        if result is None:
            return True
        for failure in result.failures:
            log.warning("not scored: %s: %s", failure.location, failure.reason)
        for number, (_, jpeg) in enumerate(result.overlays):
            rank = self.hooks.group.rank + number * self.hooks.group.size
            self.hooks.output.write(f"overlays/step-{step:08d}/{rank:02d}.jpg", jpeg)
        if self.log is not None:
            self._end_line()
            variant = prepared.config.variants()[self.stage]
            scores = result.scores
            line = self.log.add_evaluation(step, scores, variant=variant, images=result.images)
            self._keep_best(line)
            self.log.write()
            self.log.write_curves(_CURVES_SECONDS)
            self._report_progress(line)
        return False

    def _keep_best(self, line: Mapping[str, Any]) -> None:
        """Write best.safetensors if this line is the best of the current stage."""
        assert self.log is not None
        first = self.stage * self.prepared.stage_steps
        earlier = [
            _quality(other) for other in self.log.evaluations()
            if first < other["step"] < line["step"]
        ]  # fmt: skip
        if _quality(line) > max(earlier, default=-1.0):
            why = "the highest mean_iou on VAL of its stage up to its step"
            self._write_weights(BEST, {"best": why, "val": line["evaluation"]})

    def _next_stage(self) -> None:
        """Start the next stage with the weights of the current one."""
        name = f"stage-{self.prepared.config.variants()[self.stage]}.safetensors"
        if self.is_first:
            self._write_weights(name, {})
        old, info = self.learner.model, self._info({})
        self.stage += 1
        network = self.prepared.architecture(self.stage)
        start = transplant(old, info, network, self.prepared.labels, name)
        self.learner = self._teach(start.model)

    def _learner(self, checkpoint: Checkpoint | None) -> Learner:
        network = self.prepared.architecture(self.stage)
        if checkpoint is None:
            return self._teach(self._first_model())
        where = f"checkpoint of step {checkpoint.step}"
        learner = self._teach(build(network, checkpoint.model, where))
        learner.load_optimizer(checkpoint.optimizer, where)
        return learner

    def _first_model(self) -> FCN:
        network, init = self.prepared.architecture(0), self.prepared.init
        if init is None:
            return initialize_network(network, self.config.seed)
        start = transplant(init.load(), init.info, network, self.prepared.labels, init.where)
        if self.is_first:
            log.warning("%s: %s", init.where, start.describe())
        return start.model

    def _teach(self, model: FCN) -> Learner:
        plan = StepPlan(
            self.recipe, self.prepared.stage_steps, self.config.seed, self.config.precision
        )
        return Learner(model, plan, self.hooks.device, self.hooks.group)


def _quality(line: Mapping[str, Any]) -> float:
    mean_iou = line["evaluation"]["mean_iou"]
    return -1.0 if mean_iou is None else float(mean_iou)


def device_of(device: str) -> str:
    """Return the device; "auto" becomes "cuda" if torch finds a GPU, otherwise "cpu"."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
