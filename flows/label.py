"""The flow `label-dataset`: plan, submit or attach, follow, publish.

Idempotence is in the store, not in Prefect: tasks keep no results and are not cached, and running
the flow again, or retrying it, resumes from the commits.
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
from flows.execution import label, stop_job, take_charge
from flows.states import FlowEnding, final_state, one_line
from pipeline.config import RunConfig
from pipeline.driver import plan as plan_run
from pipeline.output.markers import read_marker
from pipeline.paths import SUCCESS
from pipeline.resolve import earlier_outputs, resolve_dates
from pipeline.storage.store import Store


@dataclass(frozen=True)
class ScheduledRun:
    """One run of a series.

    Attributes:
        config: as the deployment has it, perhaps with `{date}`.
        moment: that the run was scheduled for; a retry has the same.
        run: the configuration with real dates, on Ray unless it says otherwise.
    """

    config: RunConfig
    moment: datetime
    run: RunConfig

    @classmethod
    def of(cls, config: RunConfig, moment: datetime) -> ScheduledRun:
        """The run of a moment.

        Raises:
            ConfigError: see `resolve_dates`.
        """
        run = resolve_dates(config, moment)
        if run.compute.executor == "auto":
            compute = run.compute.model_copy(update={"executor": "ray"})
            run = run.model_copy(update={"compute": compute})
        return cls(config, moment, run)

    @property
    def series(self) -> str:
        """What all runs of the series have in common."""
        return self.config.output.url


@task(name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan_shards(config: RunConfig) -> State[Any]:
    """Whether there is anything to do; fails before any work when the run cannot succeed."""
    try:
        found = plan_run(config)
        marker, _ = read_marker(Store(config.output.url, config.output.store))
    except FcnError as error:
        return Failed(message=one_line(error), data=error)
    told = f"{found.total} shards, {len(found.pending)} pending ({found.outdated} of them changed)"
    get_run_logger().info(told)
    is_done = not found.pending and not found.left and not found.unpacked and marker == SUCCESS
    return Completed(message=told, data=is_done)


@task(name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish(night: ScheduledRun, links: Sequence[tuple[str, str]]) -> State[Any]:
    """The results as artifacts."""
    try:
        earlier = earlier_outputs(night.config, night.moment)
        outcome = read_outcome(night.run, night.moment, earlier)
        publish_outcome(outcome, night.series, links)
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
    """Label a dataset with Ray: as a job of a cluster, or embedded if no cluster is named.

    `{date}` and `{yesterday}` in the URLs are of the moment that the run was scheduled for. Ends
    `Completed`, `CompletedWithQuarantine`, `CompletedWithDrift`, or `Failed` with the reason in
    one line.
    """
    take_charge()
    moment = runtime.flow_run.scheduled_start_time
    try:
        night = ScheduledRun.of(config, moment)
        get_run_logger().info("%s -> %s", night.run.input.url, night.run.output.url)
        is_done: bool = _value(plan_shards(night.run, return_state=True))
        ending, links = (FlowEnding(0), []) if is_done else label(night.run, night.series)
        outcome: RunOutcome | None = None
        if ending.left_results:
            outcome = _value(publish(night, links, return_state=True))
    except FcnError as error:
        return Failed(message=one_line(error))
    return final_state(ending, outcome)


def _value(state: State[Any]) -> Any:
    """What a task found out.

    Raises:
        FcnError: why it failed; an exception that nobody foresaw is raised as it is.
    """
    found = state.result(raise_on_failure=False)
    if isinstance(found, Exception):
        raise found
    return found
