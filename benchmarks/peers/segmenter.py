"""The parts of the job that no peer has of its own.

The network is this project's `FCN`, all of its padded canvas computed, with the weights of one
file: whoever writes the loop has such a model. Its upsampling is the quick one of
`fcn_core.networks.upsampling`, which is more than a peer's user would have. What makes `fcnseg`
cheaper (`fcn_core.inference.forward`) is not given to peers, in no column.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.peers.job import Job
from fcn_core.labels import CAMVID, voc_palette
from fcn_core.metrics import ConfusionMatrix
from fcn_core.weights.weights_file import read_weights

LABELS = CAMVID
"""Of the network and of both kinds of labels: a scene's six classes are read as the first six."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PALETTE = [channel for colour in voc_palette() for channel in colour]


class Segmenter:
    """The network, for one image at a time: images of many sizes make no batch."""

    def __init__(self, job: Job) -> None:
        file = read_weights(job.weights)
        self.model = file.load()
        self.mean = np.array(file.info.preprocessing.mean, np.float32)
        self.dtype, self.layout = torch.float32, torch.contiguous_format
        if job.given:
            torch.set_num_threads(job.threads)
            self.dtype, self.layout = DTYPES[job.precision], torch.channels_last
        self.model = self.model.to(self.dtype).to(memory_format=self.layout)

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The mask of (H, W, 3) RGB."""
        return self.mask(normalised(image, self.mean)[None])

    @torch.inference_mode()
    def mask(self, x: torch.Tensor) -> NDArray[np.uint8]:
        """The mask of a normalised image (1, 3, H, W)."""
        logits = self.model(x.to(self.dtype).contiguous(memory_format=self.layout))
        found: NDArray[np.uint8] = logits.argmax(1)[0].to(torch.uint8).numpy()
        return found


def normalised(image: NDArray[np.uint8], mean: NDArray[np.float32]) -> torch.Tensor:
    """(3, H, W) BGR float32 of (H, W, 3) RGB."""
    return torch.from_numpy(image[..., ::-1].astype(np.float32) - mean).permute(2, 0, 1)


def read_image(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def read_label(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path))


def finished_row(
    job: Job, key: str, mask: NDArray[np.uint8], label: NDArray[np.uint8]
) -> dict[str, Any]:
    """Write the palette PNG, count; what goes into Parquet."""
    picture = Image.fromarray(mask)
    picture.putpalette(PALETTE)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    job.png(key).write_bytes(buffer.getvalue())
    known = ~np.isin(label, LABELS.ignore)
    pairs = LABELS.num_classes * label[known].astype(np.int64) + mask[known]
    counts = np.bincount(pairs, minlength=LABELS.num_classes**2)
    return {
        "key": key,
        "height": mask.shape[0],
        "width": mask.shape[1],
        "mask": buffer.getvalue(),
        "confusion": counts.tolist(),
    }


def mean_iou(job: Job) -> float:
    """Of all rows that were written: one summed matrix."""
    table = pq.read_table(Path(job.output, "rows"), columns=["confusion"])
    if table.num_rows != len(job.images()):
        raise RuntimeError(f"{table.num_rows} rows of {len(job.images())} images")
    matrix = ConfusionMatrix(LABELS.num_classes)
    for counts in table["confusion"].to_pylist():
        matrix.matrix += np.array(counts, np.int64).reshape(matrix.matrix.shape)
    return matrix.scores().mean_iou
