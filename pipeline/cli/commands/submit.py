"""The command that has a Ray cluster do a run: submit or attach, follow, stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pipeline.cli import console
from pipeline.cli.options import (
    AsJson,
    ConfigFile,
    Exclude,
    Include,
    Input,
    Labels,
    LabelSetName,
    Layout,
    LimitShards,
    LogFormat,
    Masks,
    Output,
    Sets,
    ShardSize,
    Since,
    Split,
    Weights,
    load_logged_config,
    read_text,
    run_flags,
    selected,
)
from pipeline.config import parse_yaml

if TYPE_CHECKING:
    from pipeline.ray_jobs.ray_submit import SubmittedJob


def submit(
    input: Input,
    output: Output,
    weights: Weights = None,
    labels: Labels = None,
    label_set: LabelSetName = None,
    layout: Layout = None,
    split: Split = None,
    masks: Masks = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster: http://HEAD:8265. Default: RAY_ADDRESS."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Copies of the network.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="GPU share of one copy.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, tf32, bf16, fp16 or int8.")] = None,
    limit_shards: LimitShards = None,
    include: Include = None,
    exclude: Exclude = None,
    since: Since = None,
    shard_size: ShardSize = None,
    config: ConfigFile = None,
    sets: Sets = None,
    working_dir: Annotated[
        str | None, typer.Option(help="Folder or zip URL with this code, for the cluster.")
    ] = None,
    runtime_env: Annotated[
        str | None, typer.Option(help="YAML file: Ray's runtime environment. No secrets.")
    ] = None,
    python: Annotated[str, typer.Option(help="Interpreter on the cluster.")] = "python",
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the job until it ends.")
    ] = True,
    stop: Annotated[
        bool, typer.Option("--stop", help="Stop the job that works on OUTPUT instead.")
    ] = False,
    log_format: LogFormat = None,
    as_json: AsJson = False,
) -> None:
    """Label by a job of a Ray cluster. Attaches to it if it runs already.

    Exits as the run does. Ctrl-C stops following, not the job.
    """
    flags = run_flags(input, output, weights, labels, label_set, masks)
    flags |= {
        "compute.workers": workers,
        "compute.gpus_per_worker": gpus_per_worker,
        "model.precision": precision,
        "input.shard_size": shard_size,
        "monitoring.log_format": log_format,
        "input.layout": layout,
        "input.split": split,
        **selected(limit_shards, include, exclude, since),
    }
    loaded = load_logged_config(config, sets, flags)
    address = address or loaded.compute.ray_address
    if stop:
        _stop(loaded.output.url, address, as_json=as_json)
    from pipeline.ray_jobs.ray_submit import JobOptions, submit_or_attach

    environment = _runtime_env(runtime_env, working_dir)
    job = submit_or_attach(loaded, address, JobOptions(python, environment))
    verb = "attached to" if job.attached else "submitted"
    console.say(f"{verb} job {job.submission_id}: {job.page}")
    if wait:
        _follow(job, address, as_json=as_json)
    if as_json:
        console.print_json(asdict(job))
    else:
        console.out.print(job.submission_id, markup=False)


def _runtime_env(file: str | None, working_dir: str | None) -> dict[str, Any]:
    text = read_text(file, "--runtime-env")
    tree = parse_yaml(text, f"--runtime-env {file}") if text else {}
    return tree | ({"working_dir": working_dir} if working_dir is not None else {})


def _follow(job: SubmittedJob, address: str | None, *, as_json: bool) -> NoReturn:
    """Relay the job's log to stderr until it ends; then its end to stdout."""
    from pipeline.ray_jobs.ray_follow import follow

    was_reachable = True
    with _detaching(job):
        for look in follow(address, job.submission_id):
            if look.left_out:
                console.say(f"({look.left_out} more lines)")
            for line in look.lines:
                console.relay(line)
            if look.is_reachable != was_reachable:
                was_reachable = look.is_reachable
                console.say(
                    "the cluster answers again"
                    if was_reachable
                    else "the cluster does not answer; the job may go on. Trying again"
                )
    code = 1 if look.exit_code is None else look.exit_code
    if as_json:
        end = {"status": look.status, "exit_code": code, "reason": look.reason}
        console.print_json(asdict(job) | end)
    else:
        line = f"job {job.submission_id} {look.status}: exit code {code}: {look.reason}"
        console.out.print(line, markup=False)
    raise typer.Exit(code)


@contextmanager
def _detaching(job: SubmittedJob) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        console.say(
            f"no longer following job {job.submission_id}, which goes on: the same command attaches"
            " to it again, with --stop it stops it"
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
        console.out.print(line, markup=False)
    raise typer.Exit(0)
