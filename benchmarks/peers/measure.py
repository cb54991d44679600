"""Time the jobs, each in a process of its own, and compare their masks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.peers.job import Job

LIMIT = 900
"""Seconds after which a job counts as failed."""

_GLANCE = 0.25
"""Seconds between two looks at the processes of a job."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",
    "DAFT_ANALYTICS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DAFT_PROGRESS_BAR": "0",
}


@dataclass(frozen=True)
class Run:
    """One line of the table.

    Attributes:
        name: one of `one.PEERS` or `one.OURS`.
        given: see `Job`; ours is always as it is.
        precision: "fp32" or "bf16".
    """

    name: str
    given: bool
    precision: str

    @property
    def title(self) -> str:
        return f"{self.name}{', given ours' if self.given else ''}, {self.precision}"


def timed(name: str, job: Job) -> dict[str, float]:
    """Seconds from the start of a process to its end, with imports, weights and all.

    Returns:
        `wall`, and `cpu` of it and of all that it started, as far as they were seen alive.

    Raises:
        RuntimeError: the job failed or took too long, with the end of what it said.
    """
    Path(job.output).mkdir(parents=True)
    log = Path(job.output).with_suffix(".log")
    command = [sys.executable, "-m", "benchmarks.peers.one", name, job.to_json()]
    environment = {**os.environ, **ENVIRONMENT, "HF_HOME": str(log.with_suffix(".hf"))}
    started = time.perf_counter()
    with log.open("wb") as out:
        process = psutil.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
        used: dict[int, float] = {}
        while process.poll() is None:
            _look(process, used)
            if time.perf_counter() - started > LIMIT:
                process.kill()
            time.sleep(_GLANCE)
    seconds = time.perf_counter() - started
    if process.returncode != 0:
        said = log.read_text()[-2000:]
        raise RuntimeError(f"{name} ended with {process.returncode} after {seconds:.0f} s:\n{said}")
    return {"wall": seconds, "cpu": sum(used.values())}


def _look(process: psutil.Popen, used: dict[int, float]) -> None:
    """Note the CPU seconds of each process of the job; those of dead ones are kept."""
    with contextlib.suppress(psutil.Error):
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = one.cpu_times()
                used[one.pid] = times.user + times.system


def masks(output: str) -> dict[str, np.ndarray]:
    """By key, wherever the PNGs stand below png/."""
    found = {}
    for path in Path(output, "png").rglob("*.png"):
        found[path.stem] = np.asarray(Image.open(path))
    return found


def compared(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """The share of pixels whose class is another, over all images and in the worst one.

    Raises:
        RuntimeError: an image is missing, or of another size.
    """
    missing = set(found) - set(expected)
    if not found or missing:
        raise RuntimeError(
            f"masks of {len(found)} images, {len(missing)} of them of no image of the input"
        )
    other, pixels, worst = 0, 0, 0.0
    for key, mask in found.items():
        if mask.shape != expected[key].shape:
            raise RuntimeError(f"{key}: a mask of {mask.shape}, not {expected[key].shape}")
        differing = int(np.count_nonzero(mask != expected[key]))
        other, pixels = other + differing, pixels + mask.size
        worst = max(worst, differing / mask.size)
    return {"pictures": len(found), "share": other / pixels, "worst_picture": worst}
