"""Images in, masks out: the only place that knows about tensors, devices and batches.

Shape suffixes: B batch, C channel, K class, H height px, W width px.

What a predictor refuses: arrays, networks, devices and precisions that cannot be used.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.backends import cudnn

from fcn_core.errors import FcnError, ImageError, WeightsError
from fcn_core.inference.device_transfer import CudaTransfer, DeviceTransfer
from fcn_core.inference.forward import FastForward
from fcn_core.inference.int8 import Int8Ranges, check_int8
from fcn_core.inference.shift_and_stitch import ShiftAndStitch
from fcn_core.labels import VOID
from fcn_core.metrics.confusion_matrix import count_pairs, count_pairs_on_device
from fcn_core.networks.architecture import Architecture
from fcn_core.networks.model import FCN
from fcn_core.weights.weights_file import WeightsFile, read_weights
from fcn_core.weights.weights_info import WeightsInfo

_DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.float32,  # of what is not in the trunk
}

_CUDNN = threading.Lock()


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image.

    Attributes:
        mask: (H, W) uint8, class index of the highest logit (the lowest index among equals).
        mean_confidence: mean over pixels of the softmax probability of the chosen class, 0-1; NaN
            if the logits of any pixel are NaN or reach infinity, so that the mask means nothing.
        confidence: (H, W) uint8, that probability times 255, rounded; None if not asked for.
        pairs: (K, 256) int64, pixels by class of the mask and byte of the label; None if no labels
            were given.
    """

    mask: NDArray[np.uint8]
    mean_confidence: float
    confidence: NDArray[np.uint8] | None = None
    pairs: NDArray[np.int64] | None = None


