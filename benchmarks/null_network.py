"""Replace the network in the worker processes of a run, so that only the pipeline takes time.

`in_worker_processes()` replaces `Predictor.predict` in the worker processes of a run. The mask of
an image is a chequered one of the same size.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support import child_patches


@lru_cache(maxsize=64)
def null_mask(height: int, width: int, classes: int) -> NDArray[np.uint8]:
    """(H, W) uint8: rectangles of 53 x 37 px, which a PNG has about as much work with as scenes."""
    rows, columns = np.arange(height)[:, None] // 37, np.arange(width) // 53
    mask: NDArray[np.uint8] = ((3 * rows + columns) % classes).astype(np.uint8)
    return mask


def predict(
    self: Any, images: Sequence[NDArray[np.uint8]], on_batch: Any = None, *,
    confidence: bool = False, labels: Sequence[NDArray[np.uint8] | None],
) -> list[Any]:  # fmt: skip
    """In the place of `Predictor.predict`; pixels are counted as there."""
    from fcn_core.metrics.confusion_matrix import count_pairs
    from fcn_core.predictor import Prediction

    classes = self.labels.num_classes
    found = []
    for image, label in zip(images, labels, strict=True):
        mask = null_mask(*image.shape[:2], classes)
        truth = np.full_like(mask, 255) if label is None else label
        found.append(Prediction(mask, 0.5, None, count_pairs(mask, truth, classes)))
    return found


def patch(predictor: ModuleType) -> None:
    """Of `fcn_core.predictor`."""
    predictor.Predictor.predict = predict


@contextmanager
def in_worker_processes() -> Iterator[None]:
    """Worker processes that are started meanwhile have no network, nor those of an embedded Ray."""
    from pipeline.workers.fork_server import close_fork_server

    before = os.environ.get("PYTHONPATH")
    with tempfile.TemporaryDirectory() as folder:
        child_patches.install(Path(folder), {"fcn_core.predictor": "benchmarks.null_network:patch"})
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, before)))
        close_fork_server()
        try:
            yield
        finally:
            sys.path.remove(folder)
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before
            close_fork_server()
