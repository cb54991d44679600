"""The loop that a good engineer writes in an hour: a `Dataset`, a `DataLoader`, a forward pass.

Decoding happens in as many worker processes as there are cores, as the tutorials of PyTorch have
it; batches hold one image, because sizes differ and a CPU gains nothing from more.
"""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.job import Job
from benchmarks.peers.segmenter import (
    Segmenter,
    finished_row,
    mean_iou,
    normalised,
    read_image,
    read_label,
)


class Images(Dataset[dict[str, Any]]):
    def __init__(self, job: Job, segmenter: Segmenter) -> None:
        self.job = job
        self.paths = job.images()
        self.mean = segmenter.mean

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        return {
            "key": path.stem,
            "image": normalised(read_image(path), self.mean),
            "label": torch.from_numpy(read_label(self.job.label(path.stem)).copy()),
        }


def run(job: Job) -> float:
    """Do the job; the mean IU."""
    segmenter = Segmenter(job)
    loader = DataLoader(Images(job, segmenter), batch_size=1, num_workers=os.cpu_count() or 1)
    rows = []
    for batch in loader:
        mask = segmenter.mask(batch["image"])
        rows.append(finished_row(job, batch["key"][0], mask, batch["label"][0].numpy()))
    pq.write_table(pa.Table.from_pylist(rows), job.rows() / "part-0.parquet")
    return mean_iou(job)
