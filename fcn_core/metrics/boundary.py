"""Scores near the outlines of the truth: bands of pixels ("trimaps") around its boundaries.

Sources: Kohli, Ladicky, Torr 2009 (Robust Higher Order Potentials for Enforcing Label Consistency,
IJCV 82) count errors in bands of growing width around object boundaries; Krähenbühl and Koltun
2011 (Efficient Inference in Fully Connected CRFs, section 5) plot them over the width; Chen et al.
2015 (DeepLab, section 5) measure mean IoU in bands around PASCAL VOC's void. None says which metric
its distance has; what is meant here stands at `boundary` and `boundary_distance`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fcn_core.labels import VOID


def boundary(label: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Boundary pixels: those with a different value above, below, left or right.

    Void counts as a value of its own. In PASCAL VOC it has to: there a ring of void lies on every
    outline, and no two classes touch. The frame of the image is no boundary.

    Args:
        label: (H, W), 255 = void.

    Returns:
        (H, W) bool. Both sides of a boundary are marked, void pixels as well.

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
    """Euclidean distance of each pixel to the nearest boundary pixel, centre to centre.

    Args:
        label: (H, W), 255 = void.

    Returns:
        (H, W) px: 0 on boundary pixels, infinite everywhere when there are none.
    """
    marked = boundary(label)
    if not marked.any():
        return np.full(label.shape, np.inf)
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(~marked)
    return distance


def band_confusions(
    label: NDArray[np.uint8], mask: NDArray[np.uint8], num_classes: int, widths: Sequence[int]
) -> NDArray[np.int64]:
    """Confusion matrices of the whole image and of its boundary bands.

    A pixel lies in the band of width w if its `boundary_distance` is below w: along a straight
    outline these are w pixels on either side. Void is never counted, but bounds.

    Args:
        label: (H, W), values in [0, K) or 255.
        mask: (H, W), values in [0, K).
        num_classes: K.
        widths: px, 1 or more, strictly ascending; may be empty.

    Returns:
        (1 + len(widths), K, K) int64: the image first, then the bands, each with all narrower
        ones in it.
    """
    known = label != VOID
    cells = label[known].astype(np.int64) * num_classes + mask[known]
    size = num_classes * num_classes
    if not widths:
        return np.bincount(cells, minlength=size).reshape(1, num_classes, num_classes)
    # Ring 0 lies below the first width, ring 1 below the second, the last beyond all.
    ring = np.searchsorted(np.asarray(widths), boundary_distance(label)[known], side="right")
    counts = np.bincount(ring * size + cells, minlength=(len(widths) + 1) * size)
    nested = counts.reshape(-1, num_classes, num_classes).cumsum(axis=0)
    return np.concatenate([nested[-1:], nested[:-1]])
