"""Hugging Face `datasets`: paths cast to `Image`, `map` with batches, `to_parquet`.

As "Create an image dataset" and "Process image data" write it: columns of paths, cast to `Image`,
so that rows hold decoded images, and a function on batches. `map` names its cache by a hash of
the function and all that it holds, the weights too; that is part of what it costs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset, Image

from benchmarks.peers.job import Job
from benchmarks.peers.segmenter import Segmenter, finished_row, mean_iou


def run(job: Job) -> float:
    """Do the job; the mean IU."""
    segmenter = Segmenter(job)
    keys = [path.stem for path in job.images()]
    columns = {
        "key": keys,
        "image": [str(path) for path in job.images()],
        "label": [str(job.label(key)) for key in keys],
    }
    dataset = Dataset.from_dict(columns).cast_column("image", Image(mode="RGB"))
    dataset = dataset.cast_column("label", Image())

    def label(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [
            finished_row(job, key, segmenter(np.asarray(image)), np.asarray(truth))
            for key, image, truth in zip(batch["key"], batch["image"], batch["label"], strict=True)
        ]
        return {name: [row[name] for row in rows] for name in rows[0]}

    labelled = dataset.map(label, batched=True, batch_size=8, remove_columns=["image", "label"])
    labelled.to_parquet(str(job.rows() / "part-0.parquet"))
    return mean_iou(job)
