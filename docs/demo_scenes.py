"""Render the scenes of the demo weights: python -m docs.demo_scenes DIR writes DIR/train, DIR/val.

Scenes that score the weights have seeds far from those that train them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from fcn_core.datasets.scenes import Scene, render_scene, render_training_scenes
from pipeline.cli.commands.demo import scene_tar

SHARD = 500
SIDE = 320
TRAIN_SEEDS = range(12_000)
VAL_SEEDS = range(1_000_000, 1_000_200)


def write_scenes(folder: Path, seeds: range, scenes: Iterable[Scene], shard: int = SHARD) -> None:
    """Write `folder`/scenes-000.tar, …: the scenes of those seeds, some per shard."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = zip(seeds, scenes, strict=True)
    for number in range(-(-len(seeds) // shard)):
        (folder / f"scenes-{number:03d}.tar").write_bytes(scene_tar(islice(pairs, shard)))


def main() -> None:
    """Squares of 320 px and some small ones to train, small ones to score."""
    top = Path(sys.argv[1])
    write_scenes(top / "train", TRAIN_SEEDS, render_training_scenes(TRAIN_SEEDS, SIDE))
    write_scenes(top / "val", VAL_SEEDS, map(render_scene, VAL_SEEDS))


if __name__ == "__main__":
    main()
