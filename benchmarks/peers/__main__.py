"""`fcnseg run` against what people would use instead: one job, the same images, in turn.

Usage: python -m benchmarks.peers [--photographs N] [--scenes N] [--precision auto|fp32|bf16]
                                  [--without NAME …] [--rounds N] [--json FILE]

The job: read JPEGs and PNG labels, run FCN-8s at full width (random weights), write one palette PNG
per image and rows of Parquet, and the mean IU. The images: the first photographs of CamVid's
val split, 480x360, where `../shared/data/camvid` lies beside the checkout, and rendered scenes of
96 to 224 px a side.

- Each peer does it as its own documentation writes it: in fp32, in torch's usual memory layout, on
  the threads that it gets. `benchmarks/peers/` has one file for each.
- And once more given ours: the same precision, channels-last, the same number of threads. Nothing
  else that we do is given: not the cheaper forward pass, not the pipeline.

A job is a process of its own and is timed from its start to its end, with imports, weights and, for
Ray, a cluster. `start` is the same for a single image of 32x32, `work` is the rest: what more
images cost. Where others use the cores, look at CPU seconds, of all its processes. With more
rounds than one the best counts. Masks: the share of pixels whose class is another than in the masks
of `fcnseg run` at the same precision. Daft decodes JPEG by itself, so that its pixels are others;
for four images it is asked again with Pillow's.

`--precision auto` takes bf16 where the CPU is no slower in it than in fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.forward import bf16_factor
from benchmarks.peers.job import Job
from benchmarks.peers.measure import Run, compared, masks, timed
from benchmarks.peers.one import OURS, PEERS, is_installed
from benchmarks.peers.world import CAMVID, make_folder, make_weights, write_scene

THREADS = min(2, os.cpu_count() or 1)
SIDE_SCENES = 4
RATIOS = ("job_s", "work_s", "work_cpu_s")
PACKAGES = ("torch", "ray", "daft", "datasets", "pyarrow", "pillow", "numpy")

HEADER = (
    *("what", "job, s", "start, s", "CPU s", "images/s"),
    *("job, times ours", "work", "CPU of work", "other pixels"),
)


def plan(precision: str, names: list[str]) -> list[Run]:
    """Ours first: the others are compared with it."""
    fastest = [Run(name, False, precision) for name in OURS]
    plain = [] if precision == "fp32" else [Run("fcnseg", False, "fp32")]
    documented = [Run(name, False, "fp32") for name in PEERS]
    given = [Run(name, True, precision) for name in PEERS]
    return [run for run in (*plain, *fastest, *documented, *given) if run.name in names]


def measure(runs: list[Run], folder: Path, rounds: int) -> dict[Run, dict[str, Any]]:
    """Seconds of each run, and where its masks are."""
    results: dict[Run, dict[str, Any]] = {}
    images = len(list((folder / "in/images").iterdir()))
    for number, run in enumerate(runs):
        base = Job("", str(folder / "weights.safetensors"), "", run.precision, run.given, THREADS)
        seconds: dict[str, list[dict[str, float]]] = {"start": [], "in": []}
        try:
            for round_number in range(rounds):
                for what, times in seconds.items():
                    output = str(folder / f"out/{number}-{what}-{round_number}")
                    job = replace(base, folder=str(folder / what), output=output)
                    times.append(timed(run.name, job))
            if len(masks(job.output)) != images:
                raise RuntimeError(f"{len(masks(job.output))} masks of {images} images")
        except RuntimeError as error:
            print(f"{run.title}: failed\n{error}", file=sys.stderr, flush=True)
            results[run] = {"failed": str(error).splitlines()[0]}
            continue
        results[run] = {
            **best(seconds["start"], seconds["in"], images),
            "mean_iou": float(Path(job.output, "mean_iou").read_text()),
            "load": round(os.getloadavg()[0], 1),
            "output": job.output,
        }
        print(f"{run.title}: {results[run]}", flush=True)
    return results


def best(
    starts: list[dict[str, float]], jobs: list[dict[str, float]], images: int
) -> dict[str, float]:
    """The least of all rounds."""
    job, start = min(row["wall"] for row in jobs), min(row["wall"] for row in starts)
    job_cpu, start_cpu = min(row["cpu"] for row in jobs), min(row["cpu"] for row in starts)
    return {
        "job_s": round(job, 2),
        "start_s": round(start, 2),
        "work_s": round(job - start, 2),
        "job_cpu_s": round(job_cpu, 2),
        "work_cpu_s": round(job_cpu - start_cpu, 2),
        "images_per_second": round(images / job, 3),
    }


def compare(results: dict[Run, dict[str, Any]], precision: str, folder: Path) -> None:
    """Ratios of each peer to ours, and its masks against ours."""
    done = {run: row for run, row in results.items() if "failed" not in row}
    ours = {run.precision: row for run, row in done.items() if run.name == "fcnseg"}
    for run, row in done.items():
        if run.precision in ours:
            row["masks"] = compared(masks(row["output"]), masks(ours[run.precision]["output"]))
        for against in dict.fromkeys((precision, run.precision)) if run.name not in OURS else ():
            if against in ours:
                row[f"times_ours_{against}"] = {
                    name: round(row[name] / ours[against][name], 2) for name in RATIOS
                }
    daft = Run("Daft UDF", False, "fp32")
    if "masks" in done.get(daft, {}):
        output = str(folder / "out/daft-pillow")
        weights = str(folder / "weights.safetensors")
        timed(
            "Daft UDF",
            Job(str(folder / "side"), weights, output, "fp32", False, THREADS, pillow=True),
        )
        found = compared(masks(output), masks(ours["fp32"]["output"]))
        done[daft]["masks_with_pillow"] = found


def make_world(folder: Path, photographs: int, scenes: int) -> None:
    make_weights(folder / "weights.safetensors")
    make_folder(folder / "in", photographs, scenes)
    make_folder(folder / "start", 0, 0)
    write_scene(folder / "start", 0, (32, 32))
    make_folder(folder / "side", 0, 0)
    for top in ("images", "labels"):
        names = sorted((folder / "in" / top).iterdir())
        for path in [*names[:1], *names[-SIDE_SCENES + 1 :]]:
            shutil.copy(path, folder / "side" / top)


def table(results: dict[Run, dict[str, Any]]) -> str:
    """Markdown: one line a run."""
    lines = [f"| {' | '.join(HEADER)} |", "|" + " --- |" * len(HEADER)]
    for run, row in results.items():
        if "failed" in row:
            lines.append(f"| {run.title} | failed |" + " |" * (len(HEADER) - 2))
            continue
        ratios = {name[-4:]: value for name, value in row.items() if name.startswith("times_ours")}
        columns = [
            ", ".join(f"{ratio[kind]:.2f} ({precision})" for precision, ratio in ratios.items())
            for kind in RATIOS
        ]
        share = f"{row['masks']['share']:.1e}" if row.get("masks", {}).get("share") else "0"
        lines.append(
            f"| {run.title} | {row['job_s']:.1f} | {row['start_s']:.1f} "
            f"| {row['job_cpu_s']:.1f} | {row['images_per_second']:.2f} | {' | '.join(columns)} "
            f"| {share if 'masks' in row else ''} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line]
    return {
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES if _has(name)},
    }


def _has(name: str) -> bool:
    return name not in ("daft", "datasets") or is_installed(
        {"daft": "Daft UDF", "datasets": "datasets.map"}[name]
    )


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [name for name in (*OURS, *PEERS) if name != "fcnseg"]
    parser.add_argument("--photographs", type=int, default=8)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--without", nargs="+", choices=names, default=[])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result here too")
    return parser.parse_args()


def main() -> None:
    arguments = options()
    torch.set_num_threads(THREADS)
    about, factor = machine(), bf16_factor()
    precision = arguments.precision
    if precision == "auto":
        precision = "bf16" if factor <= 1 else "fp32"
    names = [name for name in (*OURS, *PEERS) if name not in arguments.without]
    absent = [name for name in names if not is_installed(name)]
    for name in absent:
        print(f"{name}: skipped, {PEERS[name][1]} is not installed (pip install '.[bench]')")
    if not CAMVID.is_dir():
        print(f"photographs: skipped, there is no {CAMVID}")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fcnseg-peers-") as name:
        folder = Path(name)
        make_world(folder, arguments.photographs, arguments.scenes)
        photographs = len(list((folder / "in/images").glob("[!s]*.jpg")))
        runs = plan(precision, [name for name in names if name not in absent])
        results = measure(runs, folder, arguments.rounds)
        compare(results, precision, folder)
    print(table(results))
    command = "python -m benchmarks.peers " + " ".join(
        part for part in sys.argv[1:] if part != "--json" and not part.endswith(".json")
    )
    print(f"\nAgain with: {command.strip()}")
    if arguments.json:
        document = {
            "command": command.strip(), **about, "threads": THREADS, "precision": precision,
            "bf16_convolution_takes_times_fp32": factor, "photographs": photographs,
            "scenes": arguments.scenes, "rounds": arguments.rounds, "skipped": absent,
            "minutes": round((time.perf_counter() - started) / 60, 1),
            "load_after": round(os.getloadavg()[0], 1),
            "runs": [
                {"what": run.title, **{k: v for k, v in row.items() if k != "output"}}
                for run, row in results.items()
            ],
        }  # fmt: skip
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
