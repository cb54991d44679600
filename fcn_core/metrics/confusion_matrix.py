"""The four scores of the FCN paper, from summed confusion matrices only.

Source: Long, Shelhamer, Darrell 2015, section 5 "Metrics"; code semantics of score.py in
shelhamer/fcn.berkeleyvision.org. One matrix is summed over everything that is scored, and ratios
are taken once at the end: never a mean of per-image or per-shard IoU.

Pixels counted by predicted class and label byte: what confusion matrices are made of.

Shape suffixes: B batch, K class, H height px, W width px.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fcn_core.errors import LabelError
from fcn_core.labels import VOID

if TYPE_CHECKING:
    from torch import Tensor


Policy = Literal["reference", "present"]
"""What a class that is absent from the truth but was predicted does to mean IoU.

`reference`: its IU is 0 and is averaged, as score.py does (nanmean of diag / union).
`present`: only classes that occur in the truth are averaged, as the paper did for SIFT Flow.
Classes neither in the truth nor predicted are left out by both.
"""


@dataclass(frozen=True)
class Scores:
    """The four FCN scores and the IU of each class; NaN where a ratio has no denominator."""

    pixel_accuracy: float
    mean_accuracy: float
    mean_iou: float
    frequency_weighted_iou: float
    iou: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with None for NaN."""
        return {
            "pixel_accuracy": none_if_nan(self.pixel_accuracy),
            "mean_accuracy": none_if_nan(self.mean_accuracy),
            "mean_iou": none_if_nan(self.mean_iou),
            "frequency_weighted_iou": none_if_nan(self.frequency_weighted_iou),
            "iou": [none_if_nan(value) for value in self.iou],
        }


