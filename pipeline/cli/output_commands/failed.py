"""TODO docstring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, ConfigFile, Output, Sets, Weights, output_store, read_text
from pipeline.text import plural

if TYPE_CHECKING:
    from pipeline.output.quarantine import Quarantined


def failed(
    output: Output,
    retry: Annotated[bool, typer.Option("--retry", help="Label their shards again.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="List at most this many images.")] = 100,
    weights: Weights = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """List what was quarantined and why. Or label it again."""
    from pipeline.driver import run
    from pipeline.output.quarantine import find_retry_list, quarantined, retry_config
    from pipeline.output.status import read_status

    store = output_store(output, config, sets)
    found = read_status(store)
    if retry:
        flags = {"model.weights": weights}
        loaded = retry_config(store, found.identity, read_text(config), sets or [], flags)
        with console.progress_display() as progress:
            result = run(loaded, progress, find_retry_list(found), finish_on_interrupt=True)
        console.print_result(result, as_json=as_json)
        raise typer.Exit(result.exit_code)
    shards = found.marker_document.get("failed_shards", {})
    count = found.scores["failures"]
    images = list(islice(quarantined(store, found), limit))
    if as_json:
        rows = [vars(image) for image in images]
        console.print_json({"quarantined": count, "failed_shards": shards, "images": rows})
        return
    _print_failures(images, shards)
    console.err.print(
        f"{plural(count, 'image')} quarantined, {plural(len(shards), 'shard')} failed"
        + (", whose bad images are listed too" if shards and images else "")
        + (f"; the first {limit} are listed (--limit)" if len(images) == limit else ""),
        markup=False,
    )


def _print_failures(images: Sequence[Quarantined], shards: Mapping[str, str]) -> None:
    """For people tables and sentences; for programs a line each, of as many fields."""
    columns = ("shard", "key", "error", "reason", "location")
    rows = [tuple(str(getattr(image, name)) for name in columns) for image in images]
    if not console.out.is_terminal:
        rows += [(shard, "", "", reason, "") for shard, reason in shards.items()]
    if rows:
        console.print_rows(columns, rows)
    if console.out.is_terminal:
        for reason in shards.values():
            console.out.print(f"failed: {reason}", markup=False)
