"""Compute the scores of the FCN paper for masks of any origin.

Sum the confusion matrices of all images first, then compute the scores once from the sum.
"""

import numpy as np

from fcn_core import ConfusionMatrix

label = np.array([[0, 0, 1], [2, 255, 1]], np.uint8)  # 255 = void, not counted
mask = np.array([[0, 1, 1], [2, 2, 1]], np.uint8)

first = ConfusionMatrix(3)
first.update(label, mask)
second = ConfusionMatrix(3)
second.update(label[:, ::-1], label[:, ::-1].clip(max=2))

scores = (first + second).scores()
print(f"pixel accuracy {scores.pixel_accuracy:.3f}, mean IoU {scores.mean_iou:.3f}")
print("IoU of each class:", [round(value, 3) for value in scores.iou])
