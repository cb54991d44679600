"""TODO docstring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, ConfigFile, Output, Sets, output_store
from pipeline.text import plural

if TYPE_CHECKING:
    from pipeline.output.gc import Garbage


def gc(
    output: Output,
    older_than: Annotated[
        str, typer.Option(help="Leave younger ones alone: 24h, 90m, 7d.")
    ] = "24h",
    delete: Annotated[bool, typer.Option("--delete", help="Remove them, not only list.")] = False,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """List what no commit names. With --delete, remove it; also what killed writers left."""
    from pipeline.output.gc import collect_garbage, find_garbage, parse_age

    store, age = output_store(output, config, sets), parse_age(older_than)
    lines = GarbageLines("deleted" if delete else "would delete", quiet=as_json)
    if delete:
        collect_garbage(store, age, lines)
    else:
        for garbage in find_garbage(store, age):
            lines(garbage)
    if as_json:
        console.print_json({"deleted": delete, "objects": lines.rows, "bytes": lines.bytes})
        return
    console.err.print(
        f"{plural(lines.count, 'object')}, {console.size(lines.bytes)}"
        + ("" if delete or not lines.count else "; nothing was deleted: add --delete"),
        markup=False,
    )


class GarbageLines:
    """What gc finds, a line each; rows for --json."""

    def __init__(self, verb: str, *, quiet: bool) -> None:
        self.verb, self.quiet = verb, quiet
        self.count = self.bytes = 0
        self.rows: list[dict[str, Any]] = []

    def __call__(self, garbage: Garbage) -> None:
        """For each."""
        self.count += 1
        self.bytes += garbage.size
        if self.quiet:
            row = {"path": garbage.path, "bytes": garbage.size, "seconds_old": round(garbage.age)}
            self.rows.append(row | {"unfinished": garbage.leftover is not None})
            return
        what = "an unfinished write" if garbage.leftover else console.size(garbage.size)
        hours = garbage.age / 3600
        console.out.print(f"{self.verb} {garbage.path} ({what}, {hours:.1f} h old)", markup=False)
