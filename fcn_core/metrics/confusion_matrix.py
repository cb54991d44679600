"""Confusion matrices, and the four scores of the FCN paper that follow from them.

Pixels are counted by predicted class and label byte (`count_pairs`), on the CPU or on the device.
`ConfusionMatrix` checks and sums these counts. `score_arrays` computes scores from the sums: ratios
are taken once at the end, so that a score is never a mean of per-image or per-shard IoU.

Source: Long, Shelhamer, Darrell 2015, section 5 "Metrics"; semantics of score.py in
shelhamer/fcn.berkeleyvision.org. Shape suffixes: B batch, P pixels.
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
"""How mean IoU treats a class that is predicted but absent from the ground truth.

`reference`: its IoU is 0 and is averaged, as in score.py (nanmean of diag / union).
`present`: only classes that occur in the ground truth are averaged, as in the paper for SIFT Flow.
Both leave out classes that are neither in the ground truth nor predicted.
"""


@dataclass(frozen=True)
class Scores:
    """The four FCN scores and the IoU of each class; NaN where a ratio has no denominator."""

    pixel_accuracy: float
    mean_accuracy: float
    mean_iou: float
    frequency_weighted_iou: float
    iou: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with None for NaN."""
        return {
            "pixel_accuracy": none_if_nan(self.pixel_accuracy),
            "mean_accuracy": none_if_nan(self.mean_accuracy),
            "mean_iou": none_if_nan(self.mean_iou),
            "frequency_weighted_iou": none_if_nan(self.frequency_weighted_iou),
            "iou": [none_if_nan(value) for value in self.iou],
        }


class ConfusionMatrix:
    """Pixel counts by true class (row) and predicted class (column), int64.

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
        """Number of classes K, without void."""
        return int(self.matrix.shape[0])

    def update(
        self,
        label: NDArray[np.integer[Any]],
        mask: NDArray[np.integer[Any]],
        ignore_index: int = VOID,
    ) -> ConfusionMatrix:
        """Add the pixels of one image.

        Args:
            label: Ground truth, any shape; values in [0, K) or `ignore_index`.
            mask: Prediction, same shape; values in [0, K).
            ignore_index: Label value of pixels that are not counted, not even as false positives.

        Returns:
            self, so that calls can be chained.

        Raises:
            LabelError: Shapes that differ, or a value out of range. Deviation: score.py silently
                drops labels outside [0, K) and does not check the prediction.
        """
        if label.shape != mask.shape:
            raise LabelError(
                where="confusion matrix",
                found=f"label has shape {label.shape}, mask has {mask.shape}",
                expected="both shapes must be equal",
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
                    remedy="Use the label set of these labels.",
                )
        counts = np.bincount(truth * self.num_classes + prediction, minlength=self.matrix.size)
        self.matrix += counts.reshape(self.matrix.shape)
        return self

    def _update_bytes(self, label: NDArray[Any], mask: NDArray[Any], ignore_index: int) -> bool:
        """Try to add a uint8 image in a fifth of the time; return whether it was valid."""
        if not label.dtype == mask.dtype == np.uint8 or not 0 <= ignore_index < BYTES:
            return False
        try:
            self.add_pairs(count_pairs(mask, label, self.num_classes), ignore_index)
        except LabelError:
            return False
        return True

    def add_pairs(self, counts: NDArray[np.int64], ignore_index: int = VOID) -> ConfusionMatrix:
        """Add the pair counts of one image, or the sum of several.

        Args:
            counts: (K, 256) int64; see `count_pairs`.
            ignore_index: Label byte of pixels that are not counted, 0-255.

        Returns:
            self, so that calls can be chained.

        Raises:
            LabelError: Label values outside [0, K) that are not ignored.
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
                remedy="Use the label set of these labels.",
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
                remedy="Score each label set separately.",
            )
        merged = ConfusionMatrix(self.num_classes)
        merged.matrix = self.matrix + other.matrix
        return merged

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfusionMatrix) and np.array_equal(self.matrix, other.matrix)

    __hash__ = None  # type: ignore[assignment]  # mutable

    @property
    def labeled_pixels(self) -> int:
        """Number of pixels counted so far."""
        return int(self.matrix.sum())

    @property
    def correct_pixels(self) -> int:
        """Number of counted pixels whose prediction equals the label."""
        return int(np.trace(self.matrix))

    @property
    def margins(self) -> NDArray[np.int64]:
        """(3, K): correct, true and predicted pixels of each class; see the function `margins`."""
        return margins(self.matrix)

    @property
    def iou(self) -> tuple[float, ...]:
        """IoU of each class; NaN for a class in neither labels nor predictions."""
        hits, truth, predicted = self.margins.astype(np.float64)
        return tuple(_iou(hits, truth, predicted).tolist())

    def scores(self, policy: Policy = "reference") -> Scores:
        """Compute the four FCN scores; `score_arrays` has the formulas."""
        arrays = score_arrays(self.margins, policy)
        return Scores(
            pixel_accuracy=float(arrays["pixel_accuracy"]),
            mean_accuracy=float(arrays["mean_accuracy"]),
            mean_iou=float(arrays["mean_iou"]),
            frequency_weighted_iou=float(arrays["frequency_weighted_iou"]),
            iou=tuple(float(value) for value in arrays["iou"]),
        )


