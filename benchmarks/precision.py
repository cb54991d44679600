"""Count the pixels of a mask that the precision and the fast forward pass change, on real images.

Usage: python -m benchmarks.precision --images DIR [--count N] [--full-width N] [--json FILE]

The reference is the plain fp32 forward pass with the same weights. Results are the share of pixels
with another class over all images, the same share of the worst image, and the CPU seconds per
image. The networks are the demo weights, on rendered scenes (like those of their training) and on
the given images (unlike them: many near ties), and FCN-8s at full width with random weights on the
first few images, only in fp32 if the CPU has no bf16 arithmetic.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.forward import bf16_factor, network
from docs.demo_scenes import VAL_SEEDS
from fcn_core.datasets.scenes import render_scene
from fcn_core.images import decode_image
from fcn_core.labels import VOC
from fcn_core.networks.architecture import Architecture
from fcn_core.predictor import Predictor
from fcn_core.preprocessing import CAFFE_VOC
from fcn_core.weights.weights_info import WeightsInfo

MODES = (("fp32", True), ("fp32", False), ("bf16", True), ("bf16", False))

Images = Sequence[NDArray[np.uint8]]


def predictors(modes: Sequence[tuple[str, bool]], demo: bool) -> dict[str, Predictor]:
    found = {}
    for precision, plain in modes:
        name = f"{precision} {'plain' if plain else 'fast'}"
        if demo:
            found[name] = Predictor.load("demo", precision=precision, plain=plain)  # type: ignore[arg-type]
        else:
            info = WeightsInfo(Architecture("fcn8s", 21), VOC, CAFFE_VOC)
            found[name] = Predictor(network(), info, precision=precision, plain=plain)  # type: ignore[arg-type]
    return found


def compare(found: dict[str, Predictor], pictures: Images) -> dict[str, dict[str, float]]:
    """Against the first predictor."""
    changed: dict[str, list[int]] = {name: [] for name in found}
    seconds = dict.fromkeys(found, 0.0)
    for picture in pictures:
        expected: NDArray[np.uint8] | None = None
        for name, predictor in found.items():
            started = time.process_time()
            mask = predictor.predict([picture])[0].mask
            seconds[name] += time.process_time() - started
            expected = mask if expected is None else expected
            changed[name].append(int(np.count_nonzero(mask != expected)))
    pixels = [picture.shape[0] * picture.shape[1] for picture in pictures]
    return {
        name: {
            "changed": sum(counts) / sum(pixels),
            "worst_picture": max(n / of for n, of in zip(counts, pixels, strict=True)),
            "cpu_s_per_picture": round(seconds[name] / len(pictures), 3),
        }
        for name, counts in changed.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEGs or PNGs")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--full-width", type=int, default=2, help="images for it; 0: leave out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    files = sorted(path for path in options.images.iterdir() if path.suffix in (".jpg", ".png"))
    photos = [decode_image(p.read_bytes(), p.name, 10**8) for p in files[: options.count]]
    scenes = [render_scene(seed).image for seed in VAL_SEEDS[: options.count]]
    slower = bf16_factor()
    result: dict[str, object] = {
        "command": f"python -m benchmarks.precision --images DIR --count {options.count} "
        f"--full-width {options.full_width} --threads {options.threads}",
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_convolution_takes_times_fp32": slower,
        "photographs": len(photos),
    }
    some = MODES if slower <= 3 else MODES[:2]
    for name, modes, demo, pictures in (
        ("demo on scenes", MODES, True, scenes),
        ("demo on photographs", MODES, True, photos),
        ("random fcn8s on photographs", some, False, photos[: options.full_width]),
    ):
        if not pictures:
            continue
        result[name] = row = compare(predictors(modes, demo), pictures)
        for mode, figures in row.items():
            print(f"{name}, {mode}: {figures}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
