"""Compare a run's images/s with those of the network alone, and of a run without a network.

Usage: python -m benchmarks.pipeline [--rounds N] [--precision auto|fp32|bf16] [--without ray]
                                     [--only real|null] [--json FILE]

The images are eight photographs of CamVid's val split, 480x360, if `../shared/data/camvid` is
beside the checkout, and sixteen rendered scenes of 96 to 224 px a side; all shards have the same
images. The network is FCN-8s at full width with random weights. Masks are written to Parquet and
PNG, and labels are scored.

- `local`, `ray`: `fcnseg run` with one replica on two threads. Images/s are those of the steady
  state, from the second finished shard to the last: the start and the first image of each size do
  not count. `share` compares them with the network alone on decoded arrays, in a separate process
  on the same threads, after a warm-up, measured immediately before and after the run. `busy` is the
  share of the time in which the network computes, from the seconds that the commits contain.
- `… null`: the same without a network, on shards of 480 images, with a replica for each core,
  because the remaining work uses one thread of a replica. `share` compares it with the codec limit:
  the speed of the cores if they only decode every image and label and encode every mask, one after
  the other in one process per core, measured immediately before and after the run.

If there are several rounds, the round with the median share counts, and all shares are printed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.forward import bf16_factor
from benchmarks.null_network import in_worker_processes, null_mask
from benchmarks.peers.segmenter import LABELS
from benchmarks.peers.world import CAMVID, make_folder, make_weights
from fcn_core.images import decode_image, encode_mask
from fcn_core.predictor import Predictor
from pipeline.config import load_config
from pipeline.driver import run
from pipeline.formats import add_to_tar
from pipeline.inputs.sample import decode_truth
from pipeline.monitoring.progress import Progress

THREADS = min(2, os.cpu_count() or 1)
PHOTOGRAPHS, SCENES = 8, 16
SHARDS, REPEATS = 8, 20
ALONE_PASSES = 3
CODEC_SECONDS = 1.0
PIXELS = 10**7


def encoded(folder: Path) -> list[tuple[str, bytes, bytes]]:
    """Key, JPEG, label PNG."""
    return [
        (path.stem, path.read_bytes(), (folder / f"labels/{path.stem}.png").read_bytes())
        for path in sorted((folder / "images").iterdir())
    ]


def write_shards(folder: Path, pictures: list[tuple[str, bytes, bytes]], shards: int) -> None:
    folder.mkdir()
    for number in range(shards):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for key, image, label in pictures:
                add_to_tar(tar, f"{number:04d}-{key}.jpg", image)
                add_to_tar(tar, f"{number:04d}-{key}.png", label)
        (folder / f"{number:04d}.tar").write_bytes(buffer.getvalue())


def repeated(pictures: list[tuple[str, bytes, bytes]]) -> list[tuple[str, bytes, bytes]]:
    """For a shard as large as shards are."""
    return [(f"{n}-{key}", *data) for n in range(REPEATS) for key, *data in pictures]  # type: ignore[misc]


def codec_seconds(pictures: list[tuple[str, bytes, bytes]]) -> dict[str, float]:
    """Per image, in one thread: the median of the passes of a second."""
    passes = []
    began = time.perf_counter()
    while time.perf_counter() < began + CODEC_SECONDS:
        started = time.perf_counter()
        arrays = [decode_image(image, key, PIXELS) for key, image, _ in pictures]
        decoded = time.perf_counter()
        for key, _, label in pictures:
            decode_truth(label, key, LABELS, PIXELS)
        scored = time.perf_counter()
        for array in arrays:
            encode_mask(null_mask(*array.shape[:2], LABELS.num_classes), LABELS.palette)
        ended = time.perf_counter()
        passes.append((decoded - started, scored - decoded, ended - scored))
    names = ("decode_image", "decode_label", "encode_mask")
    return {
        name: statistics.median(found) / len(pictures)
        for name, found in zip(names, zip(*passes, strict=True), strict=True)
    }


def codecs_at_once(folder: Path) -> list[dict[str, float]]:
    """Of a process for each core, all at work at once: cores may share more than one sees."""
    command = [sys.executable, "-m", "benchmarks.pipeline", "--codecs", str(folder)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for _ in range(os.cpu_count() or 1)
    ]
    return [json.loads(process.communicate()[0]) for process in processes]


def alone(folder: Path, weights: Path, precision: str, device: str = "cpu") -> float:
    """Images per second of the network, on arrays."""
    torch.set_num_threads(THREADS)
    predictor = Predictor.load(weights, precision=precision, device=device)  # type: ignore[arg-type]
    arrays = [decode_image(image, key, PIXELS) for key, image, _ in encoded(folder)]
    predictor.predict(arrays)
    started = time.perf_counter()
    for _ in range(ALONE_PASSES):
        predictor.predict(arrays)
    return ALONE_PASSES * len(arrays) / (time.perf_counter() - started)


def alone_in_a_process(folder: Path, weights: Path, precision: str) -> float:
    command = [sys.executable, "-m", "benchmarks.pipeline", "--alone", str(folder), str(weights)]
    found = subprocess.run(
        [*command, "--precision", precision], check=True, capture_output=True, text=True
    )
    return float(found.stdout)


@dataclass(frozen=True)
class How:
    """How a run is done."""

    precision: str
    executor: str = "local"
    workers: int = 1
    threads: int = THREADS
    device: str = "cpu"
    decoders: int | None = None


def steady(shards: Path, output: Path, weights: Path, how: How) -> dict[str, Any]:
    """Images per second and the busy share of a run, after its first shard."""
    seen: list[tuple[int, float]] = []

    def on_progress(progress: Progress) -> None:
        if not seen or progress.images > seen[-1][0]:
            seen.append((progress.images, time.perf_counter()))

    flags = {
        "input.url": str(shards), "output.url": str(output), "model.weights": str(weights),
        "model.precision": how.precision, "output.masks": ("parquet", "png"),
        "compute.executor": how.executor, "compute.workers": how.workers,
        "compute.device": how.device, "compute.threads_per_worker": how.threads,
        "compute.decoders": how.decoders,
    }  # fmt: skip
    started = time.perf_counter()
    result = run(load_config(None, [], flags), on_progress)
    assert result.exit_code == 0
    (first, began), (last, ended) = seen[1], seen[-1]
    commits = sorted((output / "_commits").rglob("*.json"), key=lambda path: path.stat().st_mtime)
    forward = sum(json.loads(path.read_text())["seconds"]["forward"] for path in commits[1:])
    return {
        "images_per_second": round((last - first) / (ended - began), 2),
        "busy": round(forward / (ended - began) / how.workers, 3),
        "forward_seconds": round(forward, 3),
        "seconds": round(time.perf_counter() - started, 1),
    }


def median(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The round of median share, and the shares of all."""
    ranked = sorted(found, key=lambda one: float(one["share"]))
    return {**ranked[len(ranked) // 2], "shares": [one["share"] for one in ranked]}


@dataclass(frozen=True)
class World:
    """What is labelled, with what."""

    top: Path
    precision: str

    @property
    def weights(self) -> Path:
        return self.top / "weights.safetensors"

    @property
    def folder(self) -> Path:
        return self.top / "folder"

    def round_with(self, executor: str, number: int) -> dict[str, Any]:
        """The network alone, a run with it, and it alone again."""
        rates = [alone_in_a_process(self.folder, self.weights, self.precision)]
        output = self.top / f"{executor}{number}"
        found = steady(self.top / "few", output, self.weights, How(self.precision, executor))
        rates.append(alone_in_a_process(self.folder, self.weights, self.precision))
        return {**found, **_share(found, "alone", rates)}

    def round_without(self, executor: str, number: int) -> dict[str, Any]:
        """The codecs alone, a run without a network, and the codecs again."""
        before = codecs_at_once(self.folder)
        output = self.top / f"{executor}null{number}"
        how = How(self.precision, executor, workers=len(before), threads=1)
        with in_worker_processes():
            found = steady(self.top / "many", output, self.weights, how)
        after = codecs_at_once(self.folder)
        del found["busy"]
        limits = [sum(1 / sum(one.values()) for one in rates) for rates in (before, after)]
        share = _share(found, "limit", limits)
        codecs = {
            name: round(1000 * min(one[name] for one in before + after), 3) for name in before[0]
        }
        return {**found, **share, "codec_ms_per_image": codecs}


def _share(found: dict[str, Any], name: str, rates: list[float]) -> dict[str, Any]:
    share = found["images_per_second"] / (sum(rates) / len(rates))
    return {name: [round(rate, 2) for rate in rates], "share": round(share, 3)}


def measure(options: argparse.Namespace, top: Path, precision: str) -> dict[str, Any]:
    world = World(top, precision)
    make_folder(world.folder, PHOTOGRAPHS, SCENES)
    make_weights(world.weights)
    pictures = encoded(world.folder)
    write_shards(top / "few", pictures, SHARDS)
    write_shards(top / "many", repeated(pictures), SHARDS)
    result: dict[str, Any] = {
        "pictures": f"{len(pictures)}, {min(PHOTOGRAPHS, len(pictures) - SCENES)} of them CamVid's",
        "runs": {},
    }
    for executor in [name for name in ("local", "ray") if name not in options.without]:
        kinds = {"real": ("", world.round_with), "null": (" null", world.round_without)}
        for kind, measured in [kinds[name] for name in kinds if options.only in (None, name)]:
            found = median([measured(executor, number) for number in range(options.rounds)])
            result["runs"][f"{executor}{kind}"] = found
            print(f"{executor}{kind}: {found}", file=sys.stderr, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--only", choices=("real", "null"), help="the network that is given")
    parser.add_argument("--without", nargs="*", default=[], choices=("ray", "local"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--codecs", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.codecs:
        print(json.dumps(codec_seconds(encoded(options.codecs))))
        return
    if options.alone:
        print(alone(*options.alone, options.precision))
        return
    precision = options.precision
    if precision == "auto":
        precision = "bf16" if bf16_factor() <= 1 else "fp32"
    about = {
        "command": f"python -m benchmarks.pipeline --rounds {options.rounds}"
        + "".join(f" --without {name}" for name in options.without)
        + (f" --only {options.only}" if options.only else ""),
        "precision": precision,
        "threads": THREADS,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load_before": round(os.getloadavg()[0], 1),
        "camvid": CAMVID.is_dir(),
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory() as name:
        figures = {**about, **measure(options, Path(name), precision)}
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
