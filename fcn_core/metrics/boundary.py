"""Scores near the class boundaries of labels, in bands of pixels ("trimaps").

Sources: Kohli, Ladicky, Torr 2009 (Robust Higher Order Potentials for Enforcing Label Consistency,
IJCV 82) count errors in bands of growing width around object boundaries; Krähenbühl and Koltun
2011 (Efficient Inference in Fully Connected CRFs, section 5) plot them over the width; Chen et al.
2015 (DeepLab, section 5) measure mean IoU in bands around PASCAL VOC's void. None of them defines
the distance exactly; `boundary` and `boundary_distance` have the definitions used here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fcn_core.labels import VOID


def boundary(label: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mark the pixels that have a different value above, below, left or right.

    Void counts as a separate value. PASCAL VOC requires this: a ring of void lies on every outline,
    so that no two classes touch. The edge of the image is not a boundary.

    Args:
        label: (H, W), 255 = void.

    Returns:
        (H, W) bool. Both sides of a boundary are marked, including void pixels.

    >>> boundary(np.array([[1, 1, 1, 2, 2]], np.uint8)).astype(int).tolist()
    [[0, 0, 1, 1, 0]]
    """
    marked = np.zeros(label.shape, dtype=bool)
    down = label[1:] != label[:-1]
    across = label[:, 1:] != label[:, :-1]
    marked[1:] |= down
    marked[:-1] |= down
    marked[:, 1:] |= across
    marked[:, :-1] |= across
    return marked


def boundary_distance(label: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the Euclidean distance of each pixel to the nearest boundary pixel, center to center.

    Args:
        label: (H, W), 255 = void.

    Returns:
        (H, W) float64, px: 0 on boundary pixels; infinite everywhere if there is no boundary.
    """
    marked = boundary(label)
    if not marked.any():
        return np.full(label.shape, np.inf)
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(~marked)
    return distance


def band_confusions(
    label: NDArray[np.uint8], mask: NDArray[np.uint8], num_classes: int, widths: Sequence[int]
) -> NDArray[np.int64]:
    """Count confusion matrices of the whole image and of its boundary bands.

    A pixel belongs to the band of width w if its `boundary_distance` is below w: along a straight
    outline, w pixels on either side. Void pixels are never counted, but void has boundaries.

    Args:
        label: (H, W), values in [0, K) or 255.
        mask: (H, W), values in [0, K).
        num_classes: K.
        widths: Band widths in px, 1 or more, strictly ascending; may be empty.

    Returns:
        (1 + len(widths), K, K) int64: the whole image first, then the bands. Each band includes all
        narrower bands.
    """
    known = label != VOID
    cells = label[known].astype(np.int64) * num_classes + mask[known]
    size = num_classes * num_classes
    if not widths:
        return np.bincount(cells, minlength=size).reshape(1, num_classes, num_classes)
    # Ring 0 is below the first width, ring 1 below the second; the last ring is beyond all widths.
    ring = np.searchsorted(np.asarray(widths), boundary_distance(label)[known], side="right")
    counts = np.bincount(ring * size + cells, minlength=(len(widths) + 1) * size)
    nested = counts.reshape(-1, num_classes, num_classes).cumsum(axis=0)
    return np.concatenate([nested[-1:], nested[:-1]])
