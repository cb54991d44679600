"""Pixels counted by predicted class and label byte: what confusion matrices are made of.

Shape suffixes: B batch, K class, H height px, W width px.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fcn_core.errors import LabelError

if TYPE_CHECKING:
    from torch import Tensor

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
            "mask", f"values up to {int(mask.max())}", f"classes are 0-{num_classes - 1}",
            "Use the label set of the network.",
        )  # fmt: skip
    return counts.reshape(num_classes, BYTES)


def _counted(values: NDArray[np.uint16], at_least: int) -> NDArray[np.int64]:
    """`np.bincount`; in a third of the time where few neighbours differ, as in most masks."""
    edges = values[1:] != values[:-1]
    if np.count_nonzero(edges) * _MEAN_RUN > values.size:
        return np.bincount(values, minlength=at_least)
    starts = np.concatenate([[0], np.flatnonzero(edges) + 1])[: values.size]
    lengths = np.diff(starts, append=values.size)
    # Sums in float64, exact far beyond any picture's pixels.
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
