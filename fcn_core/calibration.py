"""Measure the activation ranges that int8 inference needs, on sample images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import Tensor, nn

from fcn_core.errors import WeightsError
from fcn_core.predictor import ImageArray, Predictor
from fcn_core.weights.weights_file import WeightsFile
from fcn_core.weights.weights_info import WeightsInfo


def measure_int8_ranges(file: WeightsFile, images: Iterable[ImageArray]) -> WeightsInfo:
    """Measure the output range of every trunk convolution and return the extended description.

    Args:
        file: Weights of a trained network.
        images: (H, W, 3) uint8 RGB arrays, like the images to be segmented; some tens are enough.

    Returns:
        The description of `file` with `int8_peaks` set, and with the number of images in
        `origin["int8_pictures"]`.

    Raises:
        WeightsError: No images, a network that int8 does not support, or outputs that are not
            finite.
        ImageError: An array that is not an image for this network.
    """
    file.info.check_supports_int8(file.where)
    predictor = Predictor.load(file, plain=True)
    peaks: dict[str, float] = {}
    for name, conv in predictor.model.named_modules():
        if isinstance(conv, nn.Conv2d) and not name.startswith("score"):
            conv.register_forward_hook(record_peak(name, peaks, file.where))
    count = 0
    for image in images:
        predictor.predict([image])
        count += 1
    if not count:
        raise WeightsError(
            where=file.where,
            found="no readable images",
            expected="at least one image, to measure the ranges of the layers",
            remedy="Name an input with images that can be decoded.",
        )
    origin = {**file.info.origin, "int8_pictures": count}
    return replace(file.info, int8_peaks=peaks, origin=origin)


def record_peak(
    name: str, peaks: dict[str, float], where: str
) -> Callable[[nn.Module, object, Tensor], None]:
    """Return a forward hook that keeps the largest output of a convolution."""

    def hook(_: nn.Module, __: object, output: Tensor) -> None:
        peak = float(output.max())
        if not math.isfinite(peak):  # max() below would drop a NaN
            raise WeightsError(
                where=where,
                found=f"the output of layer {name} reaches {peak}",
                expected="finite numbers",
                remedy="The training diverged: use an earlier checkpoint.",
            )
        # The hook sees values before the ReLU, which turns negative values into 0.
        peaks[name] = max(peaks.get(name, 0.0), peak)

    return hook
