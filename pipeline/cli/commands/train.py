"""The command that trains: train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.cli import console
from pipeline.cli.options import AsJson, Labels, Layout, LogFormat, Sets, Split, read_text
from pipeline.concurrency import Throttle
from pipeline.text import plural

if TYPE_CHECKING:
    from pipeline.training.progress import TrainProgress, TrainResult


Input = Annotated[str, typer.Argument(help="Labelled images: any input of `fcnseg run`.")]

Val = Annotated[str | None, typer.Option(help="Labelled images that say which weights are best.")]

ValLabels = Annotated[str | None, typer.Option(help="Folder of label PNGs parallel to VAL.")]

ValSplit = Annotated[
    str | None, typer.Option(help="With --layout: the list of ids of VAL; VAL defaults to INPUT.")
]

Output = Annotated[str, typer.Option(help="Directory of this training; any URL.")]

LabelSetName = Annotated[
    str | None,
    typer.Option(help="Built-in name or YAML file. Default: that of the initial weights."),
]

Variant = Annotated[
    str | None,
    typer.Option(help="fcn32s, fcn16s, fcn8s, fcn8s-atonce, fcn-alexnet, fcn-googlenet32s."),
]

RecipeName = Annotated[
    str | None, typer.Option(help="heavy, accum, online (the authors'), or modern.")
]

Init = Annotated[
    str | None, typer.Option(help="Weights to start from (.safetensors; any URL), or scratch.")
]

Stages = Annotated[
    str | None, typer.Option(help="Networks one after the other, comma-separated: 32s,16s,8s.")
]

ConfigFile = Annotated[
    str | None, typer.Option("--config", help="YAML file of a training's configuration.")
]

Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes that share every batch, by Ray Train.")
]


def train(
    input: Input,
    output: Output,
    val: Val = None,
    labels: Labels = None,
    val_labels: ValLabels = None,
    label_set: LabelSetName = None,
    layout: Layout = None,
    split: Split = None,
    val_split: ValSplit = None,
    variant: Variant = None,
    recipe: RecipeName = None,
    init: Init = None,
    stages: Stages = None,
    workers: Workers = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to train on.")] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    log_format: LogFormat = None,
    as_json: AsJson = False,
) -> None:
    """Train a network on INPUT. Running the same command again resumes."""
    from pipeline.training.config import load_train_config

    console.use_log_format(log_format or "text")
    has_val = val is not None or val_split is not None
    flags: dict[str, Any] = {
        "input.url": input,
        "input.labels": labels,
        "input.label_set": label_set,
        "input.layout": layout,
        "input.split": split,
        "val.url": (val or input) if has_val else None,
        "val.labels": val_labels,
        "val.layout": layout if val_split is not None else None,
        "val.split": val_split,
        "output.url": output,
        "model.variant": variant,
        "model.init": init,
        "train.recipe": recipe,
        "train.stages": [name.strip() for name in stages.split(",")] if stages else None,
        "compute.workers": workers,
        "compute.ray_address": address,
    }
    loaded = load_train_config(read_text(config), sets or [], flags, config or "--config")
    # Imported here: torch takes its time.
    from pipeline.training.driver import train as run_training

    with _display() as progress:
        result = run_training(loaded, progress)
    if as_json:
        console.print_json(result.to_dict())
    else:
        _print(result)


@contextmanager
def _display() -> Iterator[_Lines]:
    """A live line on a terminal, plain ones elsewhere."""
    if not console.is_watched():
        yield _Lines(None)
        return
    with Live(console=console.err, transient=True, auto_refresh=False) as live:
        yield _Lines(live)


class _Lines:
    """What a training says of itself: evaluations always, steps if it is time."""

    def __init__(self, live: Live | None) -> None:
        self.live = live
        self._is_due = Throttle(console.LINE_SECONDS)

    def __call__(self, progress: TrainProgress) -> None:
        """After each line of metrics."""
        text = describe(progress)
        if "evaluation" in progress.line:
            console.say(text)
        elif self.live is not None:
            self.live.update(Text(text), refresh=True)
        elif self._is_due():
            console.say(text)


def describe(progress: TrainProgress) -> str:
    """One line."""
    line = progress.line
    begin = f"step {line['step']}/{progress.total_steps} ({line['variant']})"
    if "evaluation" in line:
        scores = line["evaluation"]
        found = ", ".join(
            f"{name.replace('_', ' ').replace('iou', 'IU')} {console.number(scores[name])}"
            for name in ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")
        )
        return f"{begin}: VAL {found}"
    left = progress.seconds_left
    ends = f", {timedelta(seconds=round(left))} left" if left is not None else ""
    bad = f", {progress.bad} bad" if progress.bad else ""
    return (
        f"{begin}: loss {line['loss']:.4f}, {line['pixels_per_second'] / 1e6:.2f} Mpx/s, "
        f"{line['images_per_second']:.1f} images/s, rate {line['learning_rate']:.3g}{bad}{ends}"
    )


def _print(result: TrainResult) -> None:
    if result.best is not None:
        found = result.best["evaluation"]
        table = Table("class", "IU")
        table.columns[1].justify = "right"
        for name, iou in zip(result.classes, found["iou"], strict=True):
            table.add_row(name, console.number(iou))
        table.add_section()
        table.add_row("mean IU", console.number(found["mean_iou"]))
        console.out.print(table)
        console.out.print(
            f"best on VAL: step {result.best['step']}, highest mean IU "
            f"{console.number(found['mean_iou'])}, pixel accuracy "
            f"{console.number(found['pixel_accuracy'])} -> {result.output}/best.safetensors",
            markup=False,
        )
    now = f"{result.trained_now} of them now, {result.seconds:.1f} s"
    if not result.trained_now:
        now = "finished before: nothing to do"
    bad = f", {plural(result.bad, 'bad sample')} skipped" if result.bad else ""
    console.out.print(
        f"{plural(result.step, 'step')} ({now}){bad} -> {result.output}/last.safetensors, sha256 "
        f"{result.last_sha256}",
        markup=False,
    )
