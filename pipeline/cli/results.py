"""Print what a run did: outcome, scores, drift, and warnings about its input."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.cli import console
from pipeline.text import plural

if TYPE_CHECKING:
    from fcn_core.labels import LabelSet
    from pipeline.output.history import RunRecord
    from pipeline.output.run_result import RunResult


def print_result(result: RunResult, *, as_json: bool = False) -> None:
    """Print what a run did, its scores, its drift, and what it could not do."""
    from pipeline.paths import REPORT

    if as_json:
        console.print_json(result.to_dict())
        return
    _print_outcome(result)
    if result.images:
        print_scores(result.scores, result.labels)
    if result.record is not None:
        print_drift(result.record)
    console.out.print(f"report: {result.output}/{REPORT}")


def _print_outcome(result: RunResult) -> None:
    if not result.done_now and not result.failed:
        every = "the shard is" if result.shards == 1 else f"all {result.shards} shards are"
        line = f"nothing pending: {every} done"
        if result.committed < result.shards:
            line = f"nothing done: {result.committed} of {result.shards} shards are done"
    else:
        failed = f"{plural(len(result.failed), 'shard')} failed, " if result.failed else ""
        line = (
            f"{plural(result.done_now, 'shard')} done now, "
            f"{result.committed} of {result.shards} in all, {failed}"
            f"{plural(result.images, 'image')}, "
            f"{result.failures} quarantined, {result.seconds:.1f} s"
        )
    console.out.print(line)
    print_ignored(result.passed_over)
    if result.empty:
        console.say(
            f"warning: no images in {console.summarize_names(result.empty)}", logging.WARNING
        )
    print_vanished(result.vanished, result.vanished_names)
    if result.store_retries:
        console.say(f"requests to stores were tried again: {result.store_retries}")
    for failure in result.failed:
        console.say(f"failed: {failure.reason}", logging.ERROR)
    if result.interrupted:
        console.say("interrupted: run the same command again to resume", logging.WARNING)
    if result.over_limit:
        console.say(
            f"limits exceeded: {result.bad} of {result.seen} images could not be segmented "
            "(limits.max_bad_fraction); `fcnseg failed` lists them",
            logging.ERROR,
        )


def print_scores(scores: Mapping[str, Any], labels: LabelSet) -> None:
    """Print the table of scores per class, then the other three scores of the paper.

    Args:
        scores: document of `stats/scores.json`.
        labels: label set that names the classes.
    """
    from rich.table import Table

    table = Table("class", "IoU", "predicted pixels", title_justify="left")
    table.columns[1].justify = table.columns[2].justify = "right"
    for name, iou, pixels in zip(
        labels.classes, scores["iou"], scores["class_pixels"], strict=True
    ):
        table.add_row(name, console.format_score(iou), f"{pixels:,}")
    table.add_section()
    total = f"{sum(scores['class_pixels']):,}"
    table.add_row("mean IoU", console.format_score(scores["mean_iou"]), total)
    console.out.print(table)
    console.out.print(
        f"pixel accuracy {console.format_score(scores['pixel_accuracy'])}, "
        f"mean accuracy {console.format_score(scores['mean_accuracy'])}, "
        f"frequency weighted IoU {console.format_score(scores['frequency_weighted_iou'])} "
        f"({scores['labeled_images']} labeled of {plural(scores['images'], 'image')})"
    )


def print_vanished(count: int, names: Sequence[str]) -> None:
    """Warn about shards or images that were committed earlier and left the input since.

    Args:
        count: how many there are.
        names: the first few of their names.
    """
    if count:
        more = ", …" if count > len(names) else ""
        what = "shard or image" if count == 1 else "shards or images"
        console.say(
            f"{count} {what} vanished from the input ({', '.join(names)}{more}); their results "
            "stay in the output until their shard is segmented again",
            logging.WARNING,
        )


def print_ignored(names: Sequence[str]) -> None:
    """Warn about files and columns of the input that are not read."""
    if names:
        console.say(f"ignored: {', '.join(names)}", logging.WARNING)


def print_drift(record: RunRecord) -> None:
    """Print how a run drifted from earlier ones, then one line per drifted quantity."""
    console.out.print(f"drift: {describe_drift(record)}")
    for drift in record.drifted:
        console.out.print(f"  {drift.reason}")


def describe_drift(record: RunRecord) -> str:
    """Return the drift of a run in a few words."""
    if record.comparison.note:
        return record.comparison.note
    images = plural(record.comparison.reference_images, "image")
    reference = f"against {record.comparison.reference}, {images}"
    if not record.drifted:
        return f"none {reference}"
    quantities = console.summarize_names([drift.quantity for drift in record.drifted], 3)
    return f"{quantities} {reference}"
