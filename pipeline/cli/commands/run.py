"""`fcnseg run`: segment what is pending and commit it to OUTPUT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pipeline.cli import console
from pipeline.cli.commands.plan import print_plan
from pipeline.cli.options import AsJson, GivenOptions, takes
from pipeline.cli.results import print_result

if TYPE_CHECKING:
    from pipeline.config import RunConfig


@takes(
    "input output weights labels label_set layout split masks",
    "executor address workers gpus_per_worker memory_limit precision plain_forward",
    "limit_shards include exclude since shard_size",
    "config sets log_format metrics_port dry_run as_json",
)
def run(
    given: GivenOptions,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Segment INPUT and write masks and scores to OUTPUT. Run the same command again to resume."""
    address = given.values["address"]
    executor = given.values["executor"] or ("ray" if address else None)
    config = given.load_logged_config({"compute.executor": executor})
    if dry_run:
        print_plan(config, as_json=as_json)
    else:
        run_and_exit(config, as_json=as_json)


def run_and_exit(config: RunConfig, *, as_json: bool) -> NoReturn:
    """Run a configuration with progress on stderr, print the result, exit with its code."""
    from pipeline.driver import run as run_pipeline

    with console.progress_display() as progress:
        result = run_pipeline(config, progress, finish_on_interrupt=True)
    print_result(result, as_json=as_json)
    raise typer.Exit(result.exit_code)
