"""Compare int8 on a CPU with bf16 and fp32: the loss of mean IoU, and the time saved.

Usage: python -m benchmarks.int8 [--threads N] [--rounds N] [--sizes HxW …] [--json FILE]

- Mean IoU: the demo weights on rendered scenes that were not used for training, calibrated on 64
  other scenes, and the share of pixels whose class differs from that in fp32. For a data set with
  labels, two commands do the same: `fcnseg weights calibrate`, then `fcnseg evaluate --precision`.
- Time: our forward pass of FCN-8s at full width with random weights, in the three precisions in
  turn. The best round counts, in wall-clock seconds and in CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.forward import Call, network, timed
from docs.demo_scenes import VAL_SEEDS
from fcn_core.calibration import measure_int8_ranges
from fcn_core.datasets.scenes import render_scene
from fcn_core.inference.int8 import has_int8
from fcn_core.labels import SCENES, VOC
from fcn_core.metrics import ConfusionMatrix
from fcn_core.networks.architecture import Architecture
from fcn_core.predictor import Precision, Predictor
from fcn_core.preprocessing import CAFFE_VOC
from fcn_core.weights.weights_file import WeightsFile, read_weights, save_weights
from fcn_core.weights.weights_info import WeightsInfo

CALIBRATION = range(3_500_000, 3_500_064)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
SIZES = ("375x500", "128x128", "360x480")


def with_ranges(file: WeightsFile) -> WeightsFile:
    """The same weights, calibrated on scenes."""
    info = measure_int8_ranges(file, (render_scene(seed).image for seed in CALIBRATION))
    return WeightsFile(save_weights(file.load(), info), file.where)


def accuracy(scenes: int) -> dict[str, dict[str, float]]:
    """Of the demo weights, by precision."""
    file = with_ranges(read_weights("demo"))
    predictors = {kind: Predictor.load(file, precision=kind) for kind in PRECISIONS}
    confusion = {kind: ConfusionMatrix(SCENES.num_classes) for kind in PRECISIONS}
    changed, pixels = dict.fromkeys(PRECISIONS, 0), 0
    for seed in VAL_SEEDS[:scenes]:
        scene = render_scene(seed)
        masks = {kind: one.predict([scene.image])[0].mask for kind, one in predictors.items()}
        pixels += masks["fp32"].size
        for kind, mask in masks.items():
            confusion[kind].update(scene.label, mask)
            changed[kind] += int(np.count_nonzero(mask != masks["fp32"]))
    return {
        kind: {
            "mean_iou": round(confusion[kind].scores().mean_iou, 4),
            "pixels_changed": round(changed[kind] / pixels, 6),
        }
        for kind in PRECISIONS
    }


def speed(sizes: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of one image at full width, by size and precision."""
    info = WeightsInfo(Architecture("fcn8s", 21), VOC, CAFFE_VOC)
    file = with_ranges(WeightsFile(save_weights(network(), info), "random weights"))
    predictors = {kind: Predictor.load(file, precision=kind) for kind in PRECISIONS}
    found = {}
    for size in sizes:
        height, width = map(int, size.split("x"))
        generator = torch.Generator().manual_seed(1)
        image = 60 * torch.randn(1, 3, height, width, generator=generator)
        calls: dict[str, Call] = {}
        for kind, predictor in predictors.items():
            x = image.to(predictor.dtype).contiguous(memory_format=torch.channels_last)
            calls[kind] = lambda x=x, predictor=predictor: predictor.logits(x, None)  # type: ignore[misc]
            calls[kind]()
        seconds = timed(calls, rounds)
        by_bf16 = seconds["bf16"]["best_s"] / seconds["int8"]["best_s"]
        found[size] = {**seconds, "int8_times_as_quick_as_bf16": round(by_bf16, 2)}
        print(size, json.dumps(found[size]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scenes", type=int, default=len(VAL_SEEDS))
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="HxW of each image")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not has_int8():
        parser.exit(0, "This CPU multiplies no bytes (no VNNI, no AMX): nothing to measure.\n")
    figures: dict[str, Any] = {
        "command": f"python -m benchmarks.int8 --threads {options.threads} "
        f"--rounds {options.rounds}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "load_before": round(os.getloadavg()[0], 1),
    }
    with torch.inference_mode():
        figures["seconds"] = speed(options.sizes, options.rounds)
    figures["demo_on_scenes"] = accuracy(options.scenes)
    print(json.dumps(figures["demo_on_scenes"], indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
