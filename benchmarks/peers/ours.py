"""`fcnseg run` on the same job, with either executor; its PNGs stand in png/SHARD/KEY.png."""

from __future__ import annotations

from typing import Literal

from benchmarks.peers.job import Job
from pipeline.config import load_config
from pipeline.driver import run as run_pipeline

SHARD = 16
"""Images per shard, so that reading and writing go on while the network works."""


def run(job: Job, executor: Literal["local", "ray"] = "local") -> float:
    """Do the job; the mean IU."""
    flags = {
        "input.url": job.folder, "output.url": job.output, "model.weights": job.weights,
        "model.precision": job.precision, "output.masks": ("parquet", "png"),
        "compute.executor": executor, "compute.workers": 1, "compute.device": "cpu",
        "compute.threads_per_worker": job.threads, "input.shard_size": SHARD,
    }  # fmt: skip
    result = run_pipeline(load_config(None, [], flags))
    assert result.exit_code == 0 and result.scores is not None
    return float(result.scores["mean_iou"])
