"""Daft: paths from a glob, its own download and decoder, a class UDF, `write_parquet`.

As "Stateful class UDFs with @daft.cls" writes it: the class loads the model once, a method of
batches labels. Labels and PNGs are read and written in the method, by the path. Daft decodes JPEG
with a decoder of its own, whose pixels may differ from Pillow's. Given ours, one instance computes
at a time, on our threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import daft
import numpy as np
from daft import DataType, Series
from daft.functions import decode_image, download

from benchmarks.peers.job import Job
from benchmarks.peers.segmenter import Segmenter, finished_row, mean_iou, read_image, read_label

ROW = DataType.struct(
    {
        "key": DataType.string(),
        "height": DataType.int64(),
        "width": DataType.int64(),
        "mask": DataType.binary(),
        "confusion": DataType.list(DataType.int64()),
    }
)


class Segment:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.segmenter = Segmenter(job)

    @daft.method.batch(return_dtype=ROW, unnest=True, batch_size=8)
    def label(self, path: Series, image: Series) -> list[dict[str, Any]]:
        rows = []
        for place, found in zip(path.to_pylist(), image.to_pylist(), strict=True):
            key = Path(place).stem
            pixels = read_image(self.job.image(key)) if self.job.pillow else np.asarray(found)
            label = read_label(self.job.label(key))
            rows.append(finished_row(self.job, key, self.segmenter(pixels), label))
        return rows


def run(job: Job) -> float:
    """Do the job; the mean IU."""
    segment = daft.cls(Segment, max_concurrency=1 if job.given else None)(job)
    frame = daft.from_glob_path(f"{job.folder}/images/*.jpg")
    frame = frame.with_column("image", decode_image(download(daft.col("path")), mode="RGB"))
    frame.select(segment.label(frame["path"], frame["image"])).write_parquet(str(job.rows()))
    return mean_iou(job)
