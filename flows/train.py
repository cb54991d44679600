"""The flow `train-network`: plan, train here or submit or attach to a job, follow it, publish.

Resuming is in the directory, not in Prefect: tasks keep no results and are not cached, and running
the flow again, or retrying it, goes on from the last checkpoint.
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
    by_job,
    ended,
    ending_of,
    in_attempts,
    stop_job_of,
    take_charge,
)
from flows.prefect_reporter import SECONDS, PrefectReporter, quietly
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
    """A training before this flow run.

    Attributes:
        begun: the step that it is at.
        result: what it left, if it was finished.
    """

    begun: int
    result: TrainResult | None


@task(name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan_training(config: TrainConfig) -> State[Any]:
    """How far it is; fails before any work when the training cannot succeed."""
    # torch, which serving a flow does not need
    from pipeline.training.checkpoint import latest_step
    from pipeline.training.driver import read_result

    try:
        result = read_result(config)
        begun = latest_step(Store(config.output.url, config.output.store))
    except FcnError as error:
        return Failed(message=one_line(error), data=error)
    told = f"{config.input.url} -> {config.output.url}, {begun} steps are done"
    get_run_logger().info(told)
    return Completed(message=told, data=TrainPlan(begun, result))


@task(name="train", cache_policy=NO_CACHE, persist_result=False)
def train_here(config: TrainConfig) -> State[Any]:
    """Train in this process, or with an embedded Ray's workers; its progress is passed on."""
    from pipeline.training.driver import train

    relay = PrefectReporter(artifact_key("train-progress", config.output.url))

    def tell(progress: TrainProgress) -> None:
        has_scores = "evaluation" in progress.line
        step, of = progress.line["step"], progress.total_steps
        relay.step(step, of, describe(progress), at_once=has_scores)

    try:
        return Completed(data=train(config, tell))
    except FcnError as error:
        return ended(FlowEnding(error.exit_code, str(error)))
    except SystemExit as error:  # it took SIGTERM from Prefect, and has left its checkpoint
        raise TerminationSignal(signal.SIGTERM) from error


class Metrics:
    """How far a job's training is, by the metrics that it has put."""

    def __init__(self, config: TrainConfig) -> None:
        options = config.output.store.model_copy(update=FOLLOW_STORE_OPTIONS)
        self.output = Store(config.output.url, options)
        self.total = len(config.variants()) * config.recipe().max_steps
        self._is_due = Throttle(SECONDS)

    def __call__(self, relay: PrefectReporter, look: JobReading) -> None:
        """At most every `flows.prefect_reporter.SECONDS`."""
        if not self._is_due():
            return
        from pipeline.training.log import read_metrics

        try:
            lines = read_metrics(self.output)
        except FcnError:  # only the cluster may read it, or it does not answer now
            return
        if lines:
            told = describe(TrainProgress(lines[-1], self.total, None, 0))
            relay.step(lines[-1]["step"], self.total, told)


@task(name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish(result: TrainResult, series: str) -> None:
    """The best scores as artifacts: a table of classes and a summary in words.

    Args:
        result: of the training.
        series: what all runs on one directory share.
    """
    if result.best is not None:
        iou = result.best["evaluation"]["iou"]
        rows = [{"class": n, "IU": v} for n, v in zip(result.classes, iou, strict=True)]
        mean = {"class": "mean IU", "IU": result.best["evaluation"]["mean_iou"]}
        quietly(
            create_table_artifact,
            table=[*rows, mean],
            key=artifact_key("train-classes", series),
            description=f"IU per class on VAL of {plain(shown(result.output))}",
        )
    quietly(
        create_markdown_artifact,
        markdown=summary(result),
        key=artifact_key("train-summary", series),
        description=f"What this training did: {plain(shown(result.output))}",
    )


def stop_training(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Stop the job of a flow run that was cancelled or has crashed: see `flows.execution.stop_job`."""
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

    Ends `Completed`, or `Failed` with the reason in one line.
    """
    take_charge()
    planned = plan_training(config, return_state=True).result(raise_on_failure=False)
    if not isinstance(planned, TrainPlan):
        return Failed(message=one_line(planned))
    try:
        result = planned.result or _train(config, planned.begun)
    except FcnError as error:
        return Failed(message=one_line(error))
    if isinstance(result, FlowEnding):
        return Failed(message=one_line(result.reason))
    publish(result, config.output.url)
    return Completed(message=message(result))


def _train(config: TrainConfig, begun: int) -> TrainResult | FlowEnding:
    """Do it, in several attempts where that may help; how the last one ended, if it failed.

    Raises:
        FcnError: what a job left cannot be read.
    """
    address = config.ray_address()
    found: list[TrainResult] = []

    def attempt(seconds: float | None) -> FlowEnding:
        if address is None:
            here = train_here.with_options(timeout_seconds=seconds)(config, return_state=True)
            result = here.result(raise_on_failure=False)
            if not isinstance(result, TrainResult):
                return ending_of(here, config)
            found.append(result)
            return FlowEnding(0)
        key = artifact_key("train-progress", config.output.url)
        return by_job(RayJobRequest(config, address, key, Metrics(config)), seconds, [])

    ending = in_attempts(attempt, config.limits.max_hours)
    if ending.exit_code:
        return ending
    return found[0] if found else _left_by_job(config, begun)


def _left_by_job(config: TrainConfig, begun: int) -> TrainResult:
    from pipeline.training.driver import read_result

    result = read_result(config, begun)
    if result is None:
        raise OutputError(
            where=config.output.url, found="no finished training, though its job ended well",
            expected="a directory that the cluster and this worker reach by the same address",
            remedy="Name a URL that both reach.",
        )  # fmt: skip
    return result


def message(result: TrainResult) -> str:
    """What a training did, in a line."""
    if not result.trained_now:
        return f"finished before: all {result.total_steps} steps are done"
    best = ""
    if result.best is not None and result.best["evaluation"]["mean_iou"] is not None:
        found = result.best["evaluation"]["mean_iou"]
        best = f", best mean IU {found:.4f} at step {result.best['step']}"
    bad = f", {result.bad} bad samples skipped" if result.bad else ""
    return f"{result.trained_now} steps, {result.step} of {result.total_steps} done{best}{bad}"


def summary(result: TrainResult) -> str:
    """Markdown for the flow run's page."""
    lines = [
        "# Training",
        "",
        f"- {message(result)}",
        f"- weights: `{result.output}/last.safetensors`, sha256 `{result.last_sha256}`",
    ]
    if result.best is not None:
        lines.append(f"- best on VAL: `{result.output}/best.safetensors`")
    return "\n".join(lines)
