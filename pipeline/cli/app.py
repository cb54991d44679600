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
from pipeline.cli import console
from pipeline.cli.commands import weights as cli_weights
from pipeline.cli.commands.demo import demo
from pipeline.cli.commands.doctor import doctor
from pipeline.cli.commands.evaluate import evaluate
from pipeline.cli.commands.plan import plan
from pipeline.cli.commands.predict import predict
from pipeline.cli.commands.run import run
from pipeline.cli.commands.shard import shard
from pipeline.cli.commands.submit import submit
from pipeline.cli.commands.train import train
from pipeline.cli.console import outlive_readers
from pipeline.cli.output_commands.export import export
from pipeline.cli.output_commands.failed import failed
from pipeline.cli.output_commands.gc import gc
from pipeline.cli.output_commands.history import history
from pipeline.cli.output_commands.report import report
from pipeline.cli.output_commands.status import status
from pipeline.cli.output_commands.verify import verify

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