class Predictor:
    """A network ready to label images.

    Attributes:
        info: what its weights file says.
        labels: the classes that its masks hold: those of its head.
        head: which, or None for the first.
        logits: of preprocessed images and a head: the fast forward pass, or the model.

    Examples:
        >>> predictor = Predictor.load("demo")
        >>> image = np.zeros((40, 60, 3), np.uint8)
        >>> predictor.predict([image])[0].mask.shape
        (40, 60)
    """

    def __init__(
        self,
        model: FCN | ShiftAndStitch,
        info: WeightsInfo,
        *,
        device: str = "cpu",
        precision: Precision = "fp32",
        batch_size: int | None = None,
        head: str | None = None,
        plain: bool = False,
    ) -> None:
        """Take a network over.

        Args:
            model: moved to `device`, converted to `precision`, put into eval mode. Wrap it in
                `ShiftAndStitch` for denser scores.
            info: its preprocessing and classes.
            device: "cpu", "cuda", "cuda:1".
            precision: of the convolutions; softmax and argmax are computed in fp32. "tf32" is fp32
                with the products of CUDA's TensorFloat-32, "fp32" is without, whatever torch's
                defaults are. "int8" is of the trunk, the scores are in fp32: `fcn_core.inference.int8`.
            batch_size: images per forward pass. Default: 1 on a CPU, where larger batches are not
                faster, 8 elsewhere.
            head: whose classes to predict, of a network with several. Default: the first.
            plain: compute all of the padded canvas, layer by layer, instead of
                `fcn_core.inference.forward`: the same but for rounding, and slower. `ShiftAndStitch` is
                always plain.

        Raises:
            FcnError: the device or the precision is not to be had here.
            WeightsError: no such head, a description of another network, or for int8 no ranges.
        """
        check_arithmetic(device, precision)
        check_network(model.architecture, info, head)
        is_plain = plain or not isinstance(model, FCN)
        if precision == "int8":
            check_int8(device, plain=is_plain)
            info.check_has_ranges("weights")
        self.info = info
        self.head = head
        sets = dict(
            zip(info.architecture.head_classes, (info.labels, *info.other_labels), strict=True)
        )
        self.labels = info.labels if head is None else sets[head]
        self.device = torch.device(device)
        self._allow_tf32 = precision == "tf32"
        self.dtype = _DTYPES[precision]
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 8)
        self.model = model.eval().to(self.device, self.dtype)
        if precision != "int8":  # whose weights have a layout of their own
            # Channels-last is what oneDNN and cuDNN compute in; others are converted per layer.
            self.model = self.model.to(memory_format=torch.channels_last)
        self.logits: Callable[[Tensor, str | None], Tensor] = self.model
        if isinstance(self.model, FCN) and not is_plain:
            int8 = precision == "int8"
            ranges = Int8Ranges.of(info.preprocessing, info.int8_peaks) if int8 else None
            with self._products():  # it computes features of blank canvases
                self.logits = FastForward(self.model, int8=ranges)
        pre = info.preprocessing
        self._bus = (CudaTransfer if self.device.type == "cuda" else DeviceTransfer)(self.device)
        self._mean = torch.tensor(pre.mean, device=self.device).view(1, -1, 1, 1)
        self._std = torch.tensor(pre.std, device=self.device).view(1, -1, 1, 1)

    @classmethod
    def load(
        cls,
        weights: str | Path | WeightsFile,
        *,
        device: str = "cpu",
        precision: Precision = "fp32",
        head: str | None = None,
        plain: bool = False,
    ) -> Predictor:
        """A predictor from a weights file ("demo" is the shipped one).

        Raises:
            WeightsError: the file is missing, damaged, of another network, or not yet trained.
            FcnError: the device or the precision is not to be had here.
        """
        file = weights if isinstance(weights, WeightsFile) else read_weights(weights)
        file.check_is_trained()
        return cls(
            file.load(), file.info, device=device, precision=precision, head=head, plain=plain
        )

    def predict(
        self,
        images: Sequence[ImageArray],
        on_batch: Callable[[Sequence[int]], None] | None = None,
        *,
        confidence: bool = False,
        labels: Sequence[NDArray[np.uint8] | None] | None = None,
    ) -> list[Prediction]:
        """One prediction per image, in order.

        Images of one shape share a forward pass of exactly `batch_size` slots, empty ones filled
        with zeros: a forward pass of another size may choose other kernels and round otherwise.
        So an image's result never depends on what else is in the list.

        Args:
            images: (H, W, 3) uint8 RGB, 0-255, of any mixture of sizes from 1x1 up. For a network
                of other inputs (H, W, C) uint8 or finite float32: red, green, blue and log-depth
                (early fusion), or red, green, blue and the three of HHA (late fusion).
            on_batch: told, before each forward pass, the indices of the images whose results are
                still to come: those of the pass, and on CUDA those of the pass before.
            confidence: whether to give the confidence of every pixel too.
            labels: to count pixels by class and label: (H, W) uint8 of any bytes, of the size of
                the image. An image without one is counted as if all of it were void (255).

        Raises:
            ImageError: an array is something else.
        """
        for index, image in enumerate(images):
            check_image(image, len(self.info.preprocessing.mean), f"image {index}")
        results: dict[int, Prediction] = {}
        waiting: deque[tuple[list[int], Callable[[], list[Prediction]]]] = deque()
        for batch in self._batches(images):
            if on_batch is not None:
                on_batch([*(index for earlier, _ in waiting for index in earlier), *batch])
            truth = None if labels is None else [labels[index] for index in batch]
            waiting.append((batch, self._begin([images[i] for i in batch], confidence, truth)))
            if len(waiting) > self._bus.ahead:
                earlier, results_of = waiting.popleft()
                results.update(zip(earlier, results_of(), strict=True))
        for earlier, results_of in waiting:
            results.update(zip(earlier, results_of(), strict=True))
        return [results[index] for index in range(len(images))]

    def _batches(self, images: Sequence[ImageArray]) -> Iterator[list[int]]:
        alike: dict[tuple[object, ...], list[int]] = {}
        for index, image in enumerate(images):
            alike.setdefault((image.shape, image.dtype), []).append(index)
        for indices in alike.values():
            for start in range(0, len(indices), self.batch_size):
                yield indices[start : start + self.batch_size]

    @torch.inference_mode()
    def _begin(
        self,
        images: Sequence[ImageArray],
        with_maps: bool,
        labels: Sequence[NDArray[np.uint8] | None] | None,
    ) -> Callable[[], list[Prediction]]:
        """A forward pass; what is returned waits for it, and gives the predictions."""
        count = len(images)
        with self._products():
            stack_BHWC = self._bus.stack(images, self.batch_size)
            logits_BKHW = self.logits(self._preprocess(stack_BHWC), self.head)[:count].float()
        # Of equal logits the first class wins (torch.max promises it).
        peak_B1HW, mask_B1HW = logits_BKHW.max(dim=1, keepdim=True)
        # The softmax at its own maximum is 1 / sum(exp(logit - max)).
        confidence_BHW = 1 / (logits_BKHW - peak_B1HW).exp_().sum(dim=1)
        # In float64, one image at a time: the mean must not depend on the batch.
        means = torch.stack([plane.double().mean() for plane in confidence_BHW])
        mask_BHW = mask_B1HW[:, 0]
        found = [mask_BHW.to(torch.uint8), means]
        if with_maps:
            found.append((255 * confidence_BHW.nan_to_num(0)).round().to(torch.uint8))
        if labels is not None:
            nothing = np.full(mask_BHW.shape[1:], VOID, np.uint8)
            truth = [nothing if label is None else label for label in labels]
            found.append(self._pairs(found[0], truth))
        landed = self._bus.fetch(found)
        return lambda: _predictions(landed(), with_maps)

    def _pairs(self, mask_BHW: Tensor, labels: Sequence[NDArray[np.uint8]]) -> Tensor:
        """(B, K, 256) where the mask is."""
        classes = self.labels.num_classes
        if self.device.type == "cpu":
            masks = mask_BHW.numpy()
            counts = [count_pairs(*both, classes) for both in zip(masks, labels, strict=True)]
            return torch.from_numpy(np.stack(counts))
        return count_pairs_on_device(mask_BHW, self._bus.stack(labels, len(labels)), classes)

    def _products(self) -> AbstractContextManager[None]:
        """How cuDNN may multiply; its choice of kernels must not change from run to run."""
        if self.device.type != "cuda":
            return nullcontext()
        return _cudnn(self._allow_tf32)

    def _preprocess(self, stack_BHWC: Tensor) -> Tensor:
        x_BCHW = stack_BHWC.permute(0, 3, 1, 2).float()
        if self.info.preprocessing.channels == "BGR":
            x_BCHW = torch.cat([x_BCHW[:, :3].flip(1), x_BCHW[:, 3:]], dim=1)
        x_BCHW = (x_BCHW - self._mean) / self._std
        return x_BCHW.to(self.dtype).contiguous(memory_format=torch.channels_last)


