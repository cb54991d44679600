"""`fcnseg plan`: print what a run would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, GivenOptions, takes
from pipeline.cli.results import print_ignored, print_vanished
from pipeline.text import plural

if TYPE_CHECKING:
    from pipeline.config import RunConfig


@takes(
    "input output weights labels label_set layout split masks",
    "config sets limit_shards include exclude since exact as_json",
)
def plan(
    given: GivenOptions,
    exact: Annotated[
        bool, typer.Option(help="Open every pending shard to count its images exactly.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print what a run would do: shards, bytes, what is pending. Writes nothing."""
    print_plan(given.load_run_config(), as_json=as_json, exact=exact)


def print_plan(config: RunConfig, *, as_json: bool, exact: bool = False) -> None:
    """Print the plan of a configuration.

    Args:
        config: what to plan.
        as_json: whether to print JSON.
        exact: whether to open every pending shard; otherwise the number of images may be an
            estimate.
    """
    from pipeline.driver import plan as plan_run
    from pipeline.plan import MAX_OPENED

    plan = plan_run(config)
    count = plan.count_images(None if exact else MAX_OPENED)
    print_ignored(plan.passed_over)
    print_vanished(plan.vanished, plan.vanished_names)
    for shard_id, reason in count.unreadable.items():
        console.err.print(f"unreadable {shard_id}: {reason}")
    if as_json:
        console.print_json(
            {
                "shards": plan.total,
                "images": count.images,
                "images_are_exact": count.is_exact,
                "unreadable": count.unreadable,
                "bytes": plan.bytes,
                "pending": [shard.id for shard in plan.pending],
                "pending_bytes": plan.pending_bytes,
                "outdated": plan.outdated_ids(),
                "left": plan.left,
                "unpacked": plan.unpacked,
                "committed": len(plan.commit_index),
                "vanished": plan.vanished,
                "vanished_names": list(plan.vanished_names),
                "passed_over": list(plan.passed_over),
            }
        )
        return
    console.out.print(
        f"{plural(plan.total, 'shard')}, {'' if count.is_exact else 'about '}"
        f"{plural(count.images, 'image')}, "
        f"{console.format_size(plan.bytes)}; "
        f"{len(plan.pending)} pending, {console.format_size(plan.pending_bytes)}"
        + (f"; {plan.outdated} of them changed" if plan.outdated else "")
        + (f"; {plan.left} more left out now" if plan.left else "")
        + (f"; {plural(plan.unpacked, 'image')} left out now" if plan.unpacked else "")
    )
