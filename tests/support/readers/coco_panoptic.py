"""Run in an environment with datumaro: DEST, truth.npz. It reads COCO's panoptic PNGs."""

import shutil
import sys
import tempfile
from pathlib import Path

import datumaro
import numpy as np

dest, truth = Path(sys.argv[1]), np.load(sys.argv[2])
with tempfile.TemporaryDirectory() as folder:
    # datumaro's own layout: annotations/panoptic_SPLIT.json and annotations/panoptic_SPLIT/.
    root = Path(folder)
    (root / "annotations").mkdir()
    shutil.copy(dest / "panoptic.json", root / "annotations/panoptic_train.json")
    shutil.copytree(dest / "panoptic", root / "annotations/panoptic_train")
    shutil.copytree(dest / "images", root / "images/train")
    dataset = datumaro.Dataset.import_from(str(root), "coco_panoptic")
    labels = [label.name for label in dataset.categories()[datumaro.AnnotationType.label]]
    classes = ["ground", "thing", "stuff"]
    for item in dataset:
        expected = truth[item.id]
        found = np.full(expected.shape, 255, np.uint8)
        for mask in item.annotations:
            found[mask.image.astype(bool)] = classes.index(labels[mask.label])
        assert np.array_equal(found, expected), item.id
    print(f"{len(dataset)} images agree")
