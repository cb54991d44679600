"""`fcnseg demo`: rendered scenes into shards, labelled with the shipped weights, offline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from fcn_core.datasets.scenes import Scene, render_scene
from fcn_core.images import encode_mask
from fcn_core.labels import SCENES
from pipeline.cli.commands.run import _run
from pipeline.cli.options import (
    AsJson,
)
from pipeline.config import RunConfig, load_config
from pipeline.formats import encode_jpeg, encode_tar
from pipeline.storage.store import Store

if TYPE_CHECKING:
    pass


SHARDS = 3

IMAGES_PER_SHARD = 16

FIRST_SEED = 5_000_000
"""The demo weights never saw scenes of these seeds (docs/demo-weights.md)."""


def make_scene_shards(output: Store, shards: int = SHARDS, images: int = IMAGES_PER_SHARD) -> None:
    """Write `scenes-000.tar`, …: rendered scenes with exact labels, the same every time.

    Shards that are there already are left alone, so that their tags stay the same.
    """
    there = {info.path for info in output.objects()}
    for shard in range(shards):
        name = f"scenes-{shard:03d}.tar"
        if name not in there:
            first = FIRST_SEED + shard * images
            seeds = range(first, first + images)
            output.write(name, scene_tar(zip(seeds, map(render_scene, seeds), strict=True)))


def demo_config(directory: str, executor: str = "local") -> RunConfig:
    """The run of the demo in a directory: its `shards` to its `output`, masks in every form."""
    return load_config(
        None,
        [],
        {
            "input.url": f"{directory}/shards",
            "output.url": f"{directory}/output",
            "output.masks": ("parquet", "png"),
            "model.weights": "demo",
            "compute.executor": executor,
        },
    )


def scene_tar(scenes: Iterable[tuple[int, Scene]]) -> bytes:
    """A shard of scenes and their labels, named by their seeds."""

    def members() -> Iterator[tuple[str, bytes]]:
        for seed, scene in scenes:
            yield f"scene-{seed}.jpg", encode_jpeg(scene.image, quality=92)
            yield f"scene-{seed}.png", encode_mask(scene.label, SCENES.palette)

    return encode_tar(members())


def demo(
    directory: Annotated[
        str, typer.Argument(help="Made if missing: shards/ and output/ go there.")
    ],
    as_json: AsJson = False,
) -> None:
    """Label rendered scenes with the shipped weights; show the scores."""
    make_scene_shards(Store(f"{directory}/shards"))
    _run(demo_config(directory), as_json)
