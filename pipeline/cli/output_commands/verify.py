"""`fcnseg verify`: compare every object of an output with its commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, GivenOptions, takes
from pipeline.concurrency import Throttle
from pipeline.text import plural

if TYPE_CHECKING:
    from pipeline.output.verify import Verification


@takes("output deep config sets as_json")
def verify(
    given: GivenOptions,
    deep: Annotated[bool, typer.Option(help="Also decode every mask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read every object again and compare it with its commit. Exits 1 if one differs."""
    from pipeline.output.lease import read_lease
    from pipeline.output.verify import verify as verify_output

    store = given.open_output()
    verification = verify_output(store, deep=deep, listen=_VerifyLines(quiet=as_json))
    if as_json:
        console.print_json(vars(verification))
    else:
        console.out.print(_describe(verification))
    if not verification.problem_count:
        return
    holder = read_lease(store)
    if holder is not None and holder.is_in_force():
        console.err.print(
            f"a driver is writing to this output ({holder.describe()}): verify again when it is "
            "done"
        )
    console.err.print("to segment a shard again, delete its _commits/<shard>.json and run again")
    raise typer.Exit(1)


class _VerifyLines:
    """Problems on stdout as they come, and progress on stderr, one line per interval."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self._is_due = Throttle(console.LINE_SECONDS, is_due_at_once=False)

    def __call__(self, verification: Verification, problems: Sequence[tuple[str, str]]) -> None:
        """Print the problems of one more shard."""
        if not self.quiet:
            for path, problem in problems:
                console.out.print(f"{path}: {problem}")
        if self._is_due():
            console.err.print(f"verifying: {_describe(verification)}")


def _describe(verification: Verification) -> str:
    return (
        f"{plural(verification.shards, 'shard')}, {plural(verification.files, 'object')}, "
        f"{console.format_size(verification.bytes)}: "
        f"{plural(verification.problem_count, 'problem')}"
    )
