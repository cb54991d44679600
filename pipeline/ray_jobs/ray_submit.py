"""A run or a training as a Ray job: submitted once, attached to by whoever asks for it again.

A job is told from others by its metadata: the URL of its OUTPUT and its configuration. Ids of jobs
are numbered by output, and a cluster takes an id only once: of two that submit at the same moment
one starts the job and the other attaches to it. Were there two all the same (another cluster), the
lease would let one work and end the other with 75.
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
    entrypoint,
    flat,
    metadata_of,
)
from pipeline.ray_jobs.ray_client import Jobs, UnreachableError, patiently
from pipeline.redact import masked
from pipeline.resolve import resolve_plan
from pipeline.storage.store import Store
from pipeline.text import Difference, first_difference, show_value

if TYPE_CHECKING:
    from ray.job_submission import JobDetails


STOP_SECONDS = 60
"""Between the SIGTERM and the SIGKILL of a job that is stopped; Ray's default is 3."""


_RUNNING = ("PENDING", "RUNNING")

_TRIES = 5

_PATIENCE = 60.0  # seconds, with a cluster that answered before


@dataclass(frozen=True)
class JobOptions:
    """How the driver is started on the cluster.

    Attributes:
        python: the interpreter there.
        runtime_env: Ray's: working_dir, env_vars, pip, … Whoever may see the cluster's jobs sees
            it, variables too: no place for secrets.
        metadata: more of it, for the submitter's own purposes.
        stop_seconds: what the driver has to end in when it is stopped, unless `runtime_env` sets
            RAY_JOB_STOP_WAIT_TIME_S itself.
    """

    python: str = "python"
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    stop_seconds: int = STOP_SECONDS


@dataclass(frozen=True)
class Submitted:
    """A job that works on an output.

    Attributes:
        submission_id: its id, for `ray job logs` and the like.
        attached: whether it was there before.
        page: URL of its page in the dashboard.
        output: URL of OUTPUT.
    """

    submission_id: str
    attached: bool
    page: str
    output: str


def submit_or_attach(
    config: JobConfig, address: str | None = None, options: JobOptions | None = None
) -> Submitted:
    """Make sure that a job of this cluster does this run. Returns as soon as there is one.

    Args:
        config: the run or training; `compute.ray_address` and `compute.executor` do not count, the
            job runs where it is submitted to. Paths and URLs are those that the cluster reads.
        address: see `Jobs`; by default `compute.ray_address`, then the environment's.
        options: for a new job; one that is attached to stays as it is.

    Raises:
        ConfigError: the configuration cannot be that of a run, or holds a secret.
        LeaseError: a job of another configuration works on this output.
        ClusterError: see `Jobs`.
    """
    mine = metadata_of(config)
    output = mine[OUTPUT_KEY]
    _check(config)
    options = options or JobOptions()
    jobs = Jobs(address or config.compute.ray_address)
    error: UnreachableError | None = None
    for _ in range(_TRIES):
        known = _of_output(patiently(jobs.all, _PATIENCE), output)
        running = [job for job in known if job.status.value in _RUNNING]
        if running:
            _check_same(running[-1], mine, jobs)
            return _submitted(jobs, running[-1], output, attached=True)
        name = _next_id(output, known)
        try:
            started = jobs.submit(
                name,
                entrypoint=entrypoint(config, options.python),
                runtime_env=_runtime_env(options),
                metadata={**mine, **options.metadata},
            )
        except UnreachableError as lost:  # perhaps only its answer: then the job is there now
            error = lost
            continue
        if started:
            return Submitted(name, False, jobs.page(name), output)
    raise error or ClusterError(
        where=f"Ray cluster {masked(jobs.address)}",
        found=f"{_TRIES} jobs in a row for {output} ended before this one could attach to them",
        expected="one that lasts",
        remedy="Their logs say why: ray job list, ray job logs.",
    )


def running_job(output: str, address: str | None = None) -> Submitted | None:
    """The job of this cluster that works on an output, if there is one.

    Raises:
        ClusterError: see `Jobs`.
    """
    jobs, output = Jobs(address), _output_url(output)
    running = [job for job in _of_output(jobs.all(), output) if job.status.value in _RUNNING]
    return _submitted(jobs, running[-1], output, attached=True) if running else None


def job_of(config: JobConfig, address: str | None = None) -> Submitted | None:
    """The job of this cluster that does this very run: one that `submit_or_attach` attaches to.

    Raises:
        ConfigError: the configuration holds a secret.
        ClusterError: see `Jobs`.
    """
    mine = metadata_of(config)
    jobs, output = Jobs(address), mine[OUTPUT_KEY]
    running = [job for job in _of_output(jobs.all(), output) if job.status.value in _RUNNING]
    if not running or _difference(running[-1], mine) is not None:
        return None
    return _submitted(jobs, running[-1], output, attached=True)


def _check(config: JobConfig) -> None:
    """All of a run that can be checked from here."""
    if not isinstance(config, RunConfig):
        return
    if config.model.weights is None:
        raise ConfigError(
            where="--weights",
            found="nothing",
            expected="a weights file",
            remedy="For the shipped ones: --weights demo.",
        )
    resolve_plan(config)


def _output_url(url: str) -> str:
    return Store(url).url


def _of_output(jobs: Iterable[JobDetails], output: str) -> list[JobDetails]:
    """The jobs of an output, oldest first."""
    mine = [job for job in jobs if (job.metadata or {}).get(OUTPUT_KEY) == output]
    return sorted(mine, key=lambda job: _number(job.submission_id or ""))


def _next_id(output: str, known: Iterable[JobDetails]) -> str:
    number = max((_number(job.submission_id or "") for job in known), default=0) + 1
    return f"fcnseg-{hashlib.sha256(output.encode()).hexdigest()[:10]}-{number}"


def _number(submission_id: str) -> int:
    last = submission_id.rpartition("-")[2]
    return int(last) if last.isdigit() else 0


def _submitted(jobs: Jobs, job: JobDetails, output: str, *, attached: bool) -> Submitted:
    name = job.submission_id or ""
    return Submitted(name, attached, jobs.page(name), output)


def _check_same(job: JobDetails, mine: Mapping[str, str], jobs: Jobs) -> None:
    difference = _difference(job, mine)
    if difference is not None:
        name, then, now = difference.name, *map(_short, (difference.then, difference.now))
        raise LeaseError(
            where=mine[OUTPUT_KEY],
            found=f"job {job.submission_id} works on it with {name} = {then}",
            expected=f"the same configuration, to attach to it; here {name} = {now}",
            remedy=f"Wait for it ({jobs.page(job.submission_id or '')}), or stop it: the same command "
            "with --stop.",
        )


def _difference(job: JobDetails, ours: Mapping[str, str]) -> Difference | None:
    """The first field, by name, in which a job's configuration differs from ours."""
    theirs, own = (
        dict(sorted(flat(json.loads(metadata.get(CONFIG_KEY) or "{}"))))
        for metadata in (job.metadata or {}, ours)
    )
    return first_difference(theirs, own)


def _runtime_env(options: JobOptions) -> dict[str, Any]:
    # Ray reads the time to stop in the process that starts the driver, which has the variables of
    # the job's runtime environment.
    own = {"RAY_JOB_STOP_WAIT_TIME_S": str(options.stop_seconds)}
    given = options.runtime_env.get("env_vars") or {}
    return {**options.runtime_env, "env_vars": {**own, **given}}


def _short(value: Any) -> str:
    return "its default" if value is None else show_value(value)
