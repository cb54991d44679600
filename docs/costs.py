"""Print how many images a GPU segments per second, and the cost of a million: python docs/costs.py.

Nothing here was measured on a GPU. Operations are counted on the network with torch's meta device,
without computing. Peaks, prices and the utilisation are constants below.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from fcn_core.inference.forward import FastForward
from fcn_core.networks.architecture import Architecture
from fcn_core.networks.model import FCN

SIZES = ((128, 128), (375, 500), (500, 500), (1024, 1024), (1080, 1920))
CLASSES = 21
UTILISATIONS = (0.2, 0.4, 0.6)
"""Assumed shares of the peak that the convolutions reach, from low to high."""
MILLION = 1_000_000
SHARD, CHUNK_OBJECTS = 256, 2
"""Images of a shard; objects that a chunk writes beside PNGs: masks and previews."""
PUT, GET = 0.005 / 1000, 0.0004 / 1000
"""US dollars per request to S3 Standard, us-east-1."""


@dataclass(frozen=True)
class Gpu:
    """Figures of a GPU from its maker and from a cloud.

    Attributes:
        name: name of the product.
        tflops: dense bf16 peak with single-precision sums, 1e12 operations per second.
        machine: Amazon EC2 instance type, and its number of GPUs if more than one.
        dollars: US dollars per hour and GPU.
    """

    name: str
    tflops: float
    machine: str
    dollars: float


GPUS = (
    Gpu("A10G", 70, "g5.xlarge", 1.006),
    Gpu("L4", 121, "g6.xlarge", 0.8048),
    Gpu("L40S", 362, "g6e.xlarge", 1.861),
    Gpu("A100 40 GB", 312, "p4d.24xlarge / 8", 21.96 / 8),
    Gpu("H100 SXM", 989, "p5.48xlarge / 8", 55.04 / 8),
)


@cache
def gflop(height: int, width: int) -> tuple[float, float]:
    """Return 1e9 operations of FCN-8s for one image: (all layers, the pass that is computed)."""
    with torch.device("meta"):
        model = FCN(Architecture("fcn8s", CLASSES)).eval()
        image = torch.zeros(1, 3, height, width)
    fast = FastForward(model)
    fast(image)  # caches the blank canvas for later images
    counted = []
    with torch.inference_mode():
        for network in (model, fast):
            with FlopCounterMode(display=False) as counter:
                network(image)
            counted.append(counter.get_total_flops() / 1e9)
    return counted[0], counted[1]


def rate(gpu: Gpu, operations: float, utilisation: float) -> float:
    """Return images per second; `operations` is in 1e9 per image."""
    return gpu.tflops * 1e3 * utilisation / operations


def per_million(gpu: Gpu, images_per_second: float) -> float:
    """Return the cost of a million images, US dollars."""
    return gpu.dollars / 3600 * MILLION / images_per_second


def requests(png: bool) -> tuple[int, float]:
    """Return the requests for a million images in tars of `SHARD`, and their cost, US dollars."""
    shards = -(-MILLION // SHARD)
    puts = shards * (CHUNK_OBJECTS + 1) + (MILLION if png else 0)
    return puts + shards, puts * PUT + shards * GET


def main() -> None:
    """Print the tables of operations, rates with costs, and requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="375x500", help="HxW of an image, px")
    height, width = map(int, parser.parse_args().size.split("x"))
    print("| size | GFLOP, all layers | GFLOP, as computed |\n| --- | --- | --- |")
    for size in SIZES:
        whole, taken = gflop(*size)
        print(f"| {size[0]}x{size[1]} | {whole:,.0f} | {taken:,.0f} |")
    operations = gflop(height, width)[1]
    shares = [f"{share:.0%}" for share in UTILISATIONS]
    print(f"\n| {height}x{width} px | bf16 peak, TFLOP/s | $/h |", end="")
    print("".join(f" images/s at {s} |" for s in shares), end="")
    print("".join(f" $ per million at {s} |" for s in shares))
    print("|" + " --- |" * (3 + 2 * len(shares)))
    for gpu in GPUS:
        rates = [rate(gpu, operations, share) for share in UTILISATIONS]
        cells = [f"{gpu.name} ({gpu.machine})", f"{gpu.tflops:g}", f"{gpu.dollars:.2f}"]
        cells += [f"{value:,.0f}" for value in rates]
        cells += [f"{per_million(gpu, value):.2f}" for value in rates]
        print(f"| {' | '.join(cells)} |")
    print("\n| masks | requests per million images | $ |\n| --- | --- | --- |")
    for name, png in (("parquet", False), ("parquet,png", True)):
        count, dollars = requests(png)
        print(f"| `{name}` | {count:,} | {dollars:.2f} |")


if __name__ == "__main__":
    main()
