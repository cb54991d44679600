"""The ranges that int8 needs: how great the outputs of each convolution become on real images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import Tensor, nn

from fcn_core.errors import WeightsError
from fcn_core.predictor import ImageArray, Predictor
from fcn_core.weights.weights_file import WeightsFile
from fcn_core.weights.weights_info import WeightsInfo


def calibrated(file: WeightsFile, pictures: Iterable[ImageArray]) -> WeightsInfo:
    """What a weights file says, with the ranges that images show.

    Args:
        file: of a trained network.
        images: (H, W, 3) uint8 RGB; such as will be labeled, tens of them.

    Returns:
        The description with `int8_peaks`, and `origin["int8_pictures"]`, how many there were.

    Raises:
        WeightsError: no images, a network that int8 is not for, or one whose features are not
            finite.
        ImageError: an array is no image.
    """
    file.info.check_can_have_ranges(file.where)
    predictor = Predictor.load(file, plain=True)
    peaks: dict[str, float] = {}
    for name, conv in predictor.model.named_modules():
        if isinstance(conv, nn.Conv2d) and not name.startswith("score"):
            conv.register_forward_hook(_watch(name, peaks, file.where))
    count = 0
    for picture in pictures:
        predictor.predict([picture])
        count += 1
    if not count:
        raise WeightsError(where=file.where, found="no images", expected="some, to see the ranges of its layers on",
                           remedy="Name an input with images that decode.")  # fmt: skip
    origin = {**file.info.origin, "int8_pictures": count}
    return replace(file.info, int8_peaks=peaks, origin=origin)


def _watch(
    name: str, peaks: dict[str, float], where: str
) -> Callable[[nn.Module, object, Tensor], None]:
    def look(_: nn.Module, __: object, found: Tensor) -> None:
        peak = float(found.max())
        if not math.isfinite(peak):  # NaN would be lost in the next maximum
            raise WeightsError(where=where, found=f"{name} gives {peak}", expected="finite numbers",
                               remedy="The training diverged: use an earlier checkpoint.")  # fmt: skip
        # Before the ReLU: what is below 0 becomes 0.
        peaks[name] = max(peaks.get(name, 0.0), peak)

    return look
