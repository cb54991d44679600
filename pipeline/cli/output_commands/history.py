"""TODO docstring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, ConfigFile, Output, Sets, output_store

if TYPE_CHECKING:
    pass


def history(
    output: Output,
    last: Annotated[int, typer.Option(min=1, help="At most so many runs, the latest.")] = 30,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """List what each run did and scored, and how it drifted."""
    from pipeline.cli.console import print_history
    from pipeline.manifest import read_manifest
    from pipeline.output.history import read_history

    store = output_store(output, config, sets)
    read_manifest(store)  # a wrong address is no output without runs
    found = read_history(store, last)
    if as_json:
        console.print_json([record.to_dict() for record in found])
    elif not found:
        console.err.print("no run has finished here", markup=False)
    else:
        print_history(found)
