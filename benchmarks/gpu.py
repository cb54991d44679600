"""Measure the forward pass and the pipeline on a CUDA machine, in one command.

Usage: python -m benchmarks.gpu [--device cuda] [--seconds S] [--json FILE]

The first part needs only torch, numpy, pillow and this checkout. It runs FCN-8s at full width with
random weights, on batches of 8 images of one size. `plain` computes the whole padded canvas, in the
same precision and channels-last; `ours` is the pass that inference uses. They run in alternation,
and the median counts. The matrix rate is that of a product of two square matrices in the same
precision; the share of it counts the multiplications and additions that a pass really does. `apart`
is the share of pixels whose class differs between the two. `graph` is our pass, captured once as a
CUDA graph and replayed, or the reason why it cannot be captured. It shows whether CUDA graphs save
time.

The first part then measures the predictor on images in the host's memory: with copies during the
computation, as in inference, and `one after the other`. It checks that both results are equal, bit
for bit, counts included.

The second part needs the packages of the pipeline; without them it is left out with a message. It
is `benchmarks.pipeline` with the network on the device: `fcnseg run` on JPEG shards, compared with
the network alone on decoded arrays, without decoder threads and with several.

With `--device cpu` it runs on every machine, slowly. These figures have no meaning, but they test
the script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.forward import network, operations
from fcn_core.inference.device_transfer import CudaTransfer, DeviceTransfer
from fcn_core.inference.forward import FastForward
from fcn_core.labels import VOC
from fcn_core.predictor import Prediction, Predictor
from fcn_core.preprocessing import CAFFE_VOC
from fcn_core.weights.weights_info import WeightsInfo

SIZES = ((375, 500), (256, 256), (512, 512))
BATCH = 8
MATRIX = {"cuda": 8192, "cpu": 1024}
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16,
          "fp16": torch.float16}  # fmt: skip
NEEDED = ("pyarrow", "fsspec", "pydantic", "typer", "yaml", "safetensors", "psutil")
DECODERS = (0, 8)
SHARDS = 12

Call = Callable[[], object]


def median_seconds(calls: dict[str, Call], device: str, least: float) -> dict[str, float]:
    """Of each call, in turn, for at least so many seconds each; the first three do not count."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    found: dict[str, list[float]] = {name: [] for name in calls}
    while min(map(sum, found.values())) < least or min(map(len, found.values())) < 6:
        for name, call in calls.items():
            wait()
            started = time.perf_counter()
            call()
            wait()
            found[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds[3:]) for name, seconds in found.items()}


def forward_rows(device: str, precision: str, least: float) -> list[dict[str, Any]]:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    model = network().to(device, DTYPES[precision]).to(memory_format=torch.channels_last)
    fast = FastForward(model)
    side = MATRIX[device]
    left, right = torch.randn(2, side, side, device=device).to(DTYPES[precision])
    rows = []
    for size in SIZES if device == "cuda" else ((64, 64),):
        image = 60 * torch.randn(BATCH, 3, *size, device=device)
        image = image.to(DTYPES[precision]).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            apart = (model(image).argmax(1) != fast(image).argmax(1)).float().mean()
            calls: dict[str, Call] = {
                "plain": lambda image=image: model(image),  # type: ignore[misc]
                "ours": lambda image=image: fast(image),  # type: ignore[misc]
                "matrix": lambda: left @ right,
            }
            seconds = median_seconds(calls, device, least)
            done = {name: operations(calls[name]) for name in ("plain", "ours")}
        rate = 2 * side**3 / seconds["matrix"]
        row: dict[str, Any] = {"size": "x".join(map(str, size)), "precision": precision}
        for name, flops in done.items():
            row[f"{name}_images_per_second"] = round(BATCH / seconds[name], 1)
            row[f"{name}_share_of_matrix_rate"] = round(flops / seconds[name] / rate, 3)
        row["speedup"] = round(seconds["plain"] / seconds["ours"], 2)
        row["matrix_tflops"] = round(rate / 1e12, 1)
        row["apart"] = float(apart)
        row["graph_images_per_second"] = graph_rate(fast, image, least)
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


