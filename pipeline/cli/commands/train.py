"""`fcnseg train`: train a network, or resume a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import console
from pipeline.cli.options import (
    AsJson,
    GivenOptions,
    LogFormat,
    OptionSpec,
    read_text,
    split_list,
    takes,
)
from pipeline.concurrency import Throttle
from pipeline.text import plural

if TYPE_CHECKING:
    from rich.live import Live

    from pipeline.training.progress import TrainProgress, TrainResult


@takes(
    "input output val labels val_labels label_set layout split val_split",
    "variant recipe init stages workers address config sets log_format as_json",
    input=OptionSpec(
        Annotated[str, typer.Argument(help="Labeled images: any INPUT of `fcnseg run`.")],
        "input.url",
    ),
    output=OptionSpec(
        Annotated[
            str, typer.Option(help="Directory for weights, checkpoints and metrics; path or URL.")
        ],
        "output.url",
        is_required=True,
    ),
    val_labels=OptionSpec(
        Annotated[
            str | None,
            typer.Option(
                help="Folder of label PNGs, at the same relative paths as the images of VAL."
            ),
        ],
        "val.labels",
    ),
    label_set=OptionSpec(
        Annotated[
            str | None,
            typer.Option(
                help="Name or YAML file of the label set. Default: the one of the initial weights."
            ),
        ],
        "input.label_set",
    ),
    variant=OptionSpec(
        Annotated[
            str | None,
            typer.Option(
                help="fcn32s, fcn16s, fcn8s, fcn8s-atonce, fcn-alexnet, fcn-googlenet32s."
            ),
        ],
        "model.variant",
    ),
    recipe=OptionSpec(
        Annotated[
            str | None,
            typer.Option(help="modern, or one of the authors': heavy, accum, online."),
        ],
        "train.recipe",
    ),
    init=OptionSpec(
        Annotated[
            str | None,
            typer.Option(help="Initial weights (.safetensors; path or URL), or scratch."),
        ],
        "model.init",
    ),
    stages=OptionSpec(
        Annotated[
            str | None,
            typer.Option(help="Networks to train one after the other, such as 32s,16s,8s."),
        ],
        "train.stages",
        lambda text: split_list(text) if text else None,
    ),
    workers=OptionSpec(
        Annotated[
            int | None,
            typer.Option(min=1, help="Processes of Ray Train that share every batch."),
        ],
        "compute.workers",
    ),
    address=OptionSpec(
        Annotated[str | None, typer.Option(help="Address of the Ray cluster to train on.")],
        "compute.ray_address",
    ),
    config=OptionSpec(
        Annotated[
            str | None,
            typer.Option("--config", help="YAML file with configuration fields of a training."),
        ]
    ),
)
def train(
    given: GivenOptions,
    val: Annotated[
        str | None,
        typer.Option(help="Labeled images for validation; they choose the best weights."),
    ] = None,
    val_split: Annotated[
        str | None,
        typer.Option(
            help="With --layout: list of image ids of VAL, which is then INPUT by default."
        ),
    ] = None,
    log_format: LogFormat = None,
    as_json: AsJson = False,
) -> None:
    """Train a network on INPUT. Run the same command again to resume."""
    from pipeline.training.config import load_train_config

    console.use_log_format(log_format or "text")
    fields = dict(given.fields)
    if val is not None or val_split is not None:
        fields["val.url"] = val or given.values["input"]
    if val_split is not None:
        fields |= {"val.layout": given.values["layout"], "val.split": val_split}
    config = load_train_config(
        read_text(given.config), given.sets, fields, given.config or "--config"
    )
    # Imported here: torch takes seconds.
    from pipeline.training.driver import train as run_training

    with _progress_display() as progress:
        result = run_training(config, progress)
    if as_json:
        console.print_json(result.to_dict())
    else:
        _print(result)


@contextmanager
def _progress_display() -> Iterator[_TrainLines]:
    """Give a listener that shows progress: a live line on a terminal, plain lines elsewhere."""
    if not console.is_watched():
        yield _TrainLines(None)
        return
    from rich.live import Live

    with Live(console=console.err.rich, transient=True, auto_refresh=False) as live:
        yield _TrainLines(live)


class _TrainLines:
    """Lines of progress: one per evaluation; for steps a live line, or one per interval."""

    def __init__(self, live: Live | None) -> None:
        self.live = live
        self._is_due = Throttle(console.LINE_SECONDS)

    def __call__(self, progress: TrainProgress) -> None:
        text = describe(progress)
        if "evaluation" in progress.line:
            console.say(text)
        elif self.live is not None:
            from rich.text import Text

            self.live.update(Text(text), refresh=True)
        elif self._is_due():
            console.say(text)


def describe(progress: TrainProgress) -> str:
    """Return the progress of a training in one line."""
    line = progress.line
    begin = f"step {line['step']}/{progress.total_steps} ({line['variant']})"
    if "evaluation" in line:
        scores = line["evaluation"]
        words = ", ".join(
            f"{name.replace('_', ' ').replace('iou', 'IoU')} {console.format_score(scores[name])}"
            for name in ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")
        )
        return f"{begin}: VAL {words}"
    left = progress.seconds_left
    ends = f", {timedelta(seconds=round(left))} left" if left is not None else ""
    bad = f", {progress.bad} bad" if progress.bad else ""
    return (
        f"{begin}: loss {line['loss']:.4f}, {line['pixels_per_second'] / 1e6:.2f} Mpx/s, "
        f"{line['images_per_second']:.1f} images/s, rate {line['learning_rate']:.3g}{bad}{ends}"
    )


def _print(result: TrainResult) -> None:
    if result.best is not None:
        from rich.table import Table

        scores = result.best["evaluation"]
        table = Table("class", "IoU")
        table.columns[1].justify = "right"
        for name, iou in zip(result.classes, scores["iou"], strict=True):
            table.add_row(name, console.format_score(iou))
        table.add_section()
        table.add_row("mean IoU", console.format_score(scores["mean_iou"]))
        console.out.print(table)
        console.out.print(
            f"best on VAL: step {result.best['step']}, highest mean IoU "
            f"{console.format_score(scores['mean_iou'])}, pixel accuracy "
            f"{console.format_score(scores['pixel_accuracy'])} -> {result.output}/best.safetensors"
        )
    now = f"{result.trained_now} of them now, {result.seconds:.1f} s"
    if not result.trained_now:
        now = "finished before: nothing to do"
    bad = f", {plural(result.bad, 'bad sample')} skipped" if result.bad else ""
    console.out.print(
        f"{plural(result.step, 'step')} ({now}){bad} -> {result.output}/last.safetensors, sha256 "
        f"{result.last_sha256}"
    )
