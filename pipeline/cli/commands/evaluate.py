"""`fcnseg evaluate`: score a network, or what coarse masks can reach; write nothing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, GivenOptions, takes
from pipeline.cli.results import print_ignored
from pipeline.errors import ConfigError
from pipeline.text import plural

if TYPE_CHECKING:
    from rich.table import Table

    from fcn_core.metrics import Policy
    from pipeline.evaluation.result import Evaluation


WORST_SHOWN = 5
"""Shards in the table of the worst; --json has all."""


BAD_SHOWN = 20
"""Bad samples listed on stderr; --json has all."""


@takes(
    "input weights labels label_set layout split",
    "policy upper_bound factors trimap bootstrap seed",
    "precision plain_forward config sets log_format as_json",
)
def evaluate(
    given: GivenOptions,
    policy: Annotated[
        str,
        typer.Option(
            help="Classes in the means: reference (in the labels or predicted), or present (in "
            "the labels)."
        ),
    ] = "reference",
    upper_bound: Annotated[
        bool,
        typer.Option("--upper-bound", help="Score the labels against coarse copies of themselves."),
    ] = False,
    factors: Annotated[
        str | None,
        typer.Option(help="Factors of --upper-bound, px. Default: 128,64,32,16,8,4."),
    ] = None,
    trimap: Annotated[
        str | None,
        typer.Option(help="Widths of boundary bands, px, or `none`. Default: 1,2,4,8,16,32."),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Bootstrap replicates; 0 computes no intervals.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the bootstrap.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Score a network on labeled images. Or score what coarse masks can reach."""
    # Imported here: scipy and torch take seconds.
    from fcn_core.metrics.bootstrap import Bootstrap
    from pipeline.evaluation import evaluate as evaluation
    from pipeline.evaluation.result import EvaluationRequest

    request = EvaluationRequest(
        policy=_policy(policy),
        **_layers(upper_bound, factors, trimap),
        bootstrap=Bootstrap(bootstrap, seed),
    )
    config = given.load_logged_config({"output.url": evaluation.NOWHERE})
    with console.progress_display("scoring") as progress:
        score = evaluation.upper_bound if upper_bound else evaluation.evaluate
        result = score(config, request, progress)
    if as_json:
        console.print_json(result.to_dict())
    else:
        _print(result)
    _print_failures(result)
    raise typer.Exit(result.exit_code)


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
                expected="--factors together with --upper-bound",
                remedy="Add --upper-bound, or leave --factors out.",
            )
        if trimap == "none":
            return {"widths": ()}
        return {"widths": tuple(sorted(_numbers("--trimap", trimap or "1,2,4,8,16,32")))}
    if trimap not in (None, "none"):
        raise ConfigError(
            where="--trimap",
            found=f"{trimap!r} together with --upper-bound",
            expected="one of the two",
            remedy="Run evaluate twice, once with each.",
        )
    return {"factors": _numbers("--factors", factors or "128,64,32,16,8,4")}


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """Return the numbers of a comma-separated list: positive and different."""
    parts = [part.strip() for part in text.split(",")]
    numbers = tuple(int(part) for part in parts if part.isdecimal() and int(part) > 0)
    if len(numbers) != len(parts) or len(set(numbers)) != len(parts):
        raise ConfigError(
            where=option,
            found=f"{text!r}",
            expected="different whole numbers, 1 or more, separated by commas",
            remedy="Correct the list.",
        )
    return numbers


def _print(result: Evaluation) -> None:
    document = result.to_dict()
    if result.request.factors:
        console.out.print(_upper_bound_table(document["upper_bound"]))
    else:
        _print_scores(result, document)
    console.out.print(
        f"{plural(document['labeled_images'], 'labeled image')}, "
        f"{document['unlabeled_images']} without a label left out, "
        f"{len(document['failures'])} bad, {plural(len(document['shards']), 'shard')}, "
        f"{document['seconds']:.1f} s; policy {document['policy']}"
    )
    if document.get("bootstrap"):
        console.out.print(
            f"95 % intervals: {document['bootstrap']['replicates']} bootstrap replicates over "
            f"images, seed {document['bootstrap']['seed']}"
        )


