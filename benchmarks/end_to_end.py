"""Compare the images per second of a whole run with those of a loop written by hand.

Both segment the same rendered scenes of mixed sizes with the demo weights, on the same threads, in
one process, in alternation. The best of three rounds counts.

Usage: python -m benchmarks.end_to_end [--images N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fcn_core.datasets.scenes import render_scene
from fcn_core.weights.weights_file import read_weights
from pipeline.config import load_config
from pipeline.driver import run

ROUNDS = 3
THREADS = min(2, os.cpu_count() or 1)


def make_folder(folder: Path, images: int) -> None:
    for top in ("images", "labels"):
        (folder / top).mkdir(parents=True)
    for seed in range(images):
        scene = render_scene(7_000_000 + seed)
        Image.fromarray(scene.image).save(folder / f"images/{seed:05d}.jpg", quality=92)
        Image.fromarray(scene.label).save(folder / f"labels/{seed:05d}.png")


def plain_loop(folder: Path, out: Path) -> float:
    """What a person writes: open, normalise, forward, argmax, histogram, save."""
    started = time.perf_counter()
    out.mkdir()
    file = read_weights("demo")
    model = file.load()
    mean, std = (np.array(v, np.float32) for v in (file.info.preprocessing.mean,
                                                   file.info.preprocessing.std))  # fmt: skip
    classes = file.info.labels.num_classes
    confusion = np.zeros((classes, classes), np.int64)
    with torch.inference_mode():
        for path in sorted((folder / "images").iterdir()):
            pixels = (np.asarray(Image.open(path).convert("RGB"), np.float32) - mean) / std
            logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None])
            mask = logits.argmax(1)[0].numpy().astype(np.uint8)
            label = np.asarray(Image.open(folder / f"labels/{path.stem}.png")).astype(np.int64)
            known = label != 255
            counts = np.bincount(classes * label[known] + mask[known], minlength=classes**2)
            confusion += counts.reshape(classes, classes)
            Image.fromarray(mask).save(out / f"{path.stem}.png")
    return time.perf_counter() - started


def ours(folder: Path, out: Path) -> float:
    started = time.perf_counter()
    flags = {
        "input.url": str(folder), "output.url": str(out), "model.weights": "demo",
        "output.masks": ("parquet", "png"), "compute.executor": "local", "compute.workers": 1,
        "compute.threads_per_worker": THREADS, "input.shard_size": 64,
    }  # fmt: skip
    result = run(load_config(None, [], flags))
    assert result.exit_code == 0
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    times: dict[str, list[float]] = {"plain loop": [], "fcnseg": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "in")
        make_folder(folder, arguments.images)
        for number in range(ROUNDS):
            times["plain loop"].append(plain_loop(folder, Path(name, f"loop{number}")))
            times["fcnseg"].append(ours(folder, Path(name, f"ours{number}")))
    rates = {what: arguments.images / min(seconds) for what, seconds in times.items()}
    figures = {
        "command": f"python -m benchmarks.end_to_end --images {arguments.images}",
        "images_per_second": {what: round(rate, 1) for what, rate in rates.items()},
        "ratio": round(rates["fcnseg"] / rates["plain loop"], 2),
        "threads": THREADS,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "capability": torch.backends.cpu.get_cpu_capability(),
    }
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
