"""`fcnseg demo`: render scenes into shards and segment them with the shipped weights, offline.

The scenes and the configuration of the demo are functions of their own, because `flows.demo` and
the tests use them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.commands.run import run_and_exit
from pipeline.cli.options import AsJson

if TYPE_CHECKING:
    from fcn_core.datasets.scenes import Scene
    from pipeline.config import RunConfig
    from pipeline.storage.store import Store


SHARDS = 3

IMAGES_PER_SHARD = 16

FIRST_SEED = 5_000_000
"""Seed of the first scene; the demo weights were trained on other seeds (docs/demo-weights.md)."""


def demo(
    directory: Annotated[
        str, typer.Argument(help="Directory for shards/ and output/; created if missing.")
    ],
    as_json: AsJson = False,
) -> None:
    """Segment rendered scenes with the shipped weights, offline."""
    from pipeline.storage.store import Store

    make_scene_shards(Store(f"{directory}/shards"))
    run_and_exit(demo_config(directory), as_json=as_json)


def make_scene_shards(output: Store, shards: int = SHARDS, images: int = IMAGES_PER_SHARD) -> None:
    """Write `scenes-000.tar`, `scenes-001.tar`, …: the same bytes every time.

    Existing shards are not written again, so that their ETags stay the same.

    Args:
        output: where the tars go.
        shards: number of tars.
        images: number of images in each tar.
    """
    from fcn_core.datasets.scenes import render_scene

    existing = {info.path for info in output.objects()}
    for shard in range(shards):
        name = f"scenes-{shard:03d}.tar"
        if name not in existing:
            first = FIRST_SEED + shard * images
            seeds = range(first, first + images)
            output.write(name, scene_tar(zip(seeds, map(render_scene, seeds), strict=True)))


def demo_config(directory: str, executor: str = "local") -> RunConfig:
    """Return the configuration of the demo: `shards` to `output`, masks as Parquet and PNG.

    Args:
        directory: path or URL that holds both.
        executor: "local" or "ray".
    """
    from pipeline.config import load_config

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
    """Return a tar with the image (JPEG) and the label (PNG) of every scene.

    Args:
        scenes: seed and scene, in the order of the tar; seeds name the files.
    """
    from fcn_core.images import encode_mask
    from fcn_core.labels import SCENES
    from pipeline.formats import encode_jpeg, encode_tar

    def members() -> Iterator[tuple[str, bytes]]:
        for seed, scene in scenes:
            yield f"scene-{seed}.jpg", encode_jpeg(scene.image, quality=92)
            yield f"scene-{seed}.png", encode_mask(scene.label, SCENES.palette)

    return encode_tar(members())