def margins(matrices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Reduce confusion matrices to the sums that scores depend on.

    Args:
        matrices: (..., K, K).

    Returns:
        (..., 3, K): diagonal n_ii, row sums t_i = sum_j n_ij, column sums sum_j n_ji.
    """
    diagonal = np.diagonal(matrices, axis1=-2, axis2=-1)
    return np.stack([diagonal, matrices.sum(axis=-1), matrices.sum(axis=-2)], axis=-2)


def score_arrays(
    counts: NDArray[np.integer[Any]], policy: Policy = "reference"
) -> dict[str, NDArray[np.float64]]:
    """Compute the four FCN scores, and IoU and accuracy per class, of many matrices at once.

    With n_ij the pixels of class i predicted as j and t_i = sum_j n_ij:
    pixel accuracy sum_i n_ii / sum_i t_i; mean accuracy (1/n) sum_i n_ii / t_i;
    mean IoU (1/n) sum_i n_ii / (t_i + sum_j n_ji - n_ii);
    frequency weighted IoU (sum_k t_k)^-1 sum_i t_i n_ii / (t_i + sum_j n_ji - n_ii).

    Args:
        counts: (..., 3, K), from `margins`.
        policy: Treatment of absent classes; see `Policy`.

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
    """Return None for NaN, which JSON does not support, and any other number as a float."""
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
"""From this mean run length on, runs of equal neighbors are counted instead of single pixels."""


def count_pairs(
    mask: NDArray[np.uint8], label: NDArray[np.uint8], num_classes: int
) -> NDArray[np.int64]:
    """Count pixels by predicted class and label byte.

    Args:
        mask: Prediction, any shape, values in [0, K).
        label: Ground truth, same shape, any byte values.
        num_classes: K.

    Returns:
        (K, 256) int64.

    Raises:
        LabelError: Mask values outside [0, K).
    """
    # The class is the high byte, so that K * 256 counts are enough instead of 65,536.
    pairs = mask.astype(np.uint16).ravel()
    pairs <<= 8
    pairs |= label.ravel()
    counts = _bincount(pairs, num_classes * BYTES)
    if len(counts) > num_classes * BYTES:
        raise LabelError(
            where="mask",
            found=f"values up to {int(mask.max())}",
            expected=f"classes are 0-{num_classes - 1}",
            remedy="Use the label set of the network.",
        )
    return counts.reshape(num_classes, BYTES)


def _bincount(values: NDArray[np.uint16], at_least: int) -> NDArray[np.int64]:
    """Compute `np.bincount`, three times faster where few neighbors differ, as in most masks."""
    edges = values[1:] != values[:-1]
    if np.count_nonzero(edges) * _MEAN_RUN > values.size:
        return np.bincount(values, minlength=at_least)
    starts = np.concatenate([[0], np.flatnonzero(edges) + 1])[: values.size]
    lengths = np.diff(starts, append=values.size)
    # bincount sums in float64, which is exact far beyond the pixels of any image.
    return np.bincount(values[starts], lengths, minlength=at_least).astype(np.int64)


def count_pairs_on_device(mask_BHW: Tensor, label_BHW: Tensor, num_classes: int) -> Tensor:
    """Count pixels as `count_pairs` does, for a batch, on its device and without synchronizing.

    Args:
        mask_BHW: Integers in [0, K).
        label_BHW: uint8.
        num_classes: K.

    Returns:
        (B, K, 256) int64.
    """
    pairs_BP = (mask_BHW.long() * BYTES + label_BHW).flatten(1)
    counts = pairs_BP.new_zeros(len(pairs_BP), num_classes * BYTES)
    # Integer sums do not depend on the order of additions.
    counts.scatter_add_(1, pairs_BP, pairs_BP.new_ones(1).expand_as(pairs_BP))
    return counts.view(-1, num_classes, BYTES)
