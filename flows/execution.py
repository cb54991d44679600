"""Execute a run for a flow: as a Ray job of a cluster, or in this process with an embedded Ray.

A job outlives the flow run that follows it. The flow stops its job if the flow run is cancelled,
terminated or timed out. If Prefect itself fails, the job continues and the next run attaches to it.
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
"""Pause before each retry; the first is as long as the lease of a driver that crashed."""


_STOP_SECONDS = 20.0
"""Longest wait for a job to stop: a Prefect worker kills a cancelled flow run after 30 s."""


_TIMER_SECONDS = 5.0
"""Longest time by which Prefect's timer may have started before the task itself."""


is_flow_process = False
"""Whether this process runs the flow: then the flow itself has stopped or kept its job."""


def mark_flow_process() -> None:
    """Record that this process runs the flow, so that the hooks leave its job alone."""
    global is_flow_process
    is_flow_process = True


def segment(config: RunConfig, series: str) -> tuple[FlowEnding, list[tuple[str, str]]]:
    """Segment a dataset, with retries where they may help.

    Args:
        config: configuration of the run, with resolved dates.
        series: series of the run, which the key of the progress artifact is made from.

    Returns:
        The end of the last attempt, and links (text, URL) to the Ray job.
    """
    links: list[tuple[str, str]] = []

    def attempt(seconds: float | None) -> FlowEnding:
        address = config.ray_address()
        if address is None or config.compute.executor == "local":
            in_process = segment_in_process.with_options(timeout_seconds=seconds)
            return ending_of(in_process(config, series, return_state=True), config)
        key = artifact_key("progress", series)
        return run_job(RayJobRequest(config, address, key, report_run), seconds, links)

    return run_with_retries(attempt, config.limits.max_hours), links


