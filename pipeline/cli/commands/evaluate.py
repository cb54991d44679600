"""The command that scores and writes nothing: evaluate."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fcn_core.metrics import Policy
from pipeline.cli import console
from pipeline.cli.options import (
    AsJson,
    ConfigFile,
    Input,
    Labels,
    LabelSetName,
    Layout,
    LogFormat,
    PlainForward,
    Sets,
    Split,
    Weights,
    load_logged_config,
    run_flags,
)
from pipeline.errors import ConfigError
from pipeline.text import plural

if TYPE_CHECKING:
    from pipeline.evaluation.result import Evaluation


WORST = 5
"""Shards that the text shows; --json has all."""


BAD_SHOWN = 20
"""Bad samples that stderr lists; --json has all."""


PolicyName = Annotated[
    str, typer.Option(help="reference, or present: whether predicted classes without truth count.")
]

Bound = Annotated[
    bool, typer.Option("--upper-bound", help="Score the truth against its own coarse forms.")
]

Factors = Annotated[
    str | None, typer.Option(help="Of --upper-bound, px. Default: 128,64,32,16,8,4.")
]

Widths = Annotated[
    str | None,
    typer.Option(help="Widths of boundary bands, px, or `none`. Default: 1,2,4,8,16,32."),
]

Replicates = Annotated[int, typer.Option(min=0, help="Bootstrap replicates; 0: no intervals.")]


def evaluate(
    input: Input,
    weights: Weights = None,
    labels: Labels = None,
    label_set: LabelSetName = None,
    layout: Layout = None,
    split: Split = None,
    policy: PolicyName = "reference",
    upper_bound: Bound = False,
    factors: Factors = None,
    trimap: Widths = None,
    bootstrap: Replicates = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    precision: Annotated[str | None, typer.Option(help="fp32, tf32, bf16, fp16 or int8.")] = None,
    plain_forward: PlainForward = None,
    config: ConfigFile = None,
    sets: Sets = None,
    log_format: LogFormat = None,
    as_json: AsJson = False,
) -> None:
    """Score a network on labelled images. Or what coarse masks could reach; writes nothing."""
    # Imported here: scipy and torch take their time.
    from fcn_core.metrics.bootstrap import Bootstrap
    from pipeline.evaluation import evaluate as work
    from pipeline.evaluation.result import EvaluationRequest

    question = EvaluationRequest(
        policy=_policy(policy),
        **_layers(upper_bound, factors, trimap),
        bootstrap=Bootstrap(bootstrap, seed),
    )
    flags = run_flags(input, work.NOWHERE, weights, labels, label_set, None)
    flags |= {"input.layout": layout, "input.split": split, "model.precision": precision}
    flags |= {"compute.plain_forward": plain_forward, "monitoring.log_format": log_format}
    loaded = load_logged_config(config, sets, flags)
    with console.progress_display("scoring") as progress:
        score = work.upper_bound if upper_bound else work.evaluate
        found = score(loaded, question, progress)
    if as_json:
        console.print_json(found.to_dict())
    else:
        _print(found)
    _print_bad(found)
    raise typer.Exit(found.exit_code)


def _policy(name: str) -> Policy:
    if name == "reference":
        return "reference"
    if name == "present":
        return "present"
    raise ConfigError(
        where="--policy",
        found=f"{name!r}",
        expected="reference or present",
        remedy="Choose one of them.",
    )


def _layers(upper_bound: bool, factors: str | None, trimap: str | None) -> dict[str, Any]:
    if not upper_bound:
        if factors is not None:
            raise ConfigError(
                where="--factors",
                found=f"{factors!r}",
                expected="--upper-bound beside it",
                remedy="Add it, or drop this.",
            )
        if trimap == "none":
            return {"widths": ()}
        return {"widths": tuple(sorted(_numbers("--trimap", trimap or "1,2,4,8,16,32")))}
    if trimap not in (None, "none"):
        raise ConfigError(
            where="--trimap",
            found=f"{trimap!r} beside --upper-bound",
            expected="one of the two",
            remedy="Run them one by one.",
        )
    return {"factors": _numbers("--factors", factors or "128,64,32,16,8,4")}


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """Different positive numbers between commas."""
    parts = [part.strip() for part in text.split(",")]
    numbers = tuple(int(part) for part in parts if part.isdecimal() and int(part) > 0)
    if len(numbers) != len(parts) or len(set(numbers)) != len(parts):
        raise ConfigError(
            where=option,
            found=f"{text!r}",
            expected="different whole numbers from 1 up, between commas",
            remedy="Correct it.",
        )
    return numbers


def _print(found: Evaluation) -> None:
    document = found.to_dict()
    if found.question.factors:
        console.out.print(_upper_bound_table(document["upper_bound"]))
    else:
        _print_scores(found, document)
    console.out.print(
        f"{plural(document['labeled_images'], 'labelled image')}, "
        f"{document['unlabeled_images']} without a label left out, "
        f"{len(document['failures'])} bad, {plural(len(document['shards']), 'shard')}, "
        f"{document['seconds']:.1f} s; policy {document['policy']}",
        markup=False,
    )
    if document.get("bootstrap"):
        console.out.print(
            f"95 % intervals: {document['bootstrap']['replicates']} bootstrap replicates over "
            f"images, seed {document['bootstrap']['seed']}",
            markup=False,
        )


def _print_scores(found: Evaluation, document: dict[str, Any]) -> None:
    console.out.print(_class_table(document))
    for name in ("pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"):
        words = name.replace("_", " ").replace("iou", "IU")
        console.out.print(f"{words} {_with_interval(document, name)}", markup=False)
    if "trimap" in document:
        console.out.print(_trimap_table(document))
    scored = [shard for shard in document["shards"] if shard["mean_iou"] is not None]
    worst = sorted(scored, key=lambda shard: (shard["mean_iou"], shard["shard"]))[:WORST]
    if len(scored) > 1:
        console.out.print(_shard_table(worst, len(scored)))


def _class_table(document: dict[str, Any]) -> Table:
    table = _table("class", "IU", "95 % interval", "accuracy", "label px", "predicted px")
    for index, name in enumerate(document["classes"]):
        table.add_row(
            name,
            console.number(document["iou"][index]),
            _interval(document, "iou", index),
            console.number(document["accuracy"][index]),
            f"{document['label_pixels'][index]:,}",
            f"{document['predicted_pixels'][index]:,}",
        )
    table.add_section()
    total = f"{sum(document['label_pixels']):,}"
    table.add_row(
        "mean IU", console.number(document["mean_iou"]), _interval(document, "mean_iou"), "",
        total, total,
    )  # fmt: skip
    return table


def _trimap_table(document: dict[str, Any]) -> Table:
    table = _table("boundary band", "mean IU", "95 % interval", "pixel accuracy", "label px")
    for row in (*document["trimap"], document):
        table.add_row(
            f"{row['width']} px" if "width" in row else "all pixels",
            console.number(row["mean_iou"]),
            _interval(row, "mean_iou"),
            console.number(row["pixel_accuracy"]),
            f"{sum(row['label_pixels']):,}",
        )
    return table


def _shard_table(shards: list[dict[str, Any]], total: int) -> Table:
    first = "shard" if len(shards) == total else f"worst of {total} shards"
    table = _table(first, "mean IU", "pixel accuracy", "labelled images")
    for shard in shards:
        table.add_row(
            shard["shard"],
            console.number(shard["mean_iou"]),
            console.number(shard["pixel_accuracy"]),
            str(shard["labeled_images"]),
        )
    return table


def _upper_bound_table(rows: list[dict[str, Any]]) -> Table:
    table = _table("factor", "mean IU", "95 % interval", "pixel accuracy", "paper, VOC: mean IU")
    for row in rows:
        paper = row["paper_voc_mean_iou"]
        table.add_row(
            str(row["factor"]),
            console.number(row["mean_iou"]),
            _interval(row, "mean_iou"),
            console.number(row["pixel_accuracy"]),
            "-" if paper is None else f"{paper:.3f}",
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _interval(row: dict[str, Any], name: str, index: int | None = None) -> str:
    if "intervals" not in row:
        return ""
    bounds = row["intervals"][name]
    low, high = bounds if index is None else bounds[index]
    return "-" if low is None else f"{low:.4f}-{high:.4f}"


def _with_interval(row: dict[str, Any], name: str) -> str:
    interval = _interval(row, name)
    return console.number(row[name]) + (f" ({interval})" if interval else "")


def _print_bad(found: Evaluation) -> None:
    console.print_passed_over(found.passed_over)
    for shard, failure in found.failures[:BAD_SHOWN]:
        console.say(f"bad: {failure.location}: {failure.reason} (shard {shard})", logging.WARNING)
    if len(found.failures) > BAD_SHOWN:
        more = len(found.failures) - BAD_SHOWN
        console.say(f"…and {plural(more, 'more bad sample')}; --json lists all", logging.WARNING)
    for failed in found.failed:
        console.say(f"failed: {failed.reason}", logging.ERROR)
    if found.over_limit:
        console.say(
            f"limits exceeded: {len(found.failures)} samples are bad (limits.max_bad_fraction)",
            logging.ERROR,
        )
