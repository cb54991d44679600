"""Render the scenes of the demo weights: python docs/demo_scenes.py DIR writes DIR/train, DIR/val.

Scenes that score the weights have seeds far from those that train them.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

from fcn_core.scenes import render_scene, training_scenes
from pipeline.demo import scene_tar

SHARD = 500
SIDE = 320
TRAIN_SEEDS = range(12_000)
VAL_SEEDS = range(1_000_000, 1_000_200)


def main() -> None:
    """Shards of 500 scenes: squares of 320 px and some small ones to train, small ones to score."""
    top = Path(sys.argv[1])
    for part, seeds, scenes in (
        ("train", TRAIN_SEEDS, training_scenes(TRAIN_SEEDS, SIDE)),
        ("val", VAL_SEEDS, map(render_scene, VAL_SEEDS)),
    ):
        (top / part).mkdir(parents=True, exist_ok=True)
        pairs = zip(seeds, scenes, strict=True)
        for number in range(-(-len(seeds) // SHARD)):
            data = scene_tar(islice(pairs, SHARD))
            (top / part / f"scenes-{number:03d}.tar").write_bytes(data)


if __name__ == "__main__":
    main()
