"""Upper bounds of the scores of a coarse prediction: the experiment of the FCN paper's appendix A.

"We do this by downsampling ground truth images and then upsampling them again to simulate the best
results obtainable with a particular downsampling factor" (Long, Shelhamer, Darrell 2015, appendix
A, on a subset of PASCAL VOC 2011 val). The paper does not specify either step; `coarsen_label` is
this project's choice. Of five methods that were compared (docs/evaluation.md) it scores highest at
every factor, as "the best obtainable" requires, and comes closest to the paper's numbers on VOC
images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn_core.labels import VOID
from fcn_core.metrics.confusion_matrix import ConfusionMatrix

FACTORS = (128, 64, 32, 16, 8, 4)
"""The downsampling factors of the paper's table."""


PAPER_MEAN_IOU = {128: 50.9, 64: 73.3, 32: 86.1, 16: 92.8, 8: 96.4, 4: 98.5}
"""Mean IoU in percent by factor, as printed in the paper for VOC (appendix A)."""


def coarsen_label(label: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Return the best prediction of a label that a network of stride `factor` can make.

    Downsampling: cells of factor x factor px from the top left corner (the last ones may extend
    beyond the image); a cell holds the share of each class among its labeled pixels. Upsampling:
    per class, bilinear between cell centers and constant beyond the outermost ones; then the class
    with the largest share, the first one among equals. An FCN does the same with scores of stride
    `factor`, except at the border (docs/evaluation.md).

    Args:
        label: (H, W), 255 = void. Void is left out: a cell without labeled pixels holds zeros.
        factor: Downsampling factor, 1 or more; 1 returns the label at all labeled pixels.

    Returns:
        (H, W) uint8 classes that occur in the label; all void if there are none.
    """
    height, width = label.shape
    rows, columns = -(-height // factor), -(-width // factor)
    cells = np.full((rows * factor, columns * factor), VOID, np.uint8)
    cells[:height, :width] = label
    blocks = cells.reshape(rows, factor, columns, factor)
    labeled = np.maximum((blocks != VOID).sum(axis=(1, 3)), 1)
    result = np.full(label.shape, VOID, np.uint8)
    best = np.zeros(label.shape, np.float32)
    for index in np.unique(label[label != VOID]):
        share = ((blocks == index).sum(axis=(1, 3)) / labeled).astype(np.float32)
        fine = Image.fromarray(share).resize(cells.shape[::-1], Image.Resampling.BILINEAR)
        score = np.asarray(fine)[:height, :width]
        better = score > best
        result[better] = index
        best[better] = score[better]
    return result


def upper_bound_confusions(
    label: NDArray[np.uint8], num_classes: int, factors: Sequence[int]
) -> NDArray[np.int64]:
    """Count confusion matrices of a label against its coarsened versions.

    Args:
        label: (H, W), values in [0, K) or 255, which is not counted.
        num_classes: K.
        factors: Downsampling factors, 1 or more each.

    Returns:
        (len(factors), K, K) int64.
    """
    return np.stack(
        [
            ConfusionMatrix(num_classes).update(label, coarsen_label(label, factor)).matrix
            for factor in factors
        ]
    )
