"""Run in an environment with label-studio-sdk: DEST, truth.npz. Its own decoder reads the masks."""

import json
import sys
from pathlib import Path

import numpy as np
from label_studio_sdk.converter.brush import decode_rle

dest, truth = Path(sys.argv[1]), np.load(sys.argv[2])
classes = ["ground", "thing", "stuff"]
count = 0
for path in sorted(dest.glob("tasks/*.json")):
    for task in json.loads(path.read_text()):
        expected = truth[f"{task['data']['shard']}/{task['data']['key']}"]
        found = np.full(expected.shape, 255, np.uint8)
        for brush in task["predictions"][0]["result"]:
            size = brush["original_height"], brush["original_width"]
            alpha = decode_rle(brush["value"]["rle"]).reshape(*size, 4)[..., 3]
            found[alpha > 0] = classes.index(brush["value"]["brushlabels"][0])
        assert np.array_equal(found, expected), task["data"]
        count += 1
print(f"{count} images agree")
