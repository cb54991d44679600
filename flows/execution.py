"""The work of the flows: a Ray job that is submitted or attached to, or this process and its Ray.

A job outlives whoever follows it. It is stopped when somebody wants the flow run to end (cancelled,
terminated, timed out), and left alone when Prefect itself breaks down: the next run attaches to it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import TerminationSignal
from prefect.states import Completed, Failed

from fcn_core.errors import FcnError
from flows.artifacts import artifact_key
from flows.prefect_reporter import LINES, PrefectReporter
from flows.states import FlowEnding, one_line
from pipeline.config import RunConfig
from pipeline.driver import run as run_pipeline
from pipeline.resolve import resolve_dates

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import FlowRun

    from pipeline.ray_jobs.job_metadata import JobConfig
    from pipeline.ray_jobs.ray_follow import JobReading
    from pipeline.ray_jobs.ray_submit import SubmittedJob


RETRY_SECONDS = (35.0, 60.0, 300.0)
"""Before each further attempt; the first is as long as the lease of a driver that died."""


_STOP_SECONDS = 20.0
"""To wait for a job that was told to stop: a worker kills a cancelled flow run after 30 s."""


_TIMER_SECONDS = 5.0
"""By so much Prefect's timer may have begun before the task itself."""


_in_charge = False
"""Whether this process runs the flow, and so decided itself what becomes of its job."""


def take_charge() -> None:
    """The flow begins in this process."""
    global _in_charge
    _in_charge = True


def label(config: RunConfig, series: str) -> tuple[FlowEnding, list[tuple[str, str]]]:
    """Do the run, in several attempts where that may help.

    Args:
        config: with real dates.
        series: what the progress artifact belongs to.

    Returns:
        How it ended, and links to where it was done.
    """
    links: list[tuple[str, str]] = []

    def attempt(seconds: float | None) -> FlowEnding:
        address = config.ray_address()
        if address is None or config.compute.executor == "local":
            here = label_here.with_options(timeout_seconds=seconds)
            return ending_of(here(config, series, return_state=True), config)
        errand = RayJobRequest(config, address, artifact_key("progress", series), tell_run)
        return by_job(errand, seconds, links)

    return in_attempts(attempt, config.limits.max_hours), links


def in_attempts(attempt: Callable[[float | None], FlowEnding], hours: float | None) -> FlowEnding:
    """Try until it is done, or trying again would change nothing.

    Args:
        attempt: called with the seconds that are left to it.
        hours: for all attempts together.
    """
    deadline = None if hours is None else time.monotonic() + 3600 * hours
    for pause in (*RETRY_SECONDS, None):
        left = None if deadline is None else max(1.0, deadline - time.monotonic())
        ending = attempt(left)
        if pause is None or not ending.may_be_retried:
            break
        if deadline is not None and time.monotonic() + pause > deadline:
            break
        get_run_logger().warning("%s; trying again in %.0f s", ending.reason, pause)
        time.sleep(pause)
    return ending


@dataclass(frozen=True)
class RayJobRequest:
    """Work for a cluster.

    Attributes:
        config: of a run with real dates, or of a training.
        address: of the cluster.
        key: of the progress artifact.
        tell: passes on how far it is, at every look.
    """

    config: JobConfig
    address: str
    key: str
    tell: Callable[[PrefectReporter, JobReading], None]


def by_job(
    errand: RayJobRequest, seconds: float | None, links: list[tuple[str, str]]
) -> FlowEnding:
    """Submit a job, or attach to the one that does this already, and follow it to its end.

    Args:
        errand: what, and where.
        seconds: after which it is stopped.
        links: replaced by those of the job.
    """
    submitted = submit(errand.config, errand.address, return_state=True)
    if submitted.is_failed():
        return ending_of(submitted, errand.config)
    job: SubmittedJob = _found(submitted)
    links[:] = [("Ray job", job.page)]
    followed = follow_job.with_options(timeout_seconds=seconds)(
        errand.address, job, errand.key, errand.tell, return_state=True
    )
    return ending_of(followed, errand.config)


def tell_run(relay: PrefectReporter, look: JobReading) -> None:
    """What the driver of a run writes down."""
    if look.run is not None and look.run.progress is not None:
        relay.progress(look.run.progress)


def ending_of(state: State[Any], config: JobConfig) -> FlowEnding:
    """How a driver ended, by the state of the task that was to do with it."""
    found = _found(state)
    if isinstance(found, FlowEnding):
        return found
    if state.name == "TimedOut":
        return FlowEnding(
            143, f"not done after {config.limits.max_hours:g} h: stopped; run again to resume"
        )
    return FlowEnding(1, one_line(state.message))


def _found(state: State[Any]) -> Any:
    return state.result(raise_on_failure=False)


