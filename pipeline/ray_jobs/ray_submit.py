"""Submit a run or training as a Ray job, or attach to the job that already does it.

The metadata of a job identifies it: the URL of OUTPUT and the configuration. Job ids are numbered
per output, and a cluster accepts an id only once. So when two clients submit at the same moment,
one starts the job and the other attaches to it. If two jobs for one output run on two clusters,
the lease lets one work and ends the other with exit code 75.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.config import RunConfig
from pipeline.errors import ClusterError, ConfigError, LeaseError
from pipeline.ray_jobs.job_metadata import (
    CONFIG_KEY,
    OUTPUT_KEY,
    JobConfig,
    flatten,
    make_entrypoint,
    make_metadata,
)
from pipeline.ray_jobs.ray_client import Jobs, UnreachableError, retry_unreachable
from pipeline.redact import masked
from pipeline.resolve import resolve_plan
from pipeline.storage.store import Store
from pipeline.text import Difference, first_difference, show_value

if TYPE_CHECKING:
    from ray.job_submission import JobDetails


STOP_SECONDS = 60
"""Seconds between SIGTERM and SIGKILL when a job is stopped. Ray's default is 3."""


_RUNNING = ("PENDING", "RUNNING")

_TRIES = 5

_PATIENCE = 60.0
"""Seconds to wait for a cluster that has answered before."""


@dataclass(frozen=True)
class JobOptions:
    """How the driver is started on the cluster.

    Attributes:
        python: Python interpreter on the cluster.
        runtime_env: Ray's runtime environment: working_dir, env_vars, pip, … It must not hold
            secrets: everyone with access to the cluster's jobs sees it.
        metadata: additional metadata of the job.
        stop_seconds: time that the driver has to end when the job is stopped. A value of
            RAY_JOB_STOP_WAIT_TIME_S in `runtime_env` overrides it.
    """

    python: str = "python"
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    stop_seconds: int = STOP_SECONDS


@dataclass(frozen=True)
class SubmittedJob:
    """A job that works on an output.

    Attributes:
        submission_id: id of the job, for example for `ray job logs`.
        attached: whether the job existed before the call.
        page: URL of the job's page in the dashboard.
        output: URL of OUTPUT.
    """

    submission_id: str
    attached: bool
    page: str
    output: str


def submit_or_attach(
    config: JobConfig, address: str | None = None, options: JobOptions | None = None
) -> SubmittedJob:
    """Start a job for a run or training, or attach to the job that already does it.

    Returns as soon as the job exists, without waiting for its end.

    Args:
        config: the run or training. Paths and URLs must be readable on the cluster.
            `compute.ray_address` and `compute.executor` are not compared with those of other jobs.
        address: address of the cluster, as for `Jobs`. Default: `compute.ray_address`, then the
            environment.
        options: options of a new job; an existing job is not changed.

    Raises:
        ConfigError: the configuration is not valid for a run, or holds a secret.
        LeaseError: a job with another configuration works on this output.
        ClusterError: the cluster does not answer or refuses the job, as for `Jobs`.
    """
    metadata = make_metadata(config)
    output = metadata[OUTPUT_KEY]
    _check(config)
    options = options or JobOptions()
    jobs = Jobs(address or config.compute.ray_address)
    error: UnreachableError | None = None
    for _ in range(_TRIES):
        known = _jobs_of_output(retry_unreachable(jobs.all, _PATIENCE), output)
        running = [job for job in known if job.status.value in _RUNNING]
        if running:
            _check_same(running[-1], metadata, jobs)
            return _submitted(jobs, running[-1], output, attached=True)
        submission_id = _next_id(output, known)
        try:
            is_started = jobs.submit(
                submission_id,
                entrypoint=make_entrypoint(config, options.python),
                runtime_env=make_runtime_env(options),
                metadata={**metadata, **options.metadata},
            )
        except UnreachableError as unreachable:  # the job may have started: look again
            error = unreachable
            continue
        if is_started:
            return SubmittedJob(submission_id, False, jobs.page(submission_id), output)
    raise error or ClusterError(
        where=f"Ray cluster {masked(jobs.address)}",
        found=f"{_TRIES} jobs in a row for {output} ended before this one could attach to them",
        expected="a job that runs long enough to attach to it",
        remedy="See their logs: ray job list, ray job logs.",
    )


