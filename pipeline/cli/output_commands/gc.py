"""`fcnseg gc`: list or delete objects that no commit names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, GivenOptions, takes
from pipeline.text import plural

if TYPE_CHECKING:
    from pipeline.output.gc import Garbage


@takes("output older_than delete config sets as_json")
def gc(
    given: GivenOptions,
    older_than: Annotated[
        str, typer.Option(help="Keep objects younger than this age: 24h, 90m, 7d.")
    ] = "24h",
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the objects instead of listing them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List objects that no commit names. Also unfinished writes of processes that were killed."""
    from pipeline.output.gc import collect_garbage, find_garbage, parse_age

    store, age = given.open_output(), parse_age(older_than)
    lines = _GarbageLines("deleted" if delete else "would delete", quiet=as_json)
    if delete:
        collect_garbage(store, age, lines)
    else:
        for garbage in find_garbage(store, age):
            lines(garbage)
    if as_json:
        console.print_json({"deleted": delete, "objects": lines.rows, "bytes": lines.bytes})
        return
    console.err.print(
        f"{plural(lines.count, 'object')}, {console.format_size(lines.bytes)}"
        + ("" if delete or not lines.count else "; nothing was deleted: add --delete")
    )


class _GarbageLines:
    """One line per object on stdout; with `quiet`, rows for --json instead."""

    def __init__(self, verb: str, *, quiet: bool) -> None:
        self.verb, self.quiet = verb, quiet
        self.count = self.bytes = 0
        self.rows: list[dict[str, Any]] = []

    def __call__(self, garbage: Garbage) -> None:
        """Count and print one object."""
        self.count += 1
        self.bytes += garbage.size
        if self.quiet:
            row = {"path": garbage.path, "bytes": garbage.size, "seconds_old": round(garbage.age)}
            self.rows.append(row | {"unfinished": garbage.leftover is not None})
            return
        what = "an unfinished write" if garbage.leftover else console.format_size(garbage.size)
        console.out.print(f"{self.verb} {garbage.path} ({what}, {garbage.age / 3600:.1f} h old)")
