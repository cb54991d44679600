"""TODO docstring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, ConfigFile, Output, Sets, output_store

if TYPE_CHECKING:
    pass


def verify(
    output: Output,
    deep: Annotated[bool, typer.Option(help="Decode every mask too.")] = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Re-read every object against its commit. Exits 1 if one differs."""
    from pipeline.output.lease import read_lease
    from pipeline.output.verify import verify as verify_output

    store = output_store(output, config, sets)
    found = verify_output(store, deep=deep, listen=console.VerifyLines(quiet=as_json))
    if as_json:
        console.print_json(vars(found))
    else:
        console.out.print(console.describe_verification(found), markup=False)
    if not found.problem_count:
        return
    holder = read_lease(store)
    if holder is not None and holder.is_in_force():
        console.err.print(
            f"a driver is at work ({holder.describe()}): verify again when it is done",
            markup=False,
        )
    console.err.print(
        "to label a shard again, delete its _commits/<shard>.json and run again", markup=False
    )
    raise typer.Exit(1)
