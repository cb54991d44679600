"""Sums over commits: what rows of the table of shards come to, whichever rows they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fcn_core.labels import LabelSet
from fcn_core.metrics import ConfusionMatrix, none_if_nan
from pipeline.bookkeeping.drift import Window
from pipeline.bookkeeping.histograms import Histograms
from pipeline.bookkeeping.shard_table import HISTOGRAMS
from pipeline.errors import OutputError


@dataclass
class Sums:
    """What some commits come to.

    Attributes:
        labels: the label set; every commit must have its number of classes.
        shards, images, labeled_images, failures, confidence_sum: sums.
        confusion: sum of all confusion matrices.
        class_pixels: predicted pixels by class.
        histograms: of the images, but for those of commits of format 1.
    """

    labels: LabelSet
    shards: int = field(default=0, init=False)
    images: int = field(default=0, init=False)
    labeled_images: int = field(default=0, init=False)
    failures: int = field(default=0, init=False)
    confidence_sum: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        classes = self.labels.num_classes
        self.confusion = ConfusionMatrix(classes)
        self.class_pixels: NDArray[np.int64] = np.zeros(classes, np.int64)
        self.histograms = Histograms.zero(classes)

    def add(self, batch: pa.RecordBatch) -> None:
        """Rows of the table of shards.

        Raises:
            OutputError: a commit has another number of classes.
        """
        classes = self.labels.num_classes
        self._refuse_other_classes(batch)
        self.confusion.matrix += _sum_of_lists(batch["confusion"], len(batch)).reshape(
            classes, classes
        )
        self.class_pixels += _sum_of_lists(batch["class_pixels"], len(batch))
        self.images += pc.sum(batch["images"]).as_py()
        self.labeled_images += pc.sum(batch["labeled_images"]).as_py()
        self.failures += pc.sum(batch["failures"]).as_py()
        self.confidence_sum += pc.sum(batch["confidence_sum"]).as_py()
        known = batch.filter(batch[HISTOGRAMS[0]].is_valid())
        if len(known):
            flat = [_sum_of_lists(known[name], len(known)).tolist() for name in HISTOGRAMS]
            self.histograms += Histograms.of_flat(flat)
        self.shards += len(batch)

    def window(self) -> Window:
        """What a later run is compared with."""
        pixels = tuple(int(count) for count in self.class_pixels)
        return Window(self.histograms.images, pixels, self.confidence_sum, self.histograms)

    def scores(self) -> dict[str, Any]:
        """The merged scores, JSON-able, a function of the commits alone; absent classes are None.

        `mean_iou` is by the `reference` policy of `fcn_core.metrics`, `mean_iou_present` by the
        other.
        """
        return {
            "format": 1,
            **self.confusion.scores().to_dict(),
            "mean_iou_present": none_if_nan(self.confusion.scores("present").mean_iou),
            "classes": list(self.labels.classes),
            "images": self.images,
            "labeled_images": self.labeled_images,
            "failures": self.failures,
            "shards": self.shards,
            "class_pixels": self.class_pixels.tolist(),
            "confusion": self.confusion.matrix.tolist(),
        }

    def _refuse_other_classes(self, batch: pa.RecordBatch) -> None:
        classes = self.labels.num_classes
        for name, length in (("class_pixels", classes), ("confusion", classes**2)):
            lengths = pc.list_value_length(batch[name]).to_numpy()
            if len(wrong := np.flatnonzero(lengths != length)):
                raise OutputError(
                    f"the commit of shard {batch['shard'][int(wrong[0])].as_py()}",
                    f"{lengths[wrong[0]]} values in {name}",
                    f"{length} for the {classes} classes of {self.labels.name}",
                    "Delete it: its shard will be labelled again.",
                )


def _sum_of_lists(column: pa.Array, rows: int) -> NDArray[np.int64]:
    """Lists of one length, added up."""
    return cast(NDArray[np.int64], column.flatten().to_numpy().reshape(rows, -1).sum(axis=0))