def run_with_retries(
    attempt: Callable[[float | None], FlowEnding], hours: float | None
) -> FlowEnding:
    """Call an attempt until it succeeds or a retry cannot help; return the end of the last one.

    Args:
        attempt: function of the seconds that remain for it, or None without a limit.
        hours: limit for all attempts together; None for no limit.
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
    """Run or training that a flow gives to a cluster.

    Attributes:
        config: configuration of a training, or of a run with resolved dates.
        address: address of the cluster's Jobs API.
        key: key of the progress artifact.
        report: function that reports the progress, called at every reading of the job.
    """

    config: JobConfig
    address: str
    key: str
    report: Callable[[PrefectReporter, JobReading], None]


def run_job(
    request: RayJobRequest, seconds: float | None, links: list[tuple[str, str]]
) -> FlowEnding:
    """Submit a job, or attach to the job that already does this work, and follow it to its end.

    Args:
        request: work and cluster.
        seconds: time limit, after which the job is stopped; None for no limit.
        links: list that receives the link (text, URL) to the job, in place of its content.
    """
    submitted = submit(request.config, request.address, return_state=True)
    if submitted.is_failed():
        return ending_of(submitted, request.config)
    job: SubmittedJob = _result_of(submitted)
    links[:] = [("Ray job", job.page)]
    followed = follow_job.with_options(timeout_seconds=seconds)(
        request.address, job, request.key, request.report, return_state=True
    )
    return ending_of(followed, request.config)


def report_run(reporter: PrefectReporter, reading: JobReading) -> None:
    """Report the progress that the driver of a run writes to OUTPUT."""
    if reading.run is not None and reading.run.progress is not None:
        reporter.progress(reading.run.progress)


def ending_of(state: State[Any], config: JobConfig) -> FlowEnding:
    """Return the end of a driver from the final state of the task that ran or followed it."""
    result = _result_of(state)
    if isinstance(result, FlowEnding):
        return result
    if state.name == "TimedOut":
        return FlowEnding(
            143, f"not done after {config.limits.max_hours:g} h: stopped; run again to resume"
        )
    return FlowEnding(1, one_line(state.message))


def _result_of(state: State[Any]) -> Any:
    return state.result(raise_on_failure=False)


def task_state(ending: FlowEnding) -> State[Any]:
    """Return the state of a task from the end of its driver: failed unless the code is 0 or 3."""
    if ending.exit_code in (0, 3):
        return Completed(data=ending)
    return Failed(message=one_line(ending.reason), data=ending)


@task(name="label", cache_policy=NO_CACHE, persist_result=False)
def segment_in_process(config: RunConfig, series: str) -> State[Any]:
    """Run the pipeline in this process, with an embedded Ray, and report its progress."""
    reporter = PrefectReporter(artifact_key("progress", series))
    try:
        result = run_pipeline(config, reporter.progress)
    except FcnError as error:
        return task_state(FlowEnding(error.exit_code, str(error)))
    reason = next((failure.reason for failure in result.failed), "")
    return task_state(
        FlowEnding(result.exit_code, reason or f"{result.failures} images quarantined")
    )


@task(name="submit", cache_policy=NO_CACHE, persist_result=False)
def submit(config: JobConfig, address: str) -> State[Any]:
    """Submit a job for a configuration, or attach to the job that already does this work."""
    from pipeline.ray_jobs.ray_submit import JobOptions, submit_or_attach

    options = JobOptions(
        python=os.environ.get("FCNSEG_RAY_PYTHON", "python"),
        metadata={"prefect_flow_run_id": str(runtime.flow_run.id)},
    )
    try:
        job = submit_or_attach(config, address, options)
    except FcnError as error:
        return task_state(FlowEnding(error.exit_code, str(error)))
    how = "attached to" if job.attached else "submitted"
    get_run_logger().info("%s job %s: %s", how, job.submission_id, job.page)
    return Completed(message=f"{how} {job.submission_id}", data=job)


@task(name="follow", cache_policy=NO_CACHE, persist_result=False)
def follow_job(
    address: str,
    job: SubmittedJob,
    key: str,
    report: Callable[[PrefectReporter, JobReading], None] = report_run,
) -> State[Any]:
    """Follow a job to its end and report its progress and its log."""
    started = time.monotonic()
    from pipeline.ray_jobs.ray_follow import PollInterval, follow

    reporter = PrefectReporter(key)
    try:
        for reading in follow(address, job.submission_id, PollInterval(most_lines=LINES)):
            reporter.lines(reading.lines, reading.left_out)
            report(reporter, reading)
            if not reading.is_reachable:
                reporter.warn_unreachable()
    except FcnError as error:
        return task_state(FlowEnding(error.exit_code, str(error)))
    except BaseException as error:
        if _is_intended_stop(error, time.monotonic() - started):
            _stop(address, job)
        raise
    finally:
        reporter.flush()
    assert reading.exit_code is not None
    if reading.exit_code in (0, 3):
        reporter.done()
    return task_state(FlowEnding(reading.exit_code, reading.reason))


def _is_intended_stop(error: BaseException, seconds: float) -> bool:
    """Return whether a task ended because its run was cancelled, terminated or timed out.

    Prefect raises CancelledError for a timeout, but also if the server is away and the run loses
    its slot of a concurrency limit. It raises SystemExit if the worker that reads the log is gone.
    A lost slot and a lost worker are no reason to stop the job.

    Args:
        error: exception that ended the task.
        seconds: time since the task began.
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
    """Stop the job of a flow run that was cancelled or has crashed, and no other job.

    A hook of Prefect, which passes the arguments by these names. Prefect calls the hook in the
    worker after the process of the flow run has ended, and in that process itself after a crash;
    there the flow has already stopped or kept its job. A flow run that waits for a job of another
    configuration on its OUTPUT has no job to stop.
    """
    if flow_run.expected_start_time is not None:
        parameters = RunConfig.model_validate(flow_run.parameters["config"])
        config = resolve_dates(parameters, flow_run.expected_start_time)
        stop_job_of(config, config.ray_address())


def stop_job_of(config: JobConfig, address: str | None) -> None:
    """Stop the job that has exactly this configuration, unless this process runs the flow.

    Args:
        config: configuration of the run or training.
        address: address of the cluster; None if the run had no job.
    """
    if is_flow_process or address is None:
        return
    from pipeline.ray_jobs.ray_follow import stop
    from pipeline.ray_jobs.ray_submit import find_job

    job = find_job(config, address)
    if job is not None:
        stop(address, job.submission_id)