class ConfusionMatrix:
    """Counts of pixels by true class (row) and predicted class (column), int64.

    Examples:
        >>> a = ConfusionMatrix(2).update(np.array([[0, 1]]), np.array([[0, 0]]))
        >>> b = ConfusionMatrix(2).update(np.array([[1, 255]]), np.array([[1, 1]]))
        >>> (a + b).matrix.tolist()
        [[1, 0], [1, 1]]
        >>> round((a + b).scores().mean_iou, 3)
        0.5
    """

    def __init__(self, num_classes: int, matrix: Sequence[Sequence[int]] | None = None) -> None:
        shape = (num_classes, num_classes)
        self.matrix: NDArray[np.int64] = (
            np.zeros(shape, dtype=np.int64)
            if matrix is None
            else np.array(matrix, dtype=np.int64).reshape(shape)
        )

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.matrix.shape[0])

    def update(
        self,
        label: NDArray[np.integer[Any]],
        mask: NDArray[np.integer[Any]],
        ignore_index: int = VOID,
    ) -> ConfusionMatrix:
        """Add one image.

        Args:
            label: truth, any shape; values in [0, K) or `ignore_index`.
            mask: prediction, same shape; values in [0, K).
            ignore_index: pixels with this truth count nowhere, not even as false positives.

        Returns:
            self, so that calls chain.

        Raises:
            LabelError: shapes differ or a value is out of range. score.py drops truth outside
                [0, K) silently and does not check the prediction; here both are errors.
        """
        if label.shape != mask.shape:
            raise LabelError(
                where="confusion matrix",
                found=f"label has shape {label.shape}, mask has {mask.shape}",
                expected="both must be of one shape",
                remedy="Compare a mask with the label of the same image.",
            )
        if self._update_bytes(label, mask, ignore_index):
            return self
        known = label != ignore_index
        truth = label[known].astype(np.int64, copy=False)
        prediction = mask[known].astype(np.int64, copy=False)
        for name, values in (("label", truth), ("mask", prediction)):
            if values.size and not 0 <= int(values.min()) <= int(values.max()) < self.num_classes:
                raise LabelError(
                    where="confusion matrix",
                    found=f"{name} values run from {values.min()} to {values.max()}",
                    expected=f"classes are 0-{self.num_classes - 1} (ignored: {ignore_index})",
                    remedy="Use the label set that the labels were made with.",
                )
        counts = np.bincount(truth * self.num_classes + prediction, minlength=self.matrix.size)
        self.matrix += counts.reshape(self.matrix.shape)
        return self

    def _update_bytes(self, label: NDArray[Any], mask: NDArray[Any], ignore_index: int) -> bool:
        """Add an image of bytes, in a fifth of the time; whether it was as it should be."""
        if not label.dtype == mask.dtype == np.uint8 or not 0 <= ignore_index < BYTES:
            return False
        try:
            self.add_pairs(count_pairs(mask, label, self.num_classes), ignore_index)
        except LabelError:
            return False
        return True

    def add_pairs(self, counts: NDArray[np.int64], ignore_index: int = VOID) -> ConfusionMatrix:
        """Add one image, or several, whose pairs are counted.

        Args:
            counts: (K, 256), see `fcn_core.metrics.confusion_matrix`.
            ignore_index: label byte of pixels that count nowhere, 0-255.

        Returns:
            self, so that calls chain.

        Raises:
            LabelError: there are labels outside [0, K) that are not ignored.
        """
        outside = counts[:, self.num_classes :].sum(axis=0)
        if ignore_index >= self.num_classes:
            outside[ignore_index - self.num_classes] = 0
        if outside.any():
            value = self.num_classes + int(outside.argmax())
            raise LabelError(
                where="confusion matrix",
                found=f"{outside.max()} label values of {value}",
                expected=f"classes are 0-{self.num_classes - 1} (ignored: {ignore_index})",
                remedy="Use the label set that the labels were made with.",
            )
        inside = counts[:, : self.num_classes].T
        self.matrix += inside
        if ignore_index < self.num_classes:
            self.matrix[ignore_index] -= inside[ignore_index]
        return self

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        if other.num_classes != self.num_classes:  # numpy would broadcast a 1x1 matrix
            raise LabelError(
                where="confusion matrix",
                found=f"matrices of {self.num_classes} and {other.num_classes} classes",
                expected="only counts of one label set can be added",
                remedy="Score each label set on its own.",
            )
        merged = ConfusionMatrix(self.num_classes)
        merged.matrix = self.matrix + other.matrix
        return merged

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfusionMatrix) and np.array_equal(self.matrix, other.matrix)

    __hash__ = None  # type: ignore[assignment]  # mutable

    @property
    def labeled_pixels(self) -> int:
        """Pixels counted so far."""
        return int(self.matrix.sum())

    @property
    def correct_pixels(self) -> int:
        """Pixels whose prediction equals the truth."""
        return int(np.trace(self.matrix))

    @property
    def margins(self) -> NDArray[np.int64]:
        """(3, K): correct, true and predicted pixels of each class; see `margins`."""
        return margins(self.matrix)

    @property
    def iou(self) -> tuple[float, ...]:
        """IU of each class; NaN where it is in neither truth nor prediction."""
        hits, truth, predicted = self.margins.astype(np.float64)
        return tuple(_iou(hits, truth, predicted).tolist())

    def scores(self, policy: Policy = "reference") -> Scores:
        """The four FCN scores; `score_arrays` has the formulas."""
        found = score_arrays(self.margins, policy)
        return Scores(
            pixel_accuracy=float(found["pixel_accuracy"]),
            mean_accuracy=float(found["mean_accuracy"]),
            mean_iou=float(found["mean_iou"]),
            frequency_weighted_iou=float(found["frequency_weighted_iou"]),
            iou=tuple(float(value) for value in found["iou"]),
        )


