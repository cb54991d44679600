"""Compare our forward pass with the plain one of FCN-8s: the same weights, images and threads.

Usage: python -m benchmarks.forward [--threads N] [--rounds N] [--sizes HxW …] [--json FILE]

The network is FCN-8s at full width with random weights, which take as long as trained ones. Both
passes get the same preprocessed image in channels-last memory and run in alternation. Results are
the best round and the median, in wall-clock seconds and in CPU seconds. The machine's matrix rate
is that of a product of two 2048 x 2048 matrices in the same run. A pass's share of this rate counts
the multiplications and additions that the pass really does. If other programs use the cores, take
one thread and read the CPU seconds, because two threads wait for each other. bf16 is measured only
if a convolution in bf16 takes at most three times as long as in fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fcn_core.inference.forward import FastForward
from fcn_core.networks.architecture import Architecture
from fcn_core.networks.model import FCN

SIZES = ("375x500", "128x128", "256x256", "500x500", "360x480")
MATRIX = 2048
HEADER = (
    """\
| size | precision | plain s | ours s | speedup | of CPU time | plain GFLOP | ours GFLOP \
| plain share | ours share |
"""
    + "|"
    + " --- |" * 10
)

Call = Callable[[], object]


def network() -> FCN:
    """FCN-8s, K = 21, with weights that keep activations alive."""
    generator = torch.Generator().manual_seed(0)
    model = FCN(Architecture("fcn8s", 21))
    model.reset_parameters(generator)
    for name, parameter in model.named_parameters():
        if name.startswith("score"):
            nn.init.normal_(parameter, std=0.05, generator=generator)
    return model.eval().to(memory_format=torch.channels_last)


def timed(calls: dict[str, Call], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each call, taking turns."""
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started, used = time.perf_counter(), time.process_time()
            call()
            cpu[name].append(time.process_time() - used)
            wall[name].append(time.perf_counter() - started)
    return {
        name: {
            "best_s": round(min(wall[name]), 4),
            "median_s": round(statistics.median(wall[name]), 4),
            "cpu_s": round(min(cpu[name]), 4),
        }
        for name in calls
    }


def operations(call: Call) -> int:
    """Multiplications and additions of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def measure(model: FCN, fast: FastForward, size: tuple[int, int], rounds: int) -> dict[str, object]:
    """One size: both passes, and how far their answers are apart."""
    generator = torch.Generator().manual_seed(1)
    weight = next(model.parameters())
    image = 60 * torch.randn(1, 3, *size, generator=generator)
    image = image.to(weight.dtype).contiguous(memory_format=torch.channels_last)
    left, right = torch.randn(2, MATRIX, MATRIX, generator=generator).to(weight.dtype)
    plain_logits, our_logits = model(image).float(), fast(image).float()
    apart = (our_logits - plain_logits).abs().max() / plain_logits.abs().max()
    calls: dict[str, Call] = {
        "plain": lambda: model(image),
        "ours": lambda: fast(image),
        "matrix": lambda: left @ right,
    }
    seconds = timed(calls, rounds)
    done = {name: operations(calls[name]) for name in ("plain", "ours")}
    rate = 2 * MATRIX**3 / seconds["matrix"]["cpu_s"]
    for name, flops in done.items():
        seconds[name]["gflop"] = round(flops / 1e9, 1)
        seconds[name]["share_of_matrix_rate"] = round(flops / seconds[name]["cpu_s"] / rate, 2)
    return {
        **seconds,
        "matrix_gflop_per_cpu_s": round(rate / 1e9, 1),
        "speedup": {
            kind: round(seconds["plain"][kind] / seconds["ours"][kind], 2)
            for kind in ("best_s", "median_s", "cpu_s")
        },
        "logits_apart": float(f"{apart:.1e}"),
        "pixels_apart": _pixels_apart(plain_logits, our_logits),
    }


def _pixels_apart(one: Tensor, other: Tensor) -> float:
    return float((one.argmax(1) != other.argmax(1)).float().mean())


def bf16_factor() -> float:
    """How long a convolution takes in bf16, in CPU seconds, compared with fp32."""
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(1, 128, 64, 64, generator=generator)
    kernel = torch.randn(128, 128, 3, 3, generator=generator)
    calls: dict[str, Call] = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = (
            tensor.to(dtype, memory_format=torch.channels_last) for tensor in (image, kernel)
        )
        calls[str(dtype)] = lambda x=x, weight=weight: nn.functional.conv2d(x, weight)  # type: ignore[misc]
    fp32, bf16 = (found["cpu_s"] for found in timed(calls, 3).values())
    return round(bf16 / fp32, 1)


def _line(size: str, precision: str, row: dict[str, object]) -> str:
    plain, ours, speedup = row["plain"], row["ours"], row["speedup"]
    assert isinstance(plain, dict) and isinstance(ours, dict) and isinstance(speedup, dict)
    return (
        f"| {size} | {precision} | {plain['best_s']:.2f} | {ours['best_s']:.2f} "
        f"| {speedup['best_s']:.2f} | {speedup['cpu_s']:.2f} | {plain['gflop']:.0f} "
        f"| {ours['gflop']:.0f} | {plain['share_of_matrix_rate']:.2f} "
        f"| {ours['share_of_matrix_rate']:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="HxW of each image")
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = network()
    slower = bf16_factor()
    result: dict[str, object] = {
        "command": f"python -m benchmarks.forward --threads {options.threads} "
        f"--rounds {options.rounds}",
        "threads": options.threads,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "machine": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "bf16_convolution_takes_times_fp32": slower,
    }
    print(HEADER)
    for precision in ("fp32", "bf16") if slower <= 3 else ("fp32",):
        model = model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
        fast = FastForward(model)
        for name in options.sizes:
            height, width = map(int, name.split("x"))
            with torch.inference_mode():
                row = measure(model, fast, (height, width), options.rounds)
            result[f"{name} {precision}"] = row
            print(_line(name, precision, row), flush=True)
            if options.json:
                options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
