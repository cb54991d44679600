"""Compare the step time of `fcnseg train` with a loop written by hand, and 32s with 16s and 8s.

python -m benchmarks.training step [--steps N] [--json FILE]
    Both train the same network on the same rendered scenes with the same recipe and threads, in
    alternation. The best of eight rounds counts, because other guests of the machine can only
    increase the time. Checkpoints and the first steps are left out on both sides.

python -m benchmarks.training variants TRAIN VAL OUTPUT --label-set camvid --minutes 60
    Trains FCN-32s, FCN-16s and FCN-8s from random weights for the same number of steps, as many as
    fit into the time. Writes OUTPUT/table.md: the four scores and the IoU per class, by evaluation.
    Running it again resumes; the number of steps is kept in OUTPUT/budget.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fcn_core.datasets.scenes import render_scene
from fcn_core.networks.architecture import Architecture
from fcn_core.networks.model import FCN
from fcn_core.training.recipes import MODERN
from pipeline.cli.commands.train import describe
from pipeline.training.config import load_train_config
from pipeline.training.driver import train

ROUNDS = 8
THREADS = min(2, os.cpu_count() or 1)
WARM = 4
"""Steps left out: memory is allocated, kernels are chosen, the first window is read."""
CROP, BATCH, WIDTH = 128, 4, 1 / 8
VARIANTS = ("fcn32s", "fcn16s", "fcn8s")
EVALUATIONS = 6
PROBE_STEPS = 12
FOUR = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")


def make_folder(folder: Path, images: int) -> None:
    for top in ("images", "labels"):
        (folder / top).mkdir(parents=True)
    for seed in range(images):
        scene = render_scene(8_000_000 + seed)
        Image.fromarray(scene.image).save(folder / f"images/{seed:05d}.jpg", quality=92)
        Image.fromarray(scene.label).save(folder / f"labels/{seed:05d}.png")


def plain_view(image: Any, label: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """Of an image and its label: enlarged or reduced, cut out, mirrored, other colours."""
    factor = np.exp(rng.uniform(np.log(0.75), np.log(1.5)))
    size = tuple(max(1, round(side * factor)) for side in reversed(label.shape))
    cut = [min(side, CROP) for side in size]
    left, top = (int(rng.integers(side - part + 1)) for side, part in zip(size, cut, strict=True))
    box = [v / factor for v in (left, top, left + cut[0], top + cut[1])]
    box[2:] = min(box[2], label.shape[1]), min(box[3], label.shape[0])
    image = np.asarray(Image.fromarray(image).resize(cut, Image.Resampling.BILINEAR, box))
    label = np.asarray(Image.fromarray(label).resize(cut, Image.Resampling.NEAREST, box))
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    contrast, *brightness = rng.uniform(-0.1, 0.1, 4).astype(np.float32)
    pixels = image.astype(np.float32)
    pixels = pixels + contrast * (pixels - pixels.mean()) + 128 * np.array(brightness)
    return np.clip(pixels, 0, 255), label


def plain_loop(folder: Path, steps: int) -> float:
    """Seconds per step of what a person writes: open, augment, normalise, AdamW."""
    model = FCN(Architecture("fcn8s", 6, WIDTH)).to(memory_format=torch.channels_last)
    model.reset_parameters(torch.Generator().manual_seed(0))
    model.dropout.p = MODERN.dropout
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    paths = sorted((folder / "images").iterdir())
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    for step in range(steps):
        if step == WARM:
            started = time.perf_counter()
        images = np.zeros((BATCH, CROP, CROP, 3), np.float32)
        labels = np.full((BATCH, CROP, CROP), 255, np.int64)
        for slot in range(BATCH):
            path = paths[rng.integers(len(paths))]
            image = np.asarray(Image.open(path).convert("RGB"))
            label = np.asarray(Image.open(folder / f"labels/{path.stem}.png"))
            image, label = plain_view(image, label, rng)
            images[slot, : label.shape[0], : label.shape[1]] = (image - 127.5) / 64
            labels[slot, : label.shape[0], : label.shape[1]] = label
        optimizer.zero_grad()
        logits = model(torch.from_numpy(images).permute(0, 3, 1, 2))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), ignore_index=255)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert np.isfinite(loss.item())
    return (time.perf_counter() - started) / (steps - WARM)


def ours(folder: Path, output: Path, steps: int) -> float:
    """Seconds per step, by the training's own log."""
    flags = {
        "input.url": str(folder), "input.label_set": "scenes", "output.url": str(output),
        "model.variant": "fcn8s", "model.width": WIDTH, "train.crop": CROP,
        "train.batch_size": BATCH, "train.max_steps": steps, "train.log_every": 1,
        "train.checkpoint_every": steps, "compute.threads": THREADS, "compute.device": "cpu",
    }  # fmt: skip
    train(load_train_config(None, [], flags))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()][
        WARM:
    ]
    return sum(line["seconds"] for line in lines) / len(lines)


