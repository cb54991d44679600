"""`fcnseg export`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, ConfigFile, Output, Sets, output_store, read_text
from pipeline.concurrency import Throttle
from pipeline.storage.store import Store
from pipeline.text import plural

if TYPE_CHECKING:
    from pipeline.export.export import Exported, Exporting


def export(
    output: Output,
    dest: Annotated[str, typer.Argument(help="Empty place; any URL.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="voc, coco, coco-panoptic, webdataset, hf, label-studio or cvat.",
        ),
    ],
    images: Annotated[bool, typer.Option(help="Copy the images along, byte for byte.")] = True,
    names: Annotated[
        str, typer.Option(help="Images are called by key, or by shard and key; auto: key if loose.")
    ] = "auto",
    split: Annotated[str, typer.Option(help="voc, hf: name of the split.")] = "train",
    without: Annotated[
        list[str] | None, typer.Option(help="Class to leave out (coco, label tools); repeatable.")
    ] = None,
    image_root: Annotated[
        str | None, typer.Option(help="label-studio: URL of the folder of the images.")
    ] = None,
    image_suffix: Annotated[
        str, typer.Option(help="With --no-images: what names of image files end in.")
    ] = ".jpg",
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Write masks and images in the form of another tool."""
    from pipeline.export.export import export as export_output
    from pipeline.export.form import ExportOptions
    from pipeline.manifest import read_manifest
    from pipeline.output.quarantine import retry_config

    store = output_store(output, config, sets)
    identity = read_manifest(store)
    # An old output does not remember its weights; they are not needed, and so not asked for.
    weights: dict[str, Any] = {"model.weights": None if identity.config else "demo"}
    loaded = retry_config(store, identity, read_text(config), sets or [], weights)
    root = None if image_root is None else image_root.rstrip("/")
    choices = ExportOptions(form, images, names, split, tuple(without or ()), root, image_suffix)
    target = Store(dest, loaded.output.store)
    with _progress() as progress:
        found = export_output(store, target, choices, loaded, progress)
    _print_left_out(found)
    if as_json:
        console.print_json({**asdict(found), "exit_code": found.exit_code})
    else:
        done = "was exported before" if found.again else "exported"
        console.out.print(
            f"{plural(found.images, 'image')} of {plural(found.shards, 'shard')} {done}: "
            f"{target.location('')}",
            markup=False,
        )
    raise typer.Exit(found.exit_code)


@contextmanager
def _progress() -> Iterator[Callable[[Exporting], None]]:
    """A line that moves on a terminal; elsewhere one per interval."""
    if console.err.is_terminal:
        with console.err.status("exporting") as line:
            yield lambda now: line.update(f"exporting: {now.shards} shards, {now.images} images")
        return
    is_due = Throttle(console.LINE_SECONDS, is_due_at_once=False)

    def tell(now: Exporting) -> None:
        if is_due():
            console.err.print(f"exporting: {now.shards} shards, {now.images} images", markup=False)

    yield tell


def _print_left_out(found: Exported) -> None:
    lines = [
        (found.pending, "shard", "not labelled (yet) and left out; `fcnseg run` labels the rest"),
        (found.changed, "shard", "left out: the input changed since; `fcnseg run` again"),
        (found.quarantined, "image", "left out: quarantined; see `fcnseg failed`"),
        (found.turned, "image", "turned by EXIF orientation, and masks fit what is turned: tools "
         "that pass EXIF over show it wrongly"),
    ]  # fmt: skip
    for count, noun, text in lines:
        if count:
            are = "is" if count == 1 else "are"
            console.err.print(f"{plural(count, noun)} {are} {text}", markup=False)
    if found.pending is None:
        console.err.print(
            "the run has not ended: how many shards are left out is not known", markup=False
        )
