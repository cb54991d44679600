"""Ray's batch-inference recipe: `read_images`, `map_batches` with a class, `write_parquet`.

As "End-to-end: offline batch inference" and "Working with images" write it: a callable class that
loads the model once, a pool of actors, Ray's own defaults otherwise. Ray gives each actor one core
and one thread. One core is left without an actor: with as many actors as cores nothing was left
to read with, and the job was not done in minutes. Labels and PNGs are no part of the recipe: the
class reads and writes them, by the path that `include_paths` adds. Given ours, there is one actor,
of our threads.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.peers.job import Job
from benchmarks.peers.segmenter import Segmenter, finished_row, mean_iou, read_label


class Segment:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.segmenter = Segmenter(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = []
        for path, image in zip(batch["path"], batch["image"], strict=True):
            key = Path(path).stem
            mask = self.segmenter(np.asarray(image))
            rows.append(finished_row(self.job, key, mask, read_label(self.job.label(key))))
        return {name: [row[name] for row in rows] for name in rows[0]}


def run(job: Job) -> float:
    """Do the job; the mean IU."""
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    actors = 1 if job.given else max(1, (os.cpu_count() or 1) - 1)
    dataset = ray.data.read_images(f"{job.folder}/images", include_paths=True, mode="RGB")
    labelled = dataset.map_batches(
        Segment,
        fn_constructor_args=(job,),
        batch_size=8,
        compute=ray.data.ActorPoolStrategy(size=actors),
    )
    labelled.write_parquet(str(job.rows()))
    ray.shutdown()
    return mean_iou(job)
