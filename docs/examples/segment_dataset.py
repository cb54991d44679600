"""Segment a data set from Python: plan, run, print the scores, and read one mask."""

import io

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipeline import Store, load_config, run
from pipeline.cli.commands.demo import make_scene_shards
from pipeline.driver import plan

make_scene_shards(Store("shards"), shards=2, images=4)  # or use your tars, Parquet files or folder

config = load_config(
    None,  # or the text of a YAML file
    ["compute.threads_per_worker=1"],  # values of --set
    {"input.url": "shards", "output.url": "out", "model.weights": "demo"},
)
print(f"{len(plan(config).pending)} of {plan(config).total} shards are pending")

result = run(config, lambda now: print(f"{now.shards_done} of {now.shards_pending} shards"))
print(f"mean IoU {result.scores['mean_iou']:.3f}, exit code {result.exit_code}")

row = pq.read_table("out/masks/scenes-000.parquet").to_pylist()[0]
mask = np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"])))
print(row["key"], mask.shape, row["class_pixels"])
