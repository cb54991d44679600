"""The command line. Every command prints its result to stdout and everything else to stderr."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from fcn_core.errors import FcnError
from pipeline.commands import console
from pipeline.commands import weights as cli_weights
from pipeline.commands.doctor import doctor
from pipeline.commands.evaluate import evaluate
from pipeline.commands.export import export
from pipeline.commands.label import demo, plan, predict, run, shard
from pipeline.commands.output import failed, gc, history, report, status, verify
from pipeline.commands.streams import outlive_readers
from pipeline.commands.submit import submit
from pipeline.commands.train import train

_TERMINATED = 128 + signal.SIGTERM
_RESUMED = ("demo", "shard", "run", "submit", "train", "export")


class _Commands(TyperGroup):
    """Our errors as one line and an exit code, whichever command raises them."""

    def invoke(self, ctx: Any) -> Any:
        arguments = tuple(ctx.args)  # of the command: gone when it runs
        try:
            return super().invoke(ctx)
        except FcnError as error:
            console.say(f"error: {error}", logging.ERROR)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            console.say(_stopped("interrupted", ctx, arguments), logging.WARNING)
            raise typer.Exit(130) from None
        except SystemExit as end:
            if end.code == _TERMINATED:
                console.say(_stopped("terminated", ctx, arguments), logging.WARNING)
            raise


def _stopped(how: str, ctx: Any, arguments: Sequence[str]) -> str:
    """How it ended, and what to do where the command goes on from what it has done."""
    command = ctx.invoked_subcommand
    resumes = command in _RESUMED or (command == "failed" and "--retry" in arguments)
    return f"{how}: run the same command again to resume" if resumes else how


def _say_version(wanted: bool) -> None:
    if wanted:
        console.out.print(f"fcnseg {version('fcn-pipeline')}", markup=False)
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    help="Label image datasets with FCN-8s: exactly once, resumable, on a laptop or a Ray cluster.",
    no_args_is_help=True,
    context_settings={"max_content_width": 100},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_LABEL = (demo, shard, plan, run, submit, predict, evaluate, train)
_LOOK = (status, report, history, verify, failed, gc, export, doctor)


@app.callback()
def _main(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Show it, exit."),
    ] = False,
) -> None: ...


for command in (*_LABEL, *_LOOK):
    app.command()(command)
app.add_typer(cli_weights.app, name="weights")


def _terminate(_signum: int, _frame: object) -> NoReturn:
    raise SystemExit(_TERMINATED)


def main() -> NoReturn:
    """Run a command and exit with its code."""
    outlive_readers()
    console.set_up_logging()
    signal.signal(signal.SIGTERM, _terminate)
    app()
    raise AssertionError("unreachable")