def margins(matrices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each confusion matrix all that its scores depend on.

    Args:
        matrices: (..., K, K).

    Returns:
        (..., 3, K): the diagonal n_ii, the row sums t_i = sum_j n_ij, the column sums sum_j n_ji.
    """
    diagonal = np.diagonal(matrices, axis1=-2, axis2=-1)
    return np.stack([diagonal, matrices.sum(axis=-1), matrices.sum(axis=-2)], axis=-2)


def score_arrays(
    counts: NDArray[np.integer[Any]], policy: Policy = "reference"
) -> dict[str, NDArray[np.float64]]:
    """The four FCN scores, and IU and accuracy of each class, of many matrices at once.

    With n_ij the pixels of class i predicted as j and t_i = sum_j n_ij:
    pixel accuracy sum_i n_ii / sum_i t_i; mean accuracy (1/n) sum_i n_ii / t_i;
    mean IoU (1/n) sum_i n_ii / (t_i + sum_j n_ji - n_ii);
    frequency weighted IU (sum_k t_k)^-1 sum_i t_i n_ii / (t_i + sum_j n_ji - n_ii).

    Args:
        counts: (..., 3, K) of `margins`.
        policy: see `Policy`.

    Returns:
        `pixel_accuracy`, `mean_accuracy`, `mean_iou`, `frequency_weighted_iou` of shape (...);
        `iou` and `accuracy` of shape (..., K). NaN where a ratio has no denominator.
    """
    hits, truth, predicted = np.moveaxis(counts.astype(np.float64), -2, 0)
    iou = _iou(hits, truth, predicted)
    accuracy = _ratio(hits, truth)
    averaged = iou if policy == "reference" else np.where(truth > 0, iou, np.nan)
    total = truth.sum(axis=-1)
    weighted = np.where(truth > 0, truth * iou, 0.0).sum(axis=-1)
    return {
        "pixel_accuracy": _ratio(hits.sum(axis=-1), total),
        "mean_accuracy": _nanmean(accuracy),
        "mean_iou": _nanmean(averaged),
        "frequency_weighted_iou": _ratio(weighted, total),
        "iou": iou,
        "accuracy": accuracy,
    }


def none_if_nan(value: float) -> float | None:
    """None for NaN, which JSON cannot hold."""
    return None if math.isnan(value) else float(value)


def _iou(
    hits: NDArray[np.float64], truth: NDArray[np.float64], predicted: NDArray[np.float64]
) -> NDArray[np.float64]:
    return _ratio(hits, truth + predicted - hits)


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    result = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result


def _nanmean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1).astype(np.float64))


BYTES = 256


_MEAN_RUN = 4
"""From so many equal neighbours on, runs are counted instead of pixels."""


def count_pairs(
    mask: NDArray[np.uint8], label: NDArray[np.uint8], num_classes: int
) -> NDArray[np.int64]:
    """Pixels by predicted class and label byte.

    Args:
        mask: prediction, any shape, values in [0, K).
        label: truth, same shape, any bytes.
        num_classes: K.

    Returns:
        (K, 256) int64.

    Raises:
        LabelError: the mask holds other values.
    """
    # The class in front: as many counts as classes need, not as many as pairs of bytes.
    pairs = mask.astype(np.uint16).ravel()
    pairs <<= 8
    pairs |= label.ravel()
    counts = _counted(pairs, num_classes * BYTES)
    if len(counts) > num_classes * BYTES:
        raise LabelError(
            where="mask", found=f"values up to {int(mask.max())}", expected=f"classes are 0-{num_classes - 1}",
            remedy="Use the label set of the network.",
        )  # fmt: skip
    return counts.reshape(num_classes, BYTES)


def _counted(values: NDArray[np.uint16], at_least: int) -> NDArray[np.int64]:
    """`np.bincount`; in a third of the time where few neighbours differ, as in most masks."""
    edges = values[1:] != values[:-1]
    if np.count_nonzero(edges) * _MEAN_RUN > values.size:
        return np.bincount(values, minlength=at_least)
    starts = np.concatenate([[0], np.flatnonzero(edges) + 1])[: values.size]
    lengths = np.diff(starts, append=values.size)
    # Sums in float64, exact far beyond any image's pixels.
    return np.bincount(values[starts], lengths, minlength=at_least).astype(np.int64)


def count_pairs_on_device(mask_BHW: Tensor, label_BHW: Tensor, num_classes: int) -> Tensor:
    """The same for a batch, wherever it lies, without waiting for it.

    Args:
        mask_BHW: integers in [0, K).
        label_BHW: uint8.
        num_classes: K.

    Returns:
        (B, K, 256) int64.
    """
    pairs_BP = (mask_BHW.long() * BYTES + label_BHW).flatten(1)
    counts = pairs_BP.new_zeros(len(pairs_BP), num_classes * BYTES)
    # Sums of integers: their order does not matter.
    counts.scatter_add_(1, pairs_BP, pairs_BP.new_ones(1).expand_as(pairs_BP))
    return counts.view(-1, num_classes, BYTES)
