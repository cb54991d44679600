"""The flow `train-network`: train, publish. Resuming is in the directory, not in Prefect.

Tasks keep no results and are not cached: running the flow again goes on from the last checkpoint.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from fcn_core.errors import FcnError
from flows.publish import artifact_key, plain
from flows.relay import Relay, quietly
from flows.states import one_line
from pipeline.commands.train import describe
from pipeline.reporting.page import shown
from pipeline.training.config import TrainConfig
from pipeline.training.progress import TrainProgress, TrainResult


@task(name="train", cache_policy=NO_CACHE, persist_result=False)
def train_network(config: TrainConfig) -> TrainResult:
    """Train in this process, or with Ray's workers; progress and scores are passed on."""
    # torch, which serving a flow does not need
    from pipeline.train import train

    relay = Relay(artifact_key("train-progress", config.output.url))

    def tell(progress: TrainProgress) -> None:
        has_scores = "evaluation" in progress.line
        step, of = progress.line["step"], progress.total_steps
        relay.step(step, of, describe(progress), at_once=has_scores)

    return train(config, tell)


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


@flow(name="train-network", persist_result=False)
def train_dataset(config: TrainConfig) -> State[Any]:
    """Train a network; ends `Completed`, or `Failed` with the reason in one line."""
    try:
        result = train_network(config)
    except FcnError as error:
        return Failed(message=one_line(error))
    publish(result, config.output.url)
    return Completed(message=message(result))


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