def ended(ending: FlowEnding) -> State[Any]:
    """The state of a task: a driver that did not do all is a task that failed."""
    if ending.exit_code in (0, 3):
        return Completed(data=ending)
    return Failed(message=one_line(ending.reason), data=ending)


@task(name="label", cache_policy=NO_CACHE, persist_result=False)
def label_here(config: RunConfig, series: str) -> State[Any]:
    """Run the pipeline in this process, with an embedded Ray; its progress is passed on."""
    relay = PrefectReporter(artifact_key("progress", series))
    try:
        result = run_pipeline(config, relay.progress)
    except FcnError as error:
        return ended(FlowEnding(error.exit_code, str(error)))
    reason = next((failure.reason for failure in result.failed), "")
    return ended(FlowEnding(result.exit_code, reason or f"{result.failures} images quarantined"))


@task(name="submit", cache_policy=NO_CACHE, persist_result=False)
def submit(config: JobConfig, address: str) -> State[Any]:
    """Make sure that a job of the cluster does this: a new one, or one that does already."""
    from pipeline.ray_jobs.ray_submit import JobOptions, submit_or_attach

    options = JobOptions(
        python=os.environ.get("FCNSEG_RAY_PYTHON", "python"),
        metadata={"prefect_flow_run_id": str(runtime.flow_run.id)},
    )
    try:
        job = submit_or_attach(config, address, options)
    except FcnError as error:
        return ended(FlowEnding(error.exit_code, str(error)))
    how = "attached to" if job.attached else "submitted"
    get_run_logger().info("%s job %s: %s", how, job.submission_id, job.page)
    return Completed(message=f"{how} {job.submission_id}", data=job)


@task(name="follow", cache_policy=NO_CACHE, persist_result=False)
def follow_job(
    address: str,
    job: SubmittedJob,
    key: str,
    tell: Callable[[PrefectReporter, JobReading], None] = tell_run,
) -> State[Any]:
    """Follow a job to its end: its progress and its log are passed on."""
    started = time.monotonic()
    from pipeline.ray_jobs.ray_follow import PollInterval, follow

    relay = PrefectReporter(key)
    try:
        for look in follow(address, job.submission_id, PollInterval(most_lines=LINES)):
            relay.lines(look.lines, look.left_out)
            tell(relay, look)
            if not look.is_reachable:
                relay.silence()
    except FcnError as error:
        return ended(FlowEnding(error.exit_code, str(error)))
    except BaseException as error:
        if _is_wanted(error, time.monotonic() - started):
            _stop(address, job)
        raise
    finally:
        relay.flush()
    assert look.exit_code is not None
    if look.exit_code in (0, 3):
        relay.done()
    return ended(FlowEnding(look.exit_code, look.reason))


def _is_wanted(error: BaseException, seconds: float) -> bool:
    """Whether somebody wants the run to end: it was cancelled, terminated or timed out.

    Args:
        error: that ended the task.
        seconds: since it began.

    Prefect raises CancelledError for a timeout, and for a slot of a concurrency limit that it lost
    because its server is away. SystemExit comes from a log that nobody reads any more: the worker
    is gone. In these cases the job goes on.
    """
    if isinstance(error, (TerminationSignal, KeyboardInterrupt, TimeoutError)):
        return True
    if not isinstance(error, asyncio.CancelledError):
        return False
    inner, outer = TaskRunContext.get(), FlowRunContext.get()
    if outer is not None and outer.flow is not None and outer.flow.timeout_seconds is not None:
        return True
    limit = None if inner is None else inner.task.timeout_seconds
    return limit is not None and seconds >= limit - _TIMER_SECONDS


def _stop(address: str, job: SubmittedJob) -> None:
    from pipeline.ray_jobs.ray_follow import stop

    get_run_logger().info("stopping job %s", job.submission_id)
    with suppress(FcnError):  # the worker's hook tries again, and waits longer
        stopped = stop(address, job.submission_id, _STOP_SECONDS)
        get_run_logger().info("job %s: %s", job.submission_id, stopped.status)


def stop_job(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Stop the job of a flow run that was cancelled or has crashed, and no other one.

    A run that waits for a job of another configuration on its output has none of its own.
    Prefect calls this, by these names: in the worker, after the flow run's process is gone, and
    after a crash in that process itself, which has decided already.
    """
    if flow_run.expected_start_time is not None:
        parameters = RunConfig.model_validate(flow_run.parameters["config"])
        config = resolve_dates(parameters, flow_run.expected_start_time)
        stop_job_of(config, config.ray_address())


def stop_job_of(config: JobConfig, address: str | None) -> None:
    """Stop the job that does this very work, if this process is not the flow itself."""
    if _in_charge or address is None:
        return
    from pipeline.ray_jobs.ray_follow import stop
    from pipeline.ray_jobs.ray_submit import find_job

    job = find_job(config, address)
    if job is not None:
        stop(address, job.submission_id)
