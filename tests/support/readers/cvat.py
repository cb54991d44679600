"""Run in an environment with datumaro: DEST, truth.npz. It reads CVAT's XML, as CVAT does."""

import sys

import datumaro
import numpy as np

dest, truth = sys.argv[1], np.load(sys.argv[2])
dataset = datumaro.Dataset.import_from(dest, "cvat")
labels = [label.name for label in dataset.categories()[datumaro.AnnotationType.label]]
assert labels == ["ground", "thing", "stuff"], labels
for item in dataset:
    expected = truth[item.id]
    found = np.full(expected.shape, 255, np.uint8)
    for mask in item.annotations:
        found[mask.image.astype(bool)] = mask.label
    assert np.array_equal(found, expected), item.id
print(f"{len(dataset)} images agree")