def compare_steps(steps: int) -> dict[str, Any]:
    torch.set_num_threads(THREADS)
    times: dict[str, list[float]] = {"plain loop": [], "fcnseg train": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "in")
        make_folder(folder, 48)
        for number in range(ROUNDS):
            times["plain loop"].append(plain_loop(folder, steps))
            times["fcnseg train"].append(ours(folder, Path(name, f"out{number}"), steps))
    best = {what: min(seconds) for what, seconds in times.items()}
    return {
        "command": f"python -m benchmarks.training step --steps {steps}",
        "network": f"fcn8s, width {WIDTH:g}, {BATCH} crops of {CROP} px, fp32",
        "seconds_per_step": {what: round(seconds, 4) for what, seconds in best.items()},
        "all_rounds": {w: [round(s, 4) for s in seconds] for w, seconds in times.items()},
        "ratio": round(best["plain loop"] / best["fcnseg train"], 3),
        "ratio_of_medians": round(
            statistics.median(times["plain loop"]) / statistics.median(times["fcnseg train"]), 3
        ),
        "threads": THREADS,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }


def variant_flags(arguments: argparse.Namespace, variant: str, steps: int) -> dict[str, Any]:
    return {
        "input.url": arguments.train, "val.url": arguments.val,
        "input.label_set": arguments.label_set, "output.url": f"{arguments.output}/{variant}",
        "model.variant": variant, "model.width": arguments.width, "train.crop": arguments.crop,
        "train.batch_size": arguments.batch_size, "train.max_steps": steps,
        "train.eval_every": max(1, steps // EVALUATIONS),
        "train.checkpoint_every": max(1, steps // (2 * EVALUATIONS)),
    }  # fmt: skip


def fitting_steps(arguments: argparse.Namespace) -> int:
    """Steps of each network that fit into the time, from a short trial of the slowest one."""
    kept = Path(arguments.output, "budget.json")
    if kept.exists():
        return int(json.loads(kept.read_text())["steps"])
    with tempfile.TemporaryDirectory() as folder:
        flags = variant_flags(arguments, "fcn8s", PROBE_STEPS)
        flags |= {"output.url": folder, "train.log_every": 1, "train.eval_every": PROBE_STEPS}
        started = time.perf_counter()
        train(load_train_config(None, [], flags))
        total = time.perf_counter() - started
        lines = [
            json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()
        ]
    seconds = [line["seconds"] for line in lines if "loss" in line]
    step = sum(seconds[WARM:]) / len(seconds[WARM:])
    evaluation = total - sum(seconds)  # with the start, which is short beside it
    left = 60 * arguments.minutes / len(VARIANTS) - EVALUATIONS * evaluation
    steps = max(EVALUATIONS, int(left / step))
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"steps": steps, "seconds_per_step": round(step, 4)}))
    return steps


def compare_variants(arguments: argparse.Namespace) -> str:
    steps = fitting_steps(arguments)
    for variant in VARIANTS:
        config = load_train_config(None, [], variant_flags(arguments, variant, steps))
        train(config, lambda progress: print(describe(progress), file=sys.stderr, flush=True))
    table = variants_table(Path(arguments.output), arguments, steps)
    Path(arguments.output, "table.md").write_text(table)
    return table


def variants_table(output: Path, arguments: argparse.Namespace, steps: int) -> str:
    classes: list[str] = []
    rows = []
    for variant in VARIANTS:
        parts = json.loads((output / variant / "_train.json").read_text())["parts"]
        classes = parts["labels"]["classes"]
        for line in map(json.loads, (output / variant / "metrics.jsonl").read_text().splitlines()):
            if "evaluation" in line:
                found = line["evaluation"]
                scores = [*(found[name] for name in FOUR), *found["iou"]]
                numbers = ["-" if value is None else f"{value:.3f}" for value in scores]
                rows.append([variant, str(line["step"]), *numbers])
    header = ["network", "step", *(name.replace("_", " ") for name in FOUR), *classes]
    lines = [header, ["---"] * len(header), *rows]
    about = (
        f"Width {arguments.width:g}, crop {arguments.crop}, batch {arguments.batch_size}, "
        f"{steps} steps each, recipe modern, from nothing, seed 0."
    )
    return about + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("step")
    step.add_argument("--steps", type=int, default=30)
    step.add_argument("--json", type=Path)
    variants = commands.add_parser("variants")
    for name in ("train", "val", "output"):
        variants.add_argument(name)
    variants.add_argument("--label-set", required=True)
    variants.add_argument("--minutes", type=float, default=60)
    variants.add_argument("--width", type=float, default=1 / 8)
    variants.add_argument("--crop", type=int, default=224)
    variants.add_argument("--batch-size", type=int, default=4)
    arguments = parser.parse_args()
    if arguments.command == "variants":
        print(compare_variants(arguments))
        return
    figures = compare_steps(arguments.steps)
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
