"""Masks and images for another tool: here a folder that Hugging Face's `datasets` reads."""

from pipeline.cli.commands.demo import make_scene_shards
from pipeline.config import load_config
from pipeline.driver import run
from pipeline.export.export import export
from pipeline.export.format import ExportOptions
from pipeline.storage.store import Store

make_scene_shards(Store("shards"), shards=1, images=4)
flags = {"input.url": "shards", "output.url": "out", "model.weights": "demo"}
config = load_config(None, ["compute.threads_per_worker=1"], flags)
run(config)

found = export(Store("out"), Store("masks"), ExportOptions("hf", split="test"), config)
print(f"{found.images} images of {found.shards} shards, {found.pending} shards left out")
