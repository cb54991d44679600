"""Draw docs/images/demo.png: image | label | mask | overlay of rendered scenes.

Usage: python docs/images/make.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

from fcn_core.datasets.scenes import render_scene
from fcn_core.images import overlay
from fcn_core.labels import SCENES, voc_palette
from fcn_core.predictor import Predictor

SEEDS = (5_000_001, 5_000_004, 5_000_007)
SIZE = (150, 200)
GAP = 6


def main() -> None:
    """Write the picture."""
    table = np.array((*SCENES.palette, *voc_palette()[SCENES.num_classes :]), np.uint8)
    predictor = Predictor.load("demo")
    rows = []
    for seed in SEEDS:
        scene = render_scene(seed, SIZE)
        mask = predictor.predict([scene.image])[0].mask
        tiles = (
            scene.image,
            table[scene.label],
            table[mask],
            overlay(scene.image, mask, SCENES.palette),
        )
        gap = np.full((SIZE[0], GAP, 3), 255, np.uint8)
        rows.append(np.concatenate([t for tile in tiles for t in (tile, gap)][:-1], axis=1))
    line = np.full((GAP, rows[0].shape[1], 3), 255, np.uint8)
    picture = np.concatenate([r for row in rows for r in (row, line)][:-1], axis=0)
    Image.fromarray(picture).save(Path(__file__).parent / "demo.png", optimize=True)


if __name__ == "__main__":
    main()
