"""Measure runs of 1, 10 and 100 times as many images: memory, images/s, driver time per chunk.

Usage: python -m benchmarks.scale [--images N] [--only growth|workers] [--json FILE]

- `1x`, `10x`, `100x`: `fcnseg run` with the local executor and no network, on shards of 24 images
  (see `benchmarks.pipeline`). Labels are scored, and masks are written to Parquet. Each run is a
  separate process. Memory is the peak over the run of the RAM of all its processes together (PSS:
  shared pages count once), read twice a second. `driver_ms_per_chunk` is the CPU time of the thread
  that plans, collects and commits, less that of a run with a single shard, per chunk. The time of
  the single shard is the cost of a start, and is the best of three runs.
- `workers`: one and two replicas of FCN-8s at full width, one thread each, images/s in steady
  state.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.null_network import in_worker_processes
from benchmarks.peers.world import make_folder, make_weights
from benchmarks.pipeline import PHOTOGRAPHS, SCENES, SHARDS, How, encoded, steady, write_shards
from pipeline.config import load_config
from pipeline.driver import run

FACTORS = (1, 10, 100)
STARTS = 3
GLANCE = 0.5


class Peak:
    """The most that a process and all its children hold in RAM at once, bytes."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._root = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(GLANCE):
            total = 0
            with suppress(psutil.Error):
                for process in (self._root, *self._root.children(recursive=True)):
                    with suppress(psutil.Error):
                        total += process.memory_full_info().pss
            self.bytes = max(self.bytes, total)

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return self.bytes


def one_run(shards: Path, output: Path, weights: Path, with_network: bool, workers: int) -> None:
    """In a process of its own: prints what it measured."""
    with nullcontext() if with_network else in_worker_processes():
        if with_network:
            print(
                json.dumps(steady(shards, output, weights, How("fp32", workers=workers, threads=1)))
            )
            return
        flags = {
            "input.url": str(shards), "output.url": str(output), "model.weights": str(weights),
            "compute.executor": "local", "compute.workers": 1, "compute.device": "cpu",
        }  # fmt: skip
        started, used = time.perf_counter(), time.thread_time()
        result = run(load_config(None, [], flags))
        assert result.exit_code == 0
        print(json.dumps({"s": time.perf_counter() - started, "cpu_s": time.thread_time() - used}))


def in_a_process(top: Path, shards: str, network: bool = False, workers: int = 1) -> dict[str, Any]:
    output = tempfile.mkdtemp(dir=top)
    command = [sys.executable, "-m", "benchmarks.scale", "--one", str(top / shards), output,
               str(top / "weights.safetensors"), str(int(network)), str(workers)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = Peak(process.pid)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return {**json.loads(said), "peak_mb": round(peak.stop() / 1e6)}


def growth(top: Path, images: int) -> list[dict[str, Any]]:
    make_weights(top / "weights.safetensors", 1 / 32)
    pictures = encoded(top / "folder")
    write_shards(top / "one", pictures, 1)
    starts = [in_a_process(top, "one") for _ in range(STARTS)]
    base = {kind: min(start[kind] for start in starts) for kind in ("s", "cpu_s")}
    rows = []
    for factor in FACTORS:
        shards = max(2, factor * images // len(pictures))
        write_shards(top / f"{factor}x", pictures, shards)
        found = in_a_process(top, f"{factor}x")
        more = shards - 1
        rows.append({
            "run": f"{factor}x",
            "images": shards * len(pictures),
            "images_per_second": round(more * len(pictures) / (found["s"] - base["s"]), 1),
            "peak_mb": found["peak_mb"],
            "driver_ms_per_chunk": round(1000 * (found["cpu_s"] - base["cpu_s"]) / more, 2),
        })  # fmt: skip
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def workers(top: Path) -> list[dict[str, Any]]:
    make_weights(top / "weights.safetensors")
    write_shards(top / "few", encoded(top / "folder"), SHARDS)
    rows = []
    for count in (1, 2):
        found = in_a_process(top, "few", network=True, workers=count)
        rows.append({"workers": count, **found})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=120, help="of the run 1x")
    parser.add_argument("--only", choices=("growth", "workers"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        shards, output, weights, network, count = options.one
        one_run(Path(shards), Path(output), Path(weights), network == "1", int(count))
        return
    figures: dict[str, Any] = {
        "command": f"python -m benchmarks.scale --images {options.images}"
        + (f" --only {options.only}" if options.only else ""),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_before": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory() as name:
        make_folder(Path(name, "folder"), PHOTOGRAPHS, SCENES)
        if options.only != "workers":
            figures["growth"] = growth(Path(name), options.images)
        if options.only != "growth":
            figures["workers"] = workers(Path(name))
            one, two = (row["images_per_second"] for row in figures["workers"])
            figures["workers_ratio"] = round(two / one, 2)
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
