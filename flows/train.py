"""The flow `train-network`: plan a training, run it here or as a Ray job, publish the results.

The state of a training is in its output directory, not in Prefect: tasks keep no results and are
not cached. A retried or repeated flow run resumes from the last checkpoint.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.states import Completed, Failed

from fcn_core.errors import FcnError
from flows.artifacts import artifact_key, plain
from flows.execution import (
    RayJobRequest,
    ending_of,
    mark_flow_process,
    run_job,
    run_with_retries,
    stop_job_of,
    task_state,
)
from flows.prefect_reporter import SECONDS, PrefectReporter, call_prefect
from flows.states import FlowEnding, one_line
from pipeline.cli.commands.train import describe
from pipeline.concurrency import Throttle
from pipeline.errors import OutputError
from pipeline.ray_jobs.ray_follow import FOLLOW_STORE_OPTIONS
from pipeline.report.page import shown
from pipeline.storage.store import Store
from pipeline.training.config import TrainConfig
from pipeline.training.progress import TrainProgress, TrainResult

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import FlowRun

    from pipeline.ray_jobs.ray_follow import JobReading


@dataclass(frozen=True)
class TrainPlan:
    """State of a training before this flow run.

    Attributes:
        first_step: step of the latest checkpoint, from which the training resumes.
        result: result of a finished training; None if steps remain.
    """

    first_step: int
    result: TrainResult | None


@task(name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan_training(config: TrainConfig) -> State[Any]:
    """Return the state of a training as a `TrainPlan`; fail early if it cannot succeed."""
    # torch, which serving a flow does not need
    from pipeline.training.checkpoint import latest_step
    from pipeline.training.driver import read_result

    try:
        result = read_result(config)
        first_step = latest_step(Store(config.output.url, config.output.store))
    except FcnError as error:
        return Failed(message=one_line(error), data=error)
    text = f"{config.input.url} -> {config.output.url}, {first_step} steps are done"
    get_run_logger().info(text)
    return Completed(message=text, data=TrainPlan(first_step, result))


@task(name="train", cache_policy=NO_CACHE, persist_result=False)
def train_in_process(config: TrainConfig) -> State[Any]:
    """Train in this process, or with workers of an embedded Ray, and report the progress."""
    from pipeline.training.driver import train

    reporter = PrefectReporter(artifact_key("train-progress", config.output.url))

    def report(progress: TrainProgress) -> None:
        has_scores = "evaluation" in progress.line
        step, of = progress.line["step"], progress.total_steps
        reporter.step(step, of, describe(progress), at_once=has_scores)

    try:
        return Completed(data=train(config, report))
    except FcnError as error:
        return task_state(FlowEnding(error.exit_code, str(error)))
    except SystemExit as error:  # the training received Prefect's SIGTERM and saved a checkpoint
        raise TerminationSignal(signal.SIGTERM) from error


class MetricsReporter:
    """Reports the progress of a training that runs as a job, from the metrics in its directory.

    Args:
        config: configuration of the training.
    """

    def __init__(self, config: TrainConfig) -> None:
        options = config.output.store.model_copy(update=FOLLOW_STORE_OPTIONS)
        self.output = Store(config.output.url, options)
        self.total = len(config.variants()) * config.recipe().max_steps
        self._is_due = Throttle(SECONDS)

    def __call__(self, reporter: PrefectReporter, reading: JobReading) -> None:
        """Read the metrics and report them, at most every `flows.prefect_reporter.SECONDS`."""
        if not self._is_due():
            return
        from pipeline.training.log import read_metrics

        try:
            lines = read_metrics(self.output)
        except FcnError:  # only the cluster may read the store, or the store does not answer now
            return
        if lines:
            text = describe(TrainProgress(lines[-1], self.total, None, 0))
            reporter.step(lines[-1]["step"], self.total, text)


@task(name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish(result: TrainResult, series: str) -> None:
    """Publish the best scores of a training as artifacts: a table of classes and a summary.

    Args:
        result: result of the training.
        series: URL of the output directory, which the artifact keys are made from.
    """
    if result.best is not None:
        iou = result.best["evaluation"]["iou"]
        rows = [{"class": n, "IoU": v} for n, v in zip(result.classes, iou, strict=True)]
        mean = {"class": "mean IoU", "IoU": result.best["evaluation"]["mean_iou"]}
        call_prefect(
            create_table_artifact,
            table=[*rows, mean],
            key=artifact_key("train-classes", series),
            description=f"IoU per class on VAL of {plain(shown(result.output))}",
        )
    call_prefect(
        create_markdown_artifact,
        markdown=summary(result),
        key=artifact_key("train-summary", series),
        description=f"Summary of this training: {plain(shown(result.output))}",
    )


def stop_training(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Stop the job of a flow run that was cancelled or has crashed; see `execution.stop_job`."""
    config = TrainConfig.model_validate(flow_run.parameters["config"])
    stop_job_of(config, config.ray_address())


