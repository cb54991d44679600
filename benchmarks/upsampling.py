"""Measure the CPU milliseconds of one bilinear deconvolution in three forms on one thread.

Usage: python -m benchmarks.upsampling [--classes K] [--json FILE]

Score maps are those of a 375x500 image. The forms run in alternation, and the best of `ROUNDS`
counts. "apart" is the largest difference from the dense form, relative to its largest value.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from fcn_core.networks.upsampling import bilinear_kernel, interpolate

ROUNDS = 40
LAYERS = (
    ("upscore2", 2, (12, 16)),
    ("upscore_pool4", 2, (26, 34)),
    ("upscore8", 8, (54, 70)),
    ("upscore16", 16, (26, 34)),
    ("upscore", 32, (12, 16)),
)


def forms(score: Tensor, stride: int) -> dict[str, Callable[[], Tensor]]:
    classes, kernel = score.shape[1], bilinear_kernel(2 * stride)
    own = kernel.repeat(classes, 1, 1, 1)
    dense = torch.zeros(classes, classes, *kernel.shape)
    dense[range(classes), range(classes)] = kernel
    return {
        "dense": lambda: F.conv_transpose2d(score, dense, stride=stride),
        "grouped": lambda: F.conv_transpose2d(score, own, stride=stride, groups=classes),
        "interpolated": lambda: interpolate(score, stride, 2 * stride),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    torch.manual_seed(0)
    result: dict[str, object] = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "classes": options.classes,
    }
    torch.set_num_threads(1)
    for name, stride, size in LAYERS:
        score = torch.randn(1, options.classes, *size)
        score = score.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            result[name] = row = _measure(forms(score, stride))
        print(f"{name:<14} {row}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def _measure(calls: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            started = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - started)
    exact = calls["dense"]()
    apart = max(float((call() - exact).abs().max() / exact.abs().max()) for call in calls.values())
    return {name: round(1e3 * seconds, 2) for name, seconds in best.items()} | {"apart": apart}


if __name__ == "__main__":
    main()