@contextmanager
def _cudnn(allow_tf32: bool) -> Iterator[None]:
    # The flags are the process's: two predictors in two threads would undo one another's.
    with _CUDNN, cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=allow_tf32
    ):  # fmt: skip
        yield


def _predictions(arrays: Sequence[NDArray[Any]], with_maps: bool) -> list[Prediction]:
    masks, means, *rest = arrays
    nothing = [None] * len(masks)
    maps = rest.pop(0) if with_maps else nothing
    pairs = rest.pop(0) if rest else nothing
    return [
        Prediction(mask, float(mean), scaled, counts)
        for mask, mean, scaled, counts in zip(masks, means, maps, pairs, strict=True)
    ]


Precision = Literal["fp32", "tf32", "bf16", "fp16", "int8"]

ImageArray = NDArray[np.uint8] | NDArray[np.float32]


def check_image(image: ImageArray, channels: int, where: str) -> None:
    """Refuse what is no image of a network.

    Args:
        image: see `Predictor.predict`.
        channels: that the network reads.
        where: named in the error.

    Raises:
        ImageError: it is something else.
    """
    kinds = (np.uint8,) if channels == 3 else (np.uint8, np.float32)
    if (
        not isinstance(image, np.ndarray)
        or image.dtype not in kinds
        or image.ndim != 3
        or image.shape[2] != channels
        or 0 in image.shape
    ):
        found = f"{getattr(image, 'dtype', type(image).__name__)} {np.shape(image)}"
        if channels == 3:
            expected, remedy = "uint8 (H, W, 3) RGB, at least 1x1", "Decode it to RGB first."
        else:
            expected = f"uint8 or float32 (H, W, {channels}), at least 1x1"
            remedy = "Stack the channels as docs/networks.md says."
        raise ImageError(where=where, found=found, expected=expected, remedy=remedy)
    if image.dtype == np.float32 and not np.isfinite(image).all():
        remedy = "Fill in what the sensor did not measure, for example with the mean."
        raise ImageError(
            where=where, found="NaN or infinity", expected="finite numbers", remedy=remedy
        )