def _print_scores(result: Evaluation, document: dict[str, Any]) -> None:
    console.out.print(_class_table(document))
    for name in ("pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"):
        words = name.replace("_", " ").replace("iou", "IoU")
        console.out.print(f"{words} {_with_interval(document, name)}")
    if "trimap" in document:
        console.out.print(_trimap_table(document))
    scored = [shard for shard in document["shards"] if shard["mean_iou"] is not None]
    worst = sorted(scored, key=lambda shard: (shard["mean_iou"], shard["shard"]))[:WORST_SHOWN]
    if len(scored) > 1:
        console.out.print(_shard_table(worst, len(scored)))


def _class_table(document: dict[str, Any]) -> Table:
    table = _table("class", "IoU", "95 % interval", "accuracy", "label px", "predicted px")
    for index, name in enumerate(document["classes"]):
        table.add_row(
            name,
            console.format_score(document["iou"][index]),
            _interval(document, "iou", index),
            console.format_score(document["accuracy"][index]),
            f"{document['label_pixels'][index]:,}",
            f"{document['predicted_pixels'][index]:,}",
        )
    table.add_section()
    total = f"{sum(document['label_pixels']):,}"
    table.add_row(
        "mean IoU", console.format_score(document["mean_iou"]), _interval(document, "mean_iou"), "",
        total, total,
    )  # fmt: skip
    return table


def _trimap_table(document: dict[str, Any]) -> Table:
    table = _table("boundary band", "mean IoU", "95 % interval", "pixel accuracy", "label px")
    for row in (*document["trimap"], document):
        table.add_row(
            f"{row['width']} px" if "width" in row else "all pixels",
            console.format_score(row["mean_iou"]),
            _interval(row, "mean_iou"),
            console.format_score(row["pixel_accuracy"]),
            f"{sum(row['label_pixels']):,}",
        )
    return table


def _shard_table(shards: list[dict[str, Any]], total: int) -> Table:
    first = "shard" if len(shards) == total else f"worst of {total} shards"
    table = _table(first, "mean IoU", "pixel accuracy", "labeled images")
    for shard in shards:
        table.add_row(
            shard["shard"],
            console.format_score(shard["mean_iou"]),
            console.format_score(shard["pixel_accuracy"]),
            str(shard["labeled_images"]),
        )
    return table


def _upper_bound_table(rows: list[dict[str, Any]]) -> Table:
    table = _table("factor", "mean IoU", "95 % interval", "pixel accuracy", "paper, VOC: mean IoU")
    for row in rows:
        paper = row["paper_voc_mean_iou"]
        table.add_row(
            str(row["factor"]),
            console.format_score(row["mean_iou"]),
            _interval(row, "mean_iou"),
            console.format_score(row["pixel_accuracy"]),
            "-" if paper is None else f"{paper:.3f}",
        )
    return table


def _table(first: str, *others: str) -> Table:
    from rich.table import Table

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
    return console.format_score(row[name]) + (f" ({interval})" if interval else "")


def _print_failures(result: Evaluation) -> None:
    print_ignored(result.passed_over)
    for shard, failure in result.failures[:BAD_SHOWN]:
        console.say(f"bad: {failure.location}: {failure.reason} (shard {shard})", logging.WARNING)
    if len(result.failures) > BAD_SHOWN:
        more = len(result.failures) - BAD_SHOWN
        console.say(f"…and {plural(more, 'more bad sample')}; --json lists all", logging.WARNING)
    for failed in result.failed:
        console.say(f"failed: {failed.reason}", logging.ERROR)
    if result.over_limit:
        console.say(
            f"limits exceeded: {len(result.failures)} samples are bad (limits.max_bad_fraction)",
            logging.ERROR,
        )
