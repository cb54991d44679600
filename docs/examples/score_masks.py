"""Scores of the FCN paper from masks of any origin: matrices are summed, ratios taken once."""

import numpy as np

from fcn_core.metrics import ConfusionMatrix

label = np.array([[0, 0, 1], [2, 255, 1]], np.uint8)  # 255 counts nowhere
mask = np.array([[0, 1, 1], [2, 2, 1]], np.uint8)

first = ConfusionMatrix(3)
first.update(label, mask)
second = ConfusionMatrix(3)
second.update(label[:, ::-1], label[:, ::-1].clip(max=2))

scores = (first + second).scores()
print(f"pixel accuracy {scores.pixel_accuracy:.3f}, mean IU {scores.mean_iou:.3f}")
print("IU of each class:", [round(value, 3) for value in scores.iou])
