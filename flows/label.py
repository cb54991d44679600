"""The flow `label-dataset`: plan a run, submit or attach to a job, follow it, publish results.

The state of a run is in the store, not in Prefect: tasks keep no results and are not cached. A
retried or repeated flow run resumes from the commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from fcn_core.errors import FcnError
from flows.artifacts import RunOutcome, publish_outcome, read_outcome
from flows.execution import mark_flow_process, segment, stop_job
from flows.states import FlowEnding, final_state, one_line
from pipeline.config import RunConfig
from pipeline.driver import plan as plan_run
from pipeline.output.markers import read_marker
from pipeline.paths import SUCCESS
from pipeline.resolve import earlier_outputs, resolve_dates
from pipeline.storage.store import Store


@dataclass(frozen=True)
class ScheduledRun:
    """One scheduled run of a series of runs.

    Attributes:
        config: configuration of the deployment; its URLs may hold `{date}`.
        moment: scheduled start of the run; a retry keeps it.
        run: configuration of this run: resolved dates, and executor "ray" in place of "auto".
    """

    config: RunConfig
    moment: datetime
    run: RunConfig

    @classmethod
    def of(cls, config: RunConfig, moment: datetime) -> ScheduledRun:
        """Return the run that a configuration gives at a scheduled start.

        Args:
            config: configuration of the deployment.
            moment: scheduled start of the run.

        Raises:
            ConfigError: the dates in the URLs do not fit; see `pipeline.resolve.resolve_dates`.
        """
        run = resolve_dates(config, moment)
        if run.compute.executor == "auto":
            compute = run.compute.model_copy(update={"executor": "ray"})
            run = run.model_copy(update={"compute": compute})
        return cls(config, moment, run)

    @property
    def series(self) -> str:
        """Name of the series: the URL of OUTPUT before its dates are resolved."""
        return self.config.output.url


@task(name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan_shards(config: RunConfig) -> State[Any]:
    """Plan a run and return whether it has nothing to do; fail early if it cannot succeed."""
    try:
        todo = plan_run(config)
        marker, _ = read_marker(Store(config.output.url, config.output.store))
    except FcnError as error:
        return Failed(message=one_line(error), data=error)
    text = f"{todo.total} shards, {len(todo.pending)} pending ({todo.outdated} of them changed)"
    get_run_logger().info(text)
    is_done = not todo.pending and not todo.left and not todo.unpacked and marker == SUCCESS
    return Completed(message=text, data=is_done)


@task(name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish(scheduled: ScheduledRun, links: Sequence[tuple[str, str]]) -> State[Any]:
    """Publish the results of a run as artifacts, and return its outcome.

    Args:
        scheduled: run that has ended.
        links: texts and URLs for the summary.
    """
    try:
        earlier = earlier_outputs(scheduled.config, scheduled.moment)
        outcome = read_outcome(scheduled.run, scheduled.moment, earlier)
        publish_outcome(outcome, scheduled.series, links)
    except FcnError as error:
        return Failed(message=one_line(error), data=error)
    return Completed(data=outcome)


@flow(
    name="label-dataset",
    persist_result=False,
    on_cancellation=[stop_job],
    on_crashed=[stop_job],
)
def label_dataset(config: RunConfig) -> State[Any]:
    """Segment a dataset with Ray: as a job of a cluster, or embedded if no cluster is named.

    `{date}` and `{yesterday}` in the URLs refer to the scheduled start of the run. The final state
    is `Completed`, `CompletedWithQuarantine`, `CompletedWithDrift`, or `Failed` with the reason in
    one line.

    Args:
        config: configuration of the run.
    """
    mark_flow_process()
    moment = runtime.flow_run.scheduled_start_time
    try:
        scheduled = ScheduledRun.of(config, moment)
        get_run_logger().info("%s -> %s", scheduled.run.input.url, scheduled.run.output.url)
        is_done: bool = _value(plan_shards(scheduled.run, return_state=True))
        ending = FlowEnding(0)
        links: list[tuple[str, str]] = []
        if not is_done:
            ending, links = segment(scheduled.run, scheduled.series)
        outcome: RunOutcome | None = None
        if ending.left_results:
            outcome = _value(publish(scheduled, links, return_state=True))
    except FcnError as error:
        return Failed(message=one_line(error))
    return final_state(ending, outcome)


def _value(state: State[Any]) -> Any:
    """Return the result of a task, or raise the exception that it failed with.

    Raises:
        FcnError: an expected failure; any other exception is raised unchanged.
    """
    result = state.result(raise_on_failure=False)
    if isinstance(result, Exception):
        raise result
    return result
