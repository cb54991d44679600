"""`fcnseg train`: drive a training from its configuration to its weights.

The same command resumes an interrupted training and ends with the same weights as an uninterrupted
one; a finished training is not changed.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch

from fcn_core.training.learner import SingleProcess
from fcn_core.weights.weights_file import WeightsFile
from pipeline.errors import MissingError
from pipeline.output.lease import Lease
from pipeline.paths import SUCCESS
from pipeline.storage.store import Store, preflight
from pipeline.training.checkpoint import latest_step
from pipeline.training.config import TrainConfig
from pipeline.training.log import read_metrics
from pipeline.training.loop import LAST, TrainingHooks, TrainingLoop, device_of
from pipeline.training.prepare import (
    PreparedTraining,
    check_directory,
    claim_directory,
    prepare_training,
)
from pipeline.training.progress import TrainOutcome, TrainProgress, TrainResult
from pipeline.training.source import BadSamples, check_labels

OnProgress = Callable[[TrainProgress], None]


def train(config: TrainConfig, on_progress: OnProgress = lambda _: None) -> TrainResult:
    """Train until the last step, or resume until then; return the result.

    SIGTERM or Ctrl-C stops the training after the current step, with a checkpoint; a second signal
    stops the process at once.

    Args:
        config: configuration of the training.
        on_progress: called after each line of metrics and each validation.

    Raises:
        ConfigError, LabelSetError, OutputError, WeightsError: raised before anything is written.
        LabelError: a label holds values outside the label set.
        LimitsError: too many samples are bad.
        TrainingError: the training diverged.
        LeaseError: another driver works on this directory.
        InputError, ShardError, StoreError: the data or a store fails; run again to resume.
        SystemExit, KeyboardInterrupt: a signal stopped the training; run again to resume.
    """
    started = time.monotonic()
    prepared = prepare_training(config)
    output = prepared.output
    check_directory(output, prepared.parts)
    if _is_finished(output, prepared):
        return _result(prepared, _nothing_to_do(prepared), prepared.total_steps, started)
    preflight(output)
    with Lease(output) as lease:
        output = output.guarded(lease.check)
        claim_directory(output, prepared.parts)
        output.delete(SUCCESS)
        is_new = not latest_step(output)
        bad = _check(prepared) if config.train.check_labels and is_new else None
        with StopRequest() as stop:
            if config.compute.workers > 1 or config.compute.ray_address:
                # Imported here, because training in one process must not need Ray.
                from pipeline.training.ray_train import train_on_ray

                outcome = train_on_ray(config, lease.check, stop.is_set, on_progress, bad)
            else:
                hooks = TrainingHooks(
                    output,
                    SingleProcess(),
                    _set_up(config),
                    lambda: stop.is_set() or lease.is_lost,
                    on_progress,
                )
                outcome = TrainingLoop(prepared, hooks, bad).run()
        lease.check()
        if outcome.is_finished:
            output.write(SUCCESS, _marker(prepared))
    if not outcome.is_finished:
        stop.leave()
    return _result(prepared, outcome, outcome.first, started)


def _set_up(config: TrainConfig) -> str:
    """Set the torch threads of this process; return its device."""
    if config.compute.threads is not None:
        torch.set_num_threads(config.compute.threads)
    return device_of(config.compute.device)


def _check(prepared: PreparedTraining) -> BadSamples:
    loaders = prepared.config.compute.loaders
    if prepared.val is not None:
        check_labels(prepared.val, loaders)
    return check_labels(prepared.data, loaders)


class StopRequest:
    """Records SIGTERM and Ctrl-C, so that the training can stop after the current step.

    Outside the main thread no signal handler is installed, and nothing is recorded.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def is_set(self) -> bool:
        """Return whether a signal was received."""
        return self._signal is not None

    def leave(self) -> None:
        """Raise the exception that the received signal normally causes.

        Raises:
            KeyboardInterrupt, SystemExit: always.
        """
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self._signal or signal.SIGTERM))

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal = number
            return
        before = self._before[number]
        if callable(before):
            before(number, frame)
        raise SystemExit(128 + number)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _is_finished(output: Store, prepared: PreparedTraining) -> bool:
    try:
        return bool(json.loads(output.read(SUCCESS))["step"] == prepared.total_steps)
    except (MissingError, ValueError, KeyError, TypeError):
        return False


def _nothing_to_do(prepared: PreparedTraining) -> TrainOutcome:
    return TrainOutcome(prepared.total_steps, prepared.total_steps, True, ())


def _marker(prepared: PreparedTraining) -> bytes:
    weights = _last(prepared)
    document = {"step": prepared.total_steps, "last_sha256": weights.sha256}
    return json.dumps(document).encode()


def _last(prepared: PreparedTraining) -> WeightsFile:
    return WeightsFile(prepared.output.read(LAST), prepared.output.location(LAST))


def read_result(config: TrainConfig, first_step: int | None = None) -> TrainResult | None:
    """Return the result of a finished training from its directory; None if it is unfinished.

    For a training that ran in another process. The samples skipped there are unknown: `bad` is 0.

    Args:
        config: configuration of the training.
        first_step: last step before that process started; None: the training was finished already.

    Raises:
        ConfigError, LabelSetError, OutputError, WeightsError, InputError, StoreError: see `train`.
    """
    prepared = prepare_training(config)
    check_directory(prepared.output, prepared.parts)
    if not _is_finished(prepared.output, prepared):
        return None
    first_step = prepared.total_steps if first_step is None else first_step
    return _result(prepared, _nothing_to_do(prepared), first_step, time.monotonic())


def _result(
    prepared: PreparedTraining, outcome: TrainOutcome, first_step: int, started: float
) -> TrainResult:
    weights = _last(prepared)
    first = prepared.total_steps - prepared.stage_steps
    return TrainResult(
        output=prepared.output.location(""),
        step=outcome.step,
        total_steps=prepared.total_steps,
        variant=weights.info.variant,
        last_sha256=weights.sha256,
        best=_best(read_metrics(prepared.output), first),
        classes=prepared.labels.classes,
        bad=len(outcome.failures),
        trained_now=outcome.step - first_step,
        seconds=time.monotonic() - started,
    )


def _best(lines: list[dict[str, Any]], first: int) -> Mapping[str, Any] | None:
    """Return the validation line of best.safetensors: the best of the last stage, or None."""
    scored = [line for line in lines if "evaluation" in line and line["step"] > first]
    defined = [line for line in scored if line["evaluation"]["mean_iou"] is not None]
    return max(defined, key=lambda line: line["evaluation"]["mean_iou"], default=None)
