"""The commands that label: demo, shard, plan, run, predict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pipeline.cli import console
from pipeline.cli.commands.plan import _print_plan
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
    PlainForward,
    Sets,
    ShardSize,
    Since,
    Split,
    Weights,
    load_logged_config,
    run_flags,
    selected,
)
from pipeline.config import RunConfig

if TYPE_CHECKING:
    pass


def run(
    input: Input,
    output: Output,
    weights: Weights = None,
    labels: Labels = None,
    label_set: LabelSetName = None,
    layout: Layout = None,
    split: Split = None,
    masks: Masks = None,
    executor: Annotated[str | None, typer.Option(help="local or ray.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to run on.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Copies of the network.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="GPU share of one copy.")] = None,
    memory_limit: Annotated[
        str | None, typer.Option(help="Most memory of all copies on a machine, like 8GiB.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, tf32, bf16, fp16 or int8.")] = None,
    plain_forward: PlainForward = None,
    limit_shards: LimitShards = None,
    include: Include = None,
    exclude: Exclude = None,
    since: Since = None,
    shard_size: ShardSize = None,
    config: ConfigFile = None,
    sets: Sets = None,
    log_format: LogFormat = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, help="Serve metrics to Prometheus there meanwhile.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only plan.")] = False,
    as_json: AsJson = False,
) -> None:
    """Label INPUT into OUTPUT. Running the same command again resumes."""
    flags = run_flags(input, output, weights, labels, label_set, masks)
    flags |= {
        "compute.executor": executor or ("ray" if address else None),
        "compute.ray_address": address,
        "compute.workers": workers,
        "compute.gpus_per_worker": gpus_per_worker,
        "limits.memory": memory_limit,
        "model.precision": precision,
        "compute.plain_forward": plain_forward,
        "input.shard_size": shard_size,
        "monitoring.log_format": log_format,
        "monitoring.metrics_port": metrics_port,
        "input.layout": layout,
        "input.split": split,
        **selected(limit_shards, include, exclude, since),
    }
    loaded = load_logged_config(config, sets, flags)
    if dry_run:
        _print_plan(loaded, as_json)
    else:
        _run(loaded, as_json)


def _run(config: RunConfig, as_json: bool) -> NoReturn:
    from pipeline.driver import run as run_pipeline

    with console.progress_display() as progress:
        result = run_pipeline(config, progress, finish_on_interrupt=True)
    console.print_result(result, as_json=as_json)
    raise typer.Exit(result.exit_code)