def find_running_job(output: str, address: str | None = None) -> SubmittedJob | None:
    """Return the job of a cluster that works on an output; None if there is none.

    Args:
        output: URL of OUTPUT.
        address: address of the cluster, as for `Jobs`.

    Raises:
        ClusterError: as for `Jobs`.
    """
    jobs, output = Jobs(address), _output_url(output)
    running = [job for job in _jobs_of_output(jobs.all(), output) if job.status.value in _RUNNING]
    return _submitted(jobs, running[-1], output, attached=True) if running else None


def find_job(config: JobConfig, address: str | None = None) -> SubmittedJob | None:
    """Return the running job that has exactly this configuration; None if there is none.

    `submit_or_attach` would attach to this job.

    Args:
        config: configuration of the run or training.
        address: address of the cluster, as for `Jobs`.

    Raises:
        ConfigError: the configuration holds a secret.
        ClusterError: as for `Jobs`.
    """
    metadata = make_metadata(config)
    jobs, output = Jobs(address), metadata[OUTPUT_KEY]
    running = [job for job in _jobs_of_output(jobs.all(), output) if job.status.value in _RUNNING]
    if not running or _first_difference(running[-1], metadata) is not None:
        return None
    return _submitted(jobs, running[-1], output, attached=True)


def _check(config: JobConfig) -> None:
    """Check the parts of a run that can be checked without the cluster."""
    if not isinstance(config, RunConfig):
        return
    if config.model.weights is None:
        raise ConfigError(
            where="--weights",
            found="nothing",
            expected="a weights file",
            remedy="Name one; --weights demo uses the shipped weights.",
        )
    resolve_plan(config)


def _output_url(url: str) -> str:
    return Store(url).url


def _jobs_of_output(jobs: Iterable[JobDetails], output: str) -> list[JobDetails]:
    """Return the jobs of an output, oldest first."""
    of_output = [job for job in jobs if (job.metadata or {}).get(OUTPUT_KEY) == output]
    return sorted(of_output, key=lambda job: _number(job.submission_id or ""))


def _next_id(output: str, known: Iterable[JobDetails]) -> str:
    number = max((_number(job.submission_id or "") for job in known), default=0) + 1
    return f"fcnseg-{hashlib.sha256(output.encode()).hexdigest()[:10]}-{number}"


def _number(submission_id: str) -> int:
    last = submission_id.rpartition("-")[2]
    return int(last) if last.isdigit() else 0


def _submitted(jobs: Jobs, job: JobDetails, output: str, *, attached: bool) -> SubmittedJob:
    submission_id = job.submission_id or ""
    return SubmittedJob(submission_id, attached, jobs.page(submission_id), output)


def _check_same(job: JobDetails, metadata: Mapping[str, str], jobs: Jobs) -> None:
    difference = _first_difference(job, metadata)
    if difference is not None:
        name = difference.name
        existing, requested = _show(difference.then), _show(difference.now)
        page = jobs.page(job.submission_id or "")
        raise LeaseError(
            where=metadata[OUTPUT_KEY],
            found=f"job {job.submission_id} works on it with {name} = {existing}",
            expected=f"the same configuration, to attach to it; here {name} = {requested}",
            remedy=f"Wait for its end ({page}), or stop it: the same command with --stop.",
        )


def _first_difference(job: JobDetails, metadata: Mapping[str, str]) -> Difference | None:
    """Return the first field, by name, whose value in the job is not that in `metadata`."""
    existing, requested = (
        dict(sorted(flatten(json.loads(each.get(CONFIG_KEY) or "{}"))))
        for each in (job.metadata or {}, metadata)
    )
    return first_difference(existing, requested)


def make_runtime_env(options: JobOptions) -> dict[str, Any]:
    """Return Ray's runtime environment of a job: the given one, with what the driver needs."""
    # Ray reads this variable in the process that starts the driver. That process has the
    # environment of the job.
    own = {"RAY_JOB_STOP_WAIT_TIME_S": str(options.stop_seconds)}
    given = options.runtime_env.get("env_vars") or {}
    return {**options.runtime_env, "env_vars": {**own, **given}}


def _show(value: Any) -> str:
    return "its default" if value is None else show_value(value)