def check_scores(mean_confidence: float, where: str) -> None:
    """Refuse a mask that means nothing.

    Args:
        mean_confidence: see `Prediction`.
        where: named in the error.

    Raises:
        WeightsError: the logits of some pixels are NaN or reach infinity.
    """
    if math.isnan(mean_confidence):
        raise WeightsError(
            where=where,
            found="the network's scores are NaN or infinite",
            expected="finite ones: of all images, the weights diverged, or fp16 overflows",
            remedy="Try --precision fp32, then an earlier checkpoint of the training.",
        )


def check_network(architecture: Architecture, info: WeightsInfo, head: str | None) -> None:
    """Refuse a description that is not the network's, and a head that it has not.

    Raises:
        WeightsError: naming what differs.
    """
    channels = len(info.preprocessing.mean)
    if channels != architecture.input_channels:
        raise WeightsError(
            where="preprocessing",
            found=f"means of {channels} channels",
            expected=f"{architecture.variant} reads {architecture.input_channels}",
            remedy="Give the mean of every channel.",
        )
    if info.architecture.head_classes != architecture.head_classes:
        raise WeightsError(
            where="weights",
            found=f"a description of heads {info.architecture.head_classes}",
            expected=f"the network's are {architecture.head_classes}",
            remedy="Describe the model.",
        )
    if head is not None and head not in architecture.head_classes:
        heads = ", ".join(repr(name) for name in architecture.head_classes)
        raise WeightsError(
            where="head",
            found=f"{head!r}",
            expected=f"one of {heads}",
            remedy="Choose a head of the network.",
        )


def check_arithmetic(device: str, precision: str) -> None:
    """Refuse a device that is not there, and a precision that it has not. For int8: `check_int8`.

    Raises:
        FcnError: naming it.
    """
    if precision not in get_args(Precision):
        raise FcnError(
            where="precision",
            found=f"{precision!r}",
            expected=", ".join(get_args(Precision)),
            remedy="Choose one of them.",
        )
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise FcnError(
            where="device",
            found=f"{device!r}",
            expected="cpu, cuda or cuda:1",
            remedy="Choose a device.",
        ) from error
    if wanted.type == "cuda" and (wanted.index or 0) >= (count := torch.cuda.device_count()):
        raise FcnError(where="device", found=f"{device!r}, but torch sees {count} CUDA devices",
                       expected="a device that is there", remedy="Use cpu, or check the driver.")  # fmt: skip
    if wanted.type == "cpu" and precision == "tf32":
        raise FcnError(where="precision", found="tf32 on a CPU", expected="fp32 or bf16: TF32 is arithmetic of a GPU",
                       remedy="Use --precision fp32.")  # fmt: skip
    if wanted.type == "cpu" and precision == "fp16":
        raise FcnError(where="precision", found="fp16 on a CPU", expected="fp32 or bf16: fp16 is slow and inexact there",
                       remedy="Use --precision bf16.")  # fmt: skip