def graph_rate(fast: FastForward, image: torch.Tensor, least: float) -> float | str:
    """Images per second of replays of a captured pass; or why there are none."""
    if image.device.type != "cuda":
        return "no CUDA"
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            fast(image)
        seconds = median_seconds({"graph": graph.replay}, "cuda", least)["graph"]
    except RuntimeError as error:
        torch.cuda.synchronize()
        return " ".join(str(error).split())[:200]
    return round(len(image) / seconds, 1)


def predictor_rows(device: str, precision: str, least: float) -> list[dict[str, Any]]:
    """The predictor with and without copies beside the computing."""
    info = WeightsInfo(network().architecture, VOC, CAFFE_VOC)
    rng = np.random.default_rng(0)
    there = torch.device(device)
    buses = {
        "one after the other": DeviceTransfer,
        **({"beside": CudaTransfer} if device == "cuda" else {}),
    }
    rows = []
    for size in SIZES if device == "cuda" else ((64, 64),):
        images = list(rng.integers(0, 256, (6 * BATCH, *size, 3), np.uint8))
        labels = list(rng.integers(0, VOC.num_classes, (6 * BATCH, *size), np.uint8))
        calls: dict[str, Call] = {}
        for name, make in buses.items():
            predictor = Predictor(
                network(),
                info,
                device=device,
                precision=precision,
                batch_size=BATCH,  # type: ignore[arg-type]
            )
            predictor._bus = make(there)
            calls[name] = partial(predictor.predict, images, confidence=True, labels=labels)
        found = [call() for call in calls.values()]
        seconds = median_seconds(calls, device, least)
        row: dict[str, Any] = {"size": "x".join(map(str, size)), "precision": precision}
        for name in calls:
            row[f"{name}, images/s"] = round(len(images) / seconds[name], 1)
        row["equal"] = all(map(_equal, found[0], found[-1]))
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


def _equal(one: Prediction, other: Prediction) -> bool:
    return one.mean_confidence == other.mean_confidence and all(
        np.array_equal(getattr(one, part), getattr(other, part))
        for part in ("mask", "confidence", "pairs")
    )


def pipeline_rows(device: str, precision: str) -> list[dict[str, Any]]:
    from benchmarks import pipeline
    from benchmarks.peers.world import make_folder, make_weights

    rows = []
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        make_folder(top / "folder", pipeline.PHOTOGRAPHS, pipeline.SCENES)
        weights = top / "weights.safetensors"
        make_weights(weights, 1.0 if device == "cuda" else 1 / 32)
        images = pipeline.encoded(top / "folder")
        of_shard = pipeline.repeated(images) if device == "cuda" else images
        pipeline.write_shards(top / "shards", of_shard, SHARDS if device == "cuda" else 3)
        rate = pipeline.alone(top / "folder", weights, precision, device)
        rows.append({"what": "network alone", "images_per_second": round(rate, 1)})
        for decoders in DECODERS:
            how = pipeline.How(precision, device=device, decoders=decoders)
            found = pipeline.steady(top / "shards", top / f"out{decoders}", weights, how)
            share = round(found["images_per_second"] / rate, 3)
            rows.append({"what": f"fcnseg run, {decoders} decoders", **found, "share": share})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each forward measurement")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = options.device
    precisions = ("fp32", "tf32", "bf16", "fp16") if device == "cuda" else ("fp32",)
    figures: dict[str, Any] = {
        "command": f"python -m benchmarks.gpu --device {device}",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "forward": [
            row for name in precisions for row in forward_rows(device, name, options.seconds)
        ],
    }
    best = "bf16" if device == "cuda" else "fp32"
    figures["predictor"] = predictor_rows(device, best, options.seconds)
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        figures["pipeline"] = f"not measured: {', '.join(missing)} missing"
    else:
        figures["pipeline"] = pipeline_rows(device, best)
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
