"""`fcnseg submit`: run as a job of a Ray cluster; submit or attach, follow, stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, GivenOptions, read_text, takes

if TYPE_CHECKING:
    from pipeline.ray_jobs.ray_submit import SubmittedJob


@takes(
    "input output weights labels label_set layout split masks",
    "address workers gpus_per_worker precision",
    "limit_shards include exclude since shard_size config sets",
    "working_dir runtime_env python wait stop log_format as_json",
)
def submit(
    given: GivenOptions,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster: http://HEAD:8265. Default: RAY_ADDRESS."),
    ] = None,
    working_dir: Annotated[
        str | None,
        typer.Option(help="Folder or zip URL with this code, if the cluster does not have it."),
    ] = None,
    runtime_env: Annotated[
        str | None,
        typer.Option(help="YAML file of a Ray runtime environment; must not hold secrets."),
    ] = None,
    python: Annotated[str, typer.Option(help="Python interpreter on the cluster.")] = "python",
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the job until it ends.")
    ] = True,
    stop: Annotated[
        bool,
        typer.Option("--stop", help="Submit nothing; stop the job that works on OUTPUT."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run as a job of a Ray cluster. Attaches to the job if it is running already.

    Exits with the code of the run. Ctrl-C stops following, not the job.
    """
    config = given.load_logged_config()
    address = address or config.compute.ray_address
    if stop:
        _stop(config.output.url, address, as_json=as_json)
    from pipeline.ray_jobs.ray_submit import JobOptions, submit_or_attach

    environment = _runtime_env(runtime_env, working_dir)
    job = submit_or_attach(config, address, JobOptions(python, environment))
    verb = "attached to" if job.attached else "submitted"
    console.say(f"{verb} job {job.submission_id}: {job.page}")
    if wait:
        _follow(job, address, as_json=as_json)
    if as_json:
        console.print_json(asdict(job))
    else:
        console.out.print(job.submission_id)


def _runtime_env(file: str | None, working_dir: str | None) -> dict[str, Any]:
    from pipeline.config import parse_yaml

    text = read_text(file, "--runtime-env")
    tree = parse_yaml(text, f"--runtime-env {file}") if text else {}
    return tree | ({"working_dir": working_dir} if working_dir is not None else {})


def _follow(job: SubmittedJob, address: str | None, *, as_json: bool) -> NoReturn:
    """Print the log of the job to stderr until it ends, then how it ended to stdout."""
    from pipeline.ray_jobs.ray_follow import follow

    was_reachable = True
    with _detaching(job):
        for reading in follow(address, job.submission_id):
            if reading.left_out:
                console.say(f"({reading.left_out} lines left out)")
            for line in reading.lines:
                console.relay(line)
            if reading.is_reachable != was_reachable:
                was_reachable = reading.is_reachable
                console.say(
                    "the cluster answers again"
                    if was_reachable
                    else "the cluster does not answer; the job may still be running. Trying again"
                )
    code = 1 if reading.exit_code is None else reading.exit_code
    if as_json:
        end = {"status": reading.status, "exit_code": code, "reason": reading.reason}
        console.print_json(asdict(job) | end)
    else:
        line = f"job {job.submission_id} {reading.status}: exit code {code}: {reading.reason}"
        console.out.print(line)
    raise typer.Exit(code)


@contextmanager
def _detaching(job: SubmittedJob) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        console.say(
            f"stopped following job {job.submission_id}, which is still running: run the same "
            "command again to follow it, or with --stop to stop it"
        )
        raise typer.Exit(130) from None


def _stop(output: str, address: str | None, *, as_json: bool) -> NoReturn:
    from pipeline.ray_jobs.ray_follow import stop
    from pipeline.ray_jobs.ray_submit import find_running_job

    job = find_running_job(output, address)
    if job is None:
        document: dict[str, Any] = {"submission_id": None}
        line = f"no job of this cluster works on {output}"
    else:
        end = stop(address, job.submission_id)
        free = "its lease is free" if end.holder is None else f"held by {end.holder.describe()}"
        document = {
            "submission_id": job.submission_id,
            "status": end.status,
            "exit_code": end.exit_code,
            "lease_is_free": end.lease_is_free,
        }
        line = f"job {job.submission_id} {end.status}: exit code {end.exit_code}; {free}"
    if as_json:
        console.print_json(document)
    else:
        console.out.print(line)
    raise typer.Exit(0)
