"""`fcnseg shard`: pack a folder or a dataset into WebDataset tars."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli import console
from pipeline.cli.options import AsJson, Labels
from pipeline.errors import ConfigError
from pipeline.text import plural


def shard(
    images: Annotated[str, typer.Argument(help="Folder of images, or of a dataset; path or URL.")],
    output: Annotated[str, typer.Argument(help="Empty folder for the tars; path or URL.")],
    labels: Labels = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="Dataset as distributed: voc, sbd, nyudv2, siftflow, siftflow-geo or camvid."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="With --layout: name of the split, or path or URL of a list of ids."),
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Images per tar.")] = 256,
    as_json: AsJson = False,
) -> None:
    """Pack a folder, or a split of a dataset, into WebDataset tars."""
    from pipeline.inputs.packing import pack_folder
    from pipeline.storage.store import Store

    source, target = Store(images), Store(output)
    if layout is None:
        _refuse_without_layout(split)
        packed = pack_folder(source, Store(labels) if labels else None, target, shard_size)
    else:
        from pipeline.inputs.datasets import pack_dataset

        _refuse_labels_of_dataset(labels, layout)
        packed = pack_dataset(layout, source, split, target, shard_size)
    for path, reason in packed.left_out:
        console.err.print(f"left out {path}: {reason}")
    if as_json:
        console.print_json(vars(packed))
    else:
        console.out.print(
            f"{plural(packed.shards, 'shard')}, {plural(packed.images, 'image')}, "
            f"{packed.labeled_images} labeled, "
            f"{len(packed.left_out)} left out"
        )
    if packed.left_out:
        raise typer.Exit(3)


def _refuse_without_layout(split: str | None) -> None:
    if split is not None:
        raise ConfigError(
            where="--split",
            found=f"{split!r} without --layout",
            expected="--split together with --layout",
            remedy="Add --layout.",
        )


def _refuse_labels_of_dataset(labels: str | None, layout: str) -> None:
    if labels is not None:
        raise ConfigError(
            where="--labels",
            found=f"{labels!r} together with --layout {layout}",
            expected="the labels of the dataset",
            remedy="Leave --labels out.",
        )
