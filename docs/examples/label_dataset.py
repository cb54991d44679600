"""A whole run from Python: plan, label, look at the scores and at a mask."""

import io

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipeline.cli.commands.demo import make_scene_shards
from pipeline.config import load_config
from pipeline.driver import plan, run
from pipeline.storage.store import Store

make_scene_shards(Store("shards"), shards=2, images=4)  # your own: tars, Parquet files or a folder

config = load_config(
    None,  # or the text of a YAML file
    ["compute.threads_per_worker=1"],  # what --set takes
    {"input.url": "shards", "output.url": "out", "model.weights": "demo"},
)
print(f"{len(plan(config).pending)} of {plan(config).total} shards are pending")

result = run(config, lambda now: print(f"{now.shards_done} of {now.shards_pending} shards"))
print(f"mean IU {result.scores['mean_iou']:.3f}, exit code {result.exit_code}")

row = pq.read_table("out/masks/scenes-000.parquet").to_pylist()[0]
mask = np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"])))
print(row["key"], mask.shape, row["class_pixels"])
