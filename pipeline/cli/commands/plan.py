"""TODO docstring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import console
from pipeline.cli.options import (
    AsJson,
    ConfigFile,
    Exclude,
    Include,
    Input,
    Labels,
    LabelSetName,
    Layout,
    LimitShards,
    Masks,
    Output,
    Sets,
    Since,
    Split,
    Weights,
    load_run_config,
    run_flags,
    selected,
)
from pipeline.config import RunConfig
from pipeline.text import plural

if TYPE_CHECKING:
    pass


def plan(
    input: Input,
    output: Output,
    weights: Weights = None,
    labels: Labels = None,
    label_set: LabelSetName = None,
    layout: Layout = None,
    split: Split = None,
    masks: Masks = None,
    config: ConfigFile = None,
    sets: Sets = None,
    limit_shards: LimitShards = None,
    include: Include = None,
    exclude: Exclude = None,
    since: Since = None,
    exact: Annotated[
        bool, typer.Option(help="Open every pending shard to count its images.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a run would do: shards, bytes, pending. Loads no network, writes nothing."""
    flags = run_flags(input, output, weights, labels, label_set, masks)
    flags |= {"input.layout": layout, "input.split": split}
    flags |= selected(limit_shards, include, exclude, since)
    _print_plan(load_run_config(config, sets, flags), as_json, exact)


def _print_plan(config: RunConfig, as_json: bool, exact: bool = False) -> None:
    from pipeline.driver import plan as plan_run
    from pipeline.plan import MOST_OPENED

    found = plan_run(config)
    count = found.count_images(None if exact else MOST_OPENED)
    console.print_passed_over(found.passed_over)
    console.print_vanished(found.vanished, found.vanished_names)
    for shard_id, reason in count.unreadable.items():
        console.err.print(f"unreadable {shard_id}: {reason}", markup=False)
    if as_json:
        console.print_json(
            {
                "shards": found.total,
                "images": count.images,
                "images_are_exact": count.is_exact,
                "unreadable": count.unreadable,
                "bytes": found.bytes,
                "pending": [shard.id for shard in found.pending],
                "pending_bytes": found.pending_bytes,
                "outdated": found.outdated_ids(),
                "left": found.left,
                "unpacked": found.unpacked,
                "committed": len(found.ledger),
                "vanished": found.vanished,
                "vanished_names": list(found.vanished_names),
                "passed_over": list(found.passed_over),
            }
        )
        return
    console.out.print(
        f"{plural(found.total, 'shard')}, {'' if count.is_exact else 'about '}"
        f"{plural(count.images, 'image')}, "
        f"{console.size(found.bytes)}; "
        f"{len(found.pending)} pending, {console.size(found.pending_bytes)}"
        + (f"; {found.outdated} of them changed" if found.outdated else "")
        + (f"; {found.left} more left out now" if found.left else "")
        + (f"; {plural(found.unpacked, 'image')} left out now" if found.unpacked else ""),
        markup=False,
    )
