"""Export masks and images for another tool: here a folder for Hugging Face's `datasets`."""

from pipeline import Store, load_config, run
from pipeline.cli.commands.demo import make_scene_shards
from pipeline.export.export import export
from pipeline.export.format import ExportOptions

make_scene_shards(Store("shards"), shards=1, images=4)
flags = {"input.url": "shards", "output.url": "out", "model.weights": "demo"}
config = load_config(None, ["compute.threads_per_worker=1"], flags)
run(config)

exported = export(Store("out"), Store("masks"), ExportOptions("hf", split="test"), config)
print(f"{exported.images} images of {exported.shards} shards, {exported.pending} shards left out")
