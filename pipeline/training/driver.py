"""A training from its configuration to its weights: the driver.

Running the same command again resumes, as if nothing had happened; a finished one is left alone.
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
    """Train until the end.

    SIGTERM and Ctrl-C end it after the step that is on, with a checkpoint; a second one at once.

    Args:
        config: what, from what, and how.
        on_progress: called after each line of metrics and each evaluation.

    Raises:
        ConfigError, LabelSetError, OutputError, WeightsError: before anything is written.
        LabelError: a label holds values that are no class.
        LimitsError: too many samples are bad.
        TrainingError: the training diverged.
        LeaseError: another driver works on this directory.
        InputError, ShardError, StoreError: the data or a store fails; run again to resume.
        SystemExit, KeyboardInterrupt: it was told to stop; run again to resume.
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
                # Imported where it is wanted: one process must do without Ray.
                from pipeline.training.ray_train import train_on_ray

                outcome = train_on_ray(config, lease.check, stop.is_set, on_progress, bad)
            else:
                around = TrainingHooks(
                    output, SingleProcess(), _set_up(config), lambda: stop.is_set() or lease.is_lost,
                    on_progress,
                )  # fmt: skip
                outcome = TrainingLoop(prepared, around, bad).run()
        lease.check()
        if outcome.is_finished:
            output.write(SUCCESS, _marker(prepared))
    if not outcome.is_finished:
        stop.leave()
    return _result(prepared, outcome, outcome.first, started)


def _set_up(config: TrainConfig) -> str:
    """Threads and device of this process."""
    if config.compute.threads is not None:
        torch.set_num_threads(config.compute.threads)
    return device_of(config.compute.device)


def _check(prepared: PreparedTraining) -> BadSamples:
    loaders = prepared.config.compute.loaders
    if prepared.val is not None:
        check_labels(prepared.val, loaders)
    return check_labels(prepared.data, loaders)


class StopRequest:
    """SIGTERM and Ctrl-C as a wish that is granted after the step that is on.

    In other threads than the main one, signals are not looked at.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def is_set(self) -> bool:
        """Whether a signal came."""
        return self._signal is not None

    def leave(self) -> None:
        """End as the signal would have.

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


def read_result(config: TrainConfig, begun: int | None = None) -> TrainResult | None:
    """What a training left that another process has finished; None if it is not finished.

    Which samples that process skipped is not known here: `bad` is 0.

    Args:
        config: of the training.
        begun: the step that it was at before; by default it was finished already.

    Raises:
        ConfigError, LabelSetError, OutputError, WeightsError, InputError, StoreError: see `train`.
    """
    prepared = prepare_training(config)
    check_directory(prepared.output, prepared.parts)
    if not _is_finished(prepared.output, prepared):
        return None
    begun = prepared.total_steps if begun is None else begun
    return _result(prepared, _nothing_to_do(prepared), begun, time.monotonic())


def _result(
    prepared: PreparedTraining, outcome: TrainOutcome, begun: int, started: float
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
        trained_now=outcome.step - begun,
        seconds=time.monotonic() - started,
    )


def _best(lines: list[dict[str, Any]], first: int) -> Mapping[str, Any] | None:
    """The evaluation of the last stage that best.safetensors is from."""
    scored = [line for line in lines if "evaluation" in line and line["step"] > first]
    known = [line for line in scored if line["evaluation"]["mean_iou"] is not None]
    return max(known, key=lambda line: line["evaluation"]["mean_iou"], default=None)
