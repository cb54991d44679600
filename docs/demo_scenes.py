"""Render the scenes of the demo weights: python -m docs.demo_scenes DIR writes DIR/train, DIR/val.

The seeds of training and validation scenes are far apart.
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
    """Write the scenes of `seeds` to `folder`/scenes-000.tar, …, `shard` scenes per tar."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = zip(seeds, scenes, strict=True)
    for number in range(-(-len(seeds) // shard)):
        (folder / f"scenes-{number:03d}.tar").write_bytes(scene_tar(islice(pairs, shard)))


def main() -> None:
    """Write 320 px squares and some small scenes for training, and small scenes for validation."""
    top = Path(sys.argv[1])
    write_scenes(top / "train", TRAIN_SEEDS, render_training_scenes(TRAIN_SEEDS, SIDE))
    write_scenes(top / "val", VAL_SEEDS, map(render_scene, VAL_SEEDS))


if __name__ == "__main__":
    main()
