"""`fcnseg export`: write masks and images in the format of another tool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, GivenOptions, read_text, takes
from pipeline.concurrency import Throttle
from pipeline.text import plural

if TYPE_CHECKING:
    from pipeline.export.export import Exported, Exporting


@takes(
    "output dest form images names split without image_root image_suffix config sets as_json",
)
def export(
    given: GivenOptions,
    dest: Annotated[str, typer.Argument(help="Empty folder for the export; path or URL.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="voc, coco, coco-panoptic, webdataset, hf, label-studio or cvat.",
        ),
    ],
    images: Annotated[bool, typer.Option(help="Copy the images too, byte for byte.")] = True,
    names: Annotated[
        str,
        typer.Option(
            help="Name images by key, or by shard and key; auto: by key if INPUT is a folder."
        ),
    ] = "auto",
    split: Annotated[str, typer.Option(help="Name of the split (voc, hf).")] = "train",
    without: Annotated[
        list[str] | None,
        typer.Option(help="Class to leave out (coco, label tools); may be repeated."),
    ] = None,
    image_root: Annotated[
        str | None, typer.Option(help="URL of the folder of the images (label-studio).")
    ] = None,
    image_suffix: Annotated[
        str, typer.Option(help="With --no-images: suffix of the names of image files.")
    ] = ".jpg",
    as_json: AsJson = False,
) -> None:
    """Write masks and images in the format of another tool."""
    from pipeline.export.export import export as export_output
    from pipeline.export.format import ExportOptions
    from pipeline.manifest import read_manifest
    from pipeline.output.quarantine import retry_config
    from pipeline.storage.store import Store

    store = given.open_output()
    identity = read_manifest(store)
    # An output of an old version does not name its weights; an export does not need them.
    weights: dict[str, Any] = {"model.weights": None if identity.config else "demo"}
    config = retry_config(store, identity, read_text(given.config), given.sets, weights)
    root = None if image_root is None else image_root.rstrip("/")
    options = ExportOptions(form, images, names, split, tuple(without or ()), root, image_suffix)
    target = Store(dest, config.output.store)
    with _progress_display() as progress:
        exported = export_output(store, target, options, config, progress)
    _print_left_out(exported)
    if as_json:
        console.print_json({**asdict(exported), "exit_code": exported.exit_code})
    else:
        verb = "was exported before" if exported.again else "exported"
        console.out.print(
            f"{plural(exported.images, 'image')} of {plural(exported.shards, 'shard')} {verb}: "
            f"{target.location('')}"
        )
    raise typer.Exit(exported.exit_code)


@contextmanager
def _progress_display() -> Iterator[Callable[[Exporting], None]]:
    """Give a listener that shows progress: a live line on a terminal, plain lines elsewhere."""
    if console.err.is_terminal:
        with console.err.rich.status("exporting") as line:
            yield lambda now: line.update(f"exporting: {now.shards} shards, {now.images} images")
        return
    is_due = Throttle(console.LINE_SECONDS, is_due_at_once=False)

    def show(now: Exporting) -> None:
        if is_due():
            console.err.print(f"exporting: {now.shards} shards, {now.images} images")

    yield show


def _print_left_out(exported: Exported) -> None:
    lines = [
        (exported.pending, "shard", "not segmented yet and left out; `fcnseg run` finishes them"),
        (exported.changed, "shard", "left out: the input changed since; run `fcnseg run` again"),
        (exported.quarantined, "image", "left out: quarantined; see `fcnseg failed`"),
        (exported.turned, "image", "turned by EXIF orientation, and so are the masks: tools that "
         "ignore EXIF show the image and its mask in different orientations"),
    ]  # fmt: skip
    for count, noun, text in lines:
        if count:
            are = "is" if count == 1 else "are"
            console.err.print(f"{plural(count, noun)} {are} {text}")
    if exported.pending is None:
        console.err.print("the run has not ended: the number of shards left out is unknown")
