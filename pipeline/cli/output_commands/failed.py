"""`fcnseg failed`: list quarantined images and failed shards, or run their shards again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, GivenOptions, read_text, takes
from pipeline.cli.results import print_result
from pipeline.text import plural

if TYPE_CHECKING:
    from pipeline.output.quarantine import Quarantined


@takes("output retry limit weights config sets as_json")
def failed(
    given: GivenOptions,
    retry: Annotated[
        bool, typer.Option("--retry", help="Segment the shards of these images again.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="List at most this many images.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List quarantined images and failed shards with the reasons. Or segment them again."""
    from pipeline.driver import run
    from pipeline.output.quarantine import find_retry_list, quarantined, retry_config
    from pipeline.output.status import read_status

    store = given.open_output()
    status = read_status(store)
    if retry:
        weights = {"model.weights": given.values["weights"]}
        text = read_text(given.config)
        config = retry_config(store, status.identity, text, given.sets, weights)
        with console.progress_display() as progress:
            result = run(config, progress, find_retry_list(status), finish_on_interrupt=True)
        print_result(result, as_json=as_json)
        raise typer.Exit(result.exit_code)
    shards = status.marker_document.get("failed_shards", {})
    count = status.scores["failures"]
    images = list(islice(quarantined(store, status), limit))
    if as_json:
        rows = [vars(image) for image in images]
        console.print_json({"quarantined": count, "failed_shards": shards, "images": rows})
        return
    _print_failures(images, shards)
    console.err.print(
        f"{plural(count, 'image')} quarantined, {plural(len(shards), 'shard')} failed"
        + (", whose bad images are listed too" if shards and images else "")
        + (f"; the first {limit} are listed (--limit)" if len(images) == limit else "")
    )


def _print_failures(images: Sequence[Quarantined], shards: Mapping[str, str]) -> None:
    """Print a table and sentences on a terminal; elsewhere one line of equal fields each."""
    columns = ("shard", "key", "error", "reason", "location")
    rows = [tuple(str(getattr(image, name)) for name in columns) for image in images]
    if not console.out.is_terminal:
        rows += [(shard, "", "", reason, "") for shard, reason in shards.items()]
    if rows:
        console.print_rows(columns, rows)
    if console.out.is_terminal:
        for reason in shards.values():
            console.out.print(f"failed: {reason}")
