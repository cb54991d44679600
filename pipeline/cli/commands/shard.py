"""TODO docstring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import console
from pipeline.cli.options import (
    AsJson,
    Labels,
)
from pipeline.errors import ConfigError
from pipeline.storage.store import Store
from pipeline.text import plural

if TYPE_CHECKING:
    pass


def shard(
    images: Annotated[str, typer.Argument(help="Folder of images, or a dataset; any URL.")],
    output: Annotated[str, typer.Argument(help="Empty place for the tars; any URL.")],
    labels: Labels = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="A dataset as distributed: voc, sbd, nyudv2, siftflow, siftflow-geo or camvid."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="With --layout: its name, or a file or URL of ids.")
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Samples per tar.")] = 256,
    as_json: AsJson = False,
) -> None:
    """Pack a folder, or a split of a dataset, into WebDataset tars."""
    from pipeline.inputs.packing import pack_folder

    source, target = Store(images), Store(output)
    if layout is None:
        _refuse_alone("--split", split, "--layout")
        packed = pack_folder(source, Store(labels) if labels else None, target, shard_size)
    else:
        from pipeline.inputs.datasets import pack_dataset

        _refuse_beside("--labels", labels, f"--layout {layout}")
        packed = pack_dataset(layout, source, split, target, shard_size)
    for path, reason in packed.left_out:
        console.err.print(f"left out {path}: {reason}", markup=False)
    if as_json:
        console.print_json(vars(packed))
    else:
        console.out.print(
            f"{plural(packed.shards, 'shard')}, {plural(packed.images, 'image')}, "
            f"{packed.labeled_images} labelled, "
            f"{len(packed.left_out)} left out",
            markup=False,
        )
    if packed.left_out:
        raise typer.Exit(3)


def _refuse_alone(name: str, value: str | None, needed: str) -> None:
    if value is not None:
        raise ConfigError(
            where=name,
            found=f"{value!r} alone",
            expected=f"it goes with {needed}",
            remedy=f"Add {needed}.",
        )


def _refuse_beside(name: str, value: str | None, other: str) -> None:
    if value is not None:
        raise ConfigError(
            where=name,
            found=f"{value!r} beside {other}",
            expected="the labels of the dataset",
            remedy=f"Leave {name} out.",
        )
