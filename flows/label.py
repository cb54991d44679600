"""The flow `label-dataset`: plan, run, publish. Idempotence is in the store, not in Prefect.

Tasks keep no results and are not cached: running the flow again resumes from the commits.
"""

from __future__ import annotations

import re
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from fcn_core.errors import FcnError
from pipeline.config import RunConfig
from pipeline.outcome import Progress, RunResult
from pipeline.report import REPORT_PATH
from pipeline.run import plan as plan_run
from pipeline.run import run as run_pipeline

PROGRESS_SECONDS = 10.0


@task(name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan_shards(config: RunConfig) -> int:
    """How many shards are pending; fails before any work when the run cannot succeed."""
    found = plan_run(config)
    get_run_logger().info(
        "%d shards, %d pending (%d of them changed)",
        found.total,
        len(found.pending),
        found.outdated,
    )
    return len(found.pending)


@task(name="label", cache_policy=NO_CACHE, persist_result=False)
def label_shards(config: RunConfig) -> RunResult:
    """Run the pipeline in this process, relaying its progress at a bounded rate."""
    logger = get_run_logger()
    last = -PROGRESS_SECONDS

    def relay(progress: Progress) -> None:
        nonlocal last
        if progress.seconds - last >= PROGRESS_SECONDS:
            last = progress.seconds
            logger.info(
                "%d of %d shards, %d images, %d quarantined",
                progress.shards_done,
                progress.shards_pending,
                progress.images,
                progress.failures,
            )

    return run_pipeline(config, relay)


@task(name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish(result: RunResult) -> None:
    """The scores as artifacts: a table of classes and a summary in words."""
    scores = result.scores
    rows = [
        {"class": name, "IU": iou, "predicted pixels": pixels}
        for name, iou, pixels in zip(
            scores["classes"], scores["iou"], scores["class_pixels"], strict=True
        )
    ]
    create_table_artifact(
        table=[*rows, {"class": "mean IU", "IU": scores["mean_iou"], "predicted pixels": None}],
        key="fcnseg-class-iou",
        description=f"IU per class of {result.output}",
    )
    create_markdown_artifact(markdown=summary(result), key="fcnseg-summary")


@flow(name="label-dataset", persist_result=False)
def label_dataset(config: RunConfig) -> State[Any]:
    """Label a dataset with Ray: embedded, unless the configuration names a cluster.

    Ends `Completed`, `CompletedWithQuarantine`, or `Failed` with the reason in one line.
    """
    if config.compute.executor == "auto":
        config = config.model_copy(
            update={"compute": config.compute.model_copy(update={"executor": "ray"})}
        )
    try:
        plan_shards(config)
        result = label_shards(config)
    except FcnError as error:
        return Failed(message=str(error))
    publish(result)
    return final_state(result)


def final_state(result: RunResult) -> State[Any]:
    """The flow's state for what the run did, said in one line."""
    if result.exit_code == 4:
        reasons = [failure.reason for failure in result.failed]
        message = reasons[0] if reasons else f"{result.failures} images quarantined: over the limit"
        return Failed(message=message)
    if not result.done_now:
        message = f"nothing pending: all {result.shards} shards are done"
    else:
        message = f"{result.done_now} shards labelled, {result.committed} of {result.shards} done"
    if result.failures:
        message += f", {result.failures} images quarantined"
        return Completed(name="CompletedWithQuarantine", message=message)
    return Completed(message=message)


def summary(result: RunResult) -> str:
    """Markdown for the flow run's page."""
    mean_iou = result.scores["mean_iou"]
    lines = [
        f"# {_plain(result.output)}",
        "",
        f"- shards: {result.committed} of {result.shards} done, {result.done_now} in this run",
        f"- images: {result.images}, quarantined: {result.failures}",
        f"- mean IU: {'no labels' if mean_iou is None else f'{mean_iou:.4f}'}",
        f"- report: `{_plain(result.output)}/{REPORT_PATH}`",
    ]
    lines += [f"- failed: {_plain(failure.reason)}" for failure in result.failed]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text from data, without what Markdown would take for markup."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", text)