@flow(
    name="train-network",
    persist_result=False,
    on_cancellation=[stop_training],
    on_crashed=[stop_training],
)
def train_dataset(config: TrainConfig) -> State[Any]:
    """Train a network: as a Ray job if a cluster is named, else in this process.

    The final state is `Completed`, or `Failed` with the reason in one line.

    Args:
        config: configuration of the training.
    """
    mark_flow_process()
    todo = plan_training(config, return_state=True).result(raise_on_failure=False)
    if not isinstance(todo, TrainPlan):
        return Failed(message=one_line(todo))
    try:
        result = todo.result or _train(config, todo.first_step)
    except FcnError as error:
        return Failed(message=one_line(error))
    if isinstance(result, FlowEnding):
        return Failed(message=one_line(result.reason))
    publish(result, config.output.url)
    return Completed(message=message(result))


def _train(config: TrainConfig, first_step: int) -> TrainResult | FlowEnding:
    """Train with retries where they may help; return the end of the last attempt if it failed.

    Raises:
        FcnError: the results of a job cannot be read.
    """
    address = config.ray_address()
    results: list[TrainResult] = []

    def attempt(seconds: float | None) -> FlowEnding:
        if address is None:
            in_process = train_in_process.with_options(timeout_seconds=seconds)
            state = in_process(config, return_state=True)
            result = state.result(raise_on_failure=False)
            if not isinstance(result, TrainResult):
                return ending_of(state, config)
            results.append(result)
            return FlowEnding(0)
        key = artifact_key("train-progress", config.output.url)
        request = RayJobRequest(config, address, key, MetricsReporter(config))
        return run_job(request, seconds, [])

    ending = run_with_retries(attempt, config.limits.max_hours)
    if ending.exit_code:
        return ending
    return results[0] if results else _result_of_job(config, first_step)


def _result_of_job(config: TrainConfig, first_step: int) -> TrainResult:
    from pipeline.training.driver import read_result

    result = read_result(config, first_step)
    if result is None:
        raise OutputError(
            where=config.output.url, found="no finished training, although its job succeeded",
            expected="a directory that the cluster and this worker reach by the same URL",
            remedy="Choose a URL that both can reach.",
        )  # fmt: skip
    return result


def message(result: TrainResult) -> str:
    """Return one line that sums up a training."""
    if not result.trained_now:
        return f"finished before: all {result.total_steps} steps are done"
    best = ""
    if result.best is not None and result.best["evaluation"]["mean_iou"] is not None:
        mean_iou = result.best["evaluation"]["mean_iou"]
        best = f", best mean IoU {mean_iou:.4f} at step {result.best['step']}"
    bad = f", {result.bad} bad samples skipped" if result.bad else ""
    return f"{result.trained_now} steps, {result.step} of {result.total_steps} done{best}{bad}"


def summary(result: TrainResult) -> str:
    """Return the summary artifact of a training, as Markdown."""
    lines = [
        "# Training",
        "",
        f"- {message(result)}",
        f"- weights: `{result.output}/last.safetensors`, sha256 `{result.last_sha256}`",
    ]
    if result.best is not None:
        lines.append(f"- best on VAL: `{result.output}/best.safetensors`")
    return "\n".join(lines)
