"""The command `fcnseg`: its subcommands, errors and exit codes.

Every command prints its result to stdout and everything else to stderr.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from fcn_core.errors import FcnError
from pipeline.cli import console
from pipeline.cli.commands.demo import demo
from pipeline.cli.commands.doctor import doctor
from pipeline.cli.commands.evaluate import evaluate
from pipeline.cli.commands.plan import plan
from pipeline.cli.commands.predict import predict
from pipeline.cli.commands.run import run
from pipeline.cli.commands.shard import shard
from pipeline.cli.commands.submit import submit
from pipeline.cli.commands.train import train
from pipeline.cli.commands.weights import app as weights_app
from pipeline.cli.output_commands.export import export
from pipeline.cli.output_commands.failed import failed
from pipeline.cli.output_commands.gc import gc
from pipeline.cli.output_commands.history import history
from pipeline.cli.output_commands.report import report
from pipeline.cli.output_commands.status import status
from pipeline.cli.output_commands.verify import verify

_TERMINATED = 128 + signal.SIGTERM

_RESUMABLE = ("demo", "shard", "run", "submit", "train", "export")


class _Commands(TyperGroup):
    """A group of commands that turns errors of this project into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; print its error, or how it was stopped, and exit."""
        arguments = tuple(ctx.args)  # kept here, because the call below empties them
        try:
            return super().invoke(ctx)
        except FcnError as error:
            console.say(f"error: {error}", logging.ERROR)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            console.say(_describe_stop("interrupted", ctx, arguments), logging.WARNING)
            raise typer.Exit(130) from None
        except SystemExit as end:
            if end.code == _TERMINATED:
                console.say(_describe_stop("terminated", ctx, arguments), logging.WARNING)
            raise


def _describe_stop(how: str, ctx: Any, arguments: Sequence[str]) -> str:
    command = ctx.invoked_subcommand
    resumes = command in _RESUMABLE or (command == "failed" and "--retry" in arguments)
    return f"{how}: run the same command again to resume" if resumes else how


def _print_version(is_given: bool) -> None:
    if is_given:
        from importlib.metadata import version

        typer.echo(f"fcnseg {version('fcn-pipeline')}")
        raise typer.Exit


app = typer.Typer(
    cls=_Commands,
    help="Segment image datasets with FCN-8s: exactly once, resumable, on a laptop or on Ray.",
    no_args_is_help=True,
    context_settings={"max_content_width": 100},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_WORK = (demo, shard, plan, run, submit, predict, evaluate, train)

_INSPECT = (status, report, history, verify, failed, gc, export, doctor)


@app.callback()
def _main(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None: ...


for command in (*_WORK, *_INSPECT):
    app.command()(command)

app.add_typer(weights_app, name="weights")


def _terminate(_signum: int, _frame: object) -> NoReturn:
    raise SystemExit(_TERMINATED)


def main() -> NoReturn:
    """Run the command that the arguments name, and exit with its code."""
    console.outlive_readers()
    console.set_up_logging()
    signal.signal(signal.SIGTERM, _terminate)
    app()
    raise AssertionError("unreachable")
