"""Is int8 on a CPU worth having? What it would cost in mean IU, and what it would save in time.

Usage: python -m benchmarks.int8 [--threads N] [--json FILE]

- Mean IU: the demo weights on rendered scenes that they have not seen, in fp32, in bf16, and as an
  int8 network would compute: weights of each trunk convolution rounded to int8 per output channel,
  its input to uint8 per tensor, by the extremes that other scenes gave. Products are summed exactly
  there; scores and deconvolutions stay in fp32.
- Time: the kernels that torch has, for convolutions of VGG-16 as they stand in FCN-8s on a picture
  of 375x500, bf16 and int8 in turn, channels-last. Whatever int8 needs around its convolutions,
  such as rounding their inputs, is not counted. The best of fifteen rounds counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from docs.demo_scenes import VAL_SEEDS
from fcn_core.checkpoint import read_weights
from fcn_core.labels import SCENES
from fcn_core.metrics import ConfusionMatrix
from fcn_core.model import FCN
from fcn_core.predictor import Predictor
from fcn_core.scenes import render_scene

CALIBRATION = range(3_500_000, 3_500_032)
ROUNDS = 15
LAYERS = {
    "conv1_2": (64, 64, 3, 573, 698),
    "conv2_2": (128, 128, 3, 287, 349),
    "conv3_3": (256, 256, 3, 144, 175),
    "conv4_3": (512, 512, 3, 72, 88),
    "fc6": (512, 4096, 7, 18, 22),
}
"""(input channels, output channels, kernel, height, width)."""


def convolutions(model: FCN) -> dict[str, nn.Conv2d]:
    """Those of the trunk."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and not name.startswith("score")
    }


def extremes(predictor: Predictor, seeds: range) -> dict[str, tuple[float, float]]:
    """The least and the greatest number that each convolution reads, 0 included."""
    found: dict[str, tuple[float, float]] = {}
    handles = []
    for name, conv in convolutions(predictor.model).items():  # type: ignore[arg-type]

        def look(_: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            low, high = found.get(name, (0.0, 0.0))
            found[name] = min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))

        handles.append(conv.register_forward_pre_hook(look))
    predictor.predict([render_scene(seed).image for seed in seeds])
    for handle in handles:
        handle.remove()
    return found


@contextmanager
def rounded(predictor: Predictor, ranges: dict[str, tuple[float, float]]) -> Iterator[None]:
    """Meanwhile the network computes as in int8."""
    handles, weights = [], {}
    for name, conv in convolutions(predictor.model).items():  # type: ignore[arg-type]
        low, high = ranges[name]
        scale = max((high - low) / 255, 1e-12)  # a layer may be dead
        zero = round(-low / scale)
        weights[conv] = conv.weight.data
        scales = conv.weight.data.abs().amax((1, 2, 3)).clamp_min(1e-12) / 127
        zeros = torch.zeros(len(scales), dtype=torch.int32)
        conv.weight.data = torch.fake_quantize_per_channel_affine(
            conv.weight.data, scales, zeros, 0, -127, 127
        )

        def round_input(
            _: nn.Module, inputs: tuple[Tensor], scale: float = scale, zero: int = zero
        ) -> Tensor:
            return torch.fake_quantize_per_tensor_affine(inputs[0], scale, zero, 0, 255)

        handles.append(conv.register_forward_pre_hook(round_input))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for conv, weight in weights.items():
            conv.weight.data = weight


def mean_iou(predictor: Predictor) -> float:
    confusion = ConfusionMatrix(SCENES.num_classes)
    for seed in VAL_SEEDS:
        scene = render_scene(seed)
        confusion.update(scene.label, predictor.predict([scene.image])[0].mask)
    return round(confusion.scores().mean_iou, 4)


def accuracy() -> dict[str, float]:
    """Mean IU by arithmetic. The plain pass: hooks see each layer's input as a whole."""
    file = read_weights("demo")
    predictor = Predictor.load(file, plain=True)
    found = {"fp32": mean_iou(predictor)}
    found["bf16"] = mean_iou(Predictor.load(file, precision="bf16", plain=True))
    with rounded(predictor, extremes(predictor, CALIBRATION)):
        found["int8"] = mean_iou(predictor)
    return found


@torch.inference_mode()
def speed() -> dict[str, dict[str, float]]:
    """Milliseconds of each layer."""
    torch.backends.quantized.engine = "onednn"
    found = {}
    for name, (inputs, outputs, kernel, height, width) in LAYERS.items():
        pad = [1, 1] if kernel == 3 else [0, 0]
        layout = torch.channels_last
        weight = 0.02 * torch.randn(outputs, inputs, kernel, kernel)
        image = torch.rand(1, inputs, height, width).contiguous(memory_format=layout)
        scales, zeros = weight.abs().amax((1, 2, 3)) / 127, torch.zeros(outputs, dtype=torch.int)
        quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        packed = torch.ops.quantized.conv2d_prepack(
            quantized, torch.zeros(outputs), [1, 1], pad, [1, 1], 1
        )
        image_q = torch.quantize_per_tensor(image, 1 / 255, 0, torch.quint8)
        image_b, weight_b = image.bfloat16(), weight.bfloat16().contiguous(memory_format=layout)
        calls = {
            "bf16": partial(F.conv2d, image_b, weight_b, padding=pad),
            "int8": partial(torch.ops.quantized.conv2d_relu, image_q, packed, 0.1, 0),
        }
        best = dict.fromkeys(calls, float("inf"))
        for _ in range(ROUNDS):
            for kind, call in calls.items():
                started = time.perf_counter()
                call()
                best[kind] = min(best[kind], time.perf_counter() - started)
        found[name] = {kind: round(1000 * seconds, 2) for kind, seconds in best.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {
        "command": f"python -m benchmarks.int8 --threads {options.threads}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "load_before": round(os.getloadavg()[0], 1),
        "mean_iou": accuracy(),
        "ms": speed(),
    }
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
