"""Predict segmentation masks of images: batching, devices, numeric precision, and input checks.

Shape suffixes: B batch, C channel, K class, H height px, W width px.
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
    "int8": torch.float32,  # of the layers outside the trunk
}

_CUDNN = threading.Lock()


@dataclass(frozen=True)
class Prediction:
    """The mask and confidence that a network predicts for one image.

    Attributes:
        mask: (H, W) uint8, class index of the highest logit (the lowest index among equals).
        mean_confidence: Mean over all pixels of the softmax probability of the predicted class,
            0-1. NaN if any logit is NaN or infinite; the mask is then meaningless.
        confidence: (H, W) uint8, the same probability per pixel times 255, rounded; None unless
            requested.
        pairs: (K, 256) int64 pixel counts by predicted class and label byte; None without labels.
    """

    mask: NDArray[np.uint8]
    mean_confidence: float
    confidence: NDArray[np.uint8] | None = None
    pairs: NDArray[np.int64] | None = None


class Predictor:
    """A network that is ready to segment images.

    Attributes:
        info: Description from the weights file.
        labels: Label set of the predicted masks.
        head: Name of the head that predicts, or None for the first.
        logits: Function from preprocessed images and a head name to logits: `FastForward` or the
            model itself.
        transfer: Copies of arrays to and from the device.

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
        """Prepare a network for prediction.

        Args:
            model: The network. It is moved to `device`, converted to `precision` and put into eval
                mode. Wrap it in `ShiftAndStitch` for denser scores.
            info: Description with the preprocessing and the classes.
            device: "cpu", "cuda" or "cuda:1".
            precision: Number format of the convolutions; softmax and argmax are always fp32. "tf32"
                is fp32 with CUDA's TensorFloat-32 products, "fp32" is without them, independent of
                torch's defaults. "int8" covers the trunk, with scores in fp32
                (`fcn_core.inference.int8`).
            batch_size: Images per forward pass. Default: 1 on a CPU, where larger batches are not
                faster, and 8 on other devices.
            head: Name of the head that predicts, for a network with several. Default: the first.
            plain: Whether to compute the whole padded canvas layer by layer instead of using
                `fcn_core.inference.forward`. The result is equal up to rounding, but slower.
                `ShiftAndStitch` is always plain.

        Raises:
            FcnError: The device or the precision is not available.
            WeightsError: An unknown head, a description of another network, or missing int8 ranges.
        """
        check_arithmetic(device, precision)
        check_network(model.architecture, info, head)
        is_plain = plain or not isinstance(model, FCN)
        if precision == "int8":
            check_int8(device, plain=is_plain)
            info.check_int8_ranges("weights")
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
        if precision != "int8":  # int8 has its own weight layout
            # oneDNN and cuDNN compute in channels-last, and convert other layouts at every layer.
            self.model = self.model.to(memory_format=torch.channels_last)
        self.logits: Callable[[Tensor, str | None], Tensor] = self.model
        if isinstance(self.model, FCN) and not is_plain:
            int8 = precision == "int8"
            ranges = Int8Ranges.of(info.preprocessing, info.int8_peaks) if int8 else None
            with self._cudnn_settings():  # the constructor computes features of blank canvases
                self.logits = FastForward(self.model, int8=ranges)
        pre = info.preprocessing
        self.transfer = (CudaTransfer if self.device.type == "cuda" else DeviceTransfer)(
            self.device
        )
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
        """Load a predictor from a weights file; "demo" is the file shipped with this package.

        Raises:
            WeightsError: A file that is missing, damaged, of another network, or not yet trained.
            FcnError: The device or the precision is not available.
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
        """Return one prediction per image, in order.

        Images of one shape share a forward pass of exactly `batch_size` slots; empty slots hold
        zeros, because another batch size may select other kernels, which round differently. So the
        result of an image never depends on the other images of the call.

        Args:
            images: (H, W, 3) uint8 RGB arrays, 0-255, of any sizes from 1x1 up. Networks with other
                inputs take (H, W, C) uint8 or finite float32: red, green, blue and log-depth
                (early fusion), or red, green, blue and the three HHA channels (late fusion).
            on_batch: Callback before each forward pass. It receives the indices of the images whose
                results are pending: those of this pass and, on CUDA, those of the pass before.
            confidence: Whether to return the confidence of every pixel.
            labels: Labels to count pixel pairs with: (H, W) uint8 of any values and of the size of
                the image, or None for an image whose pixels count as void (255).

        Raises:
            ImageError: An array of another shape or dtype, or with values that are not finite.
        """
        for index, image in enumerate(images):
            check_image(image, len(self.info.preprocessing.mean), f"image {index}")
        results: dict[int, Prediction] = {}
        waiting: deque[tuple[list[int], Callable[[], list[Prediction]]]] = deque()
        for batch in self._batches(images):
            if on_batch is not None:
                on_batch([*(index for earlier, _ in waiting for index in earlier), *batch])
            truth = None if labels is None else [labels[index] for index in batch]
            waiting.append((batch, self._start([images[i] for i in batch], confidence, truth)))
            if len(waiting) > self.transfer.ahead:
                earlier, results_of = waiting.popleft()
                results.update(zip(earlier, results_of(), strict=True))
        for earlier, results_of in waiting:
            results.update(zip(earlier, results_of(), strict=True))
        return [results[index] for index in range(len(images))]

    def _batches(self, images: Sequence[ImageArray]) -> Iterator[list[int]]:
        by_shape: dict[tuple[object, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_shape.setdefault((image.shape, image.dtype), []).append(index)
        for indices in by_shape.values():
            for start in range(0, len(indices), self.batch_size):
                yield indices[start : start + self.batch_size]

    @torch.inference_mode()
    def _start(
        self,
        images: Sequence[ImageArray],
        with_maps: bool,
        labels: Sequence[NDArray[np.uint8] | None] | None,
    ) -> Callable[[], list[Prediction]]:
        """Start a forward pass; the returned function waits for it and returns the predictions."""
        count = len(images)
        with self._cudnn_settings():
            stack_BHWC = self.transfer.stack(images, self.batch_size)
            logits_BKHW = self.logits(self._preprocess(stack_BHWC), self.head)[:count].float()
        # Among equal logits torch.max guarantees the first class.
        peak_B1HW, mask_B1HW = logits_BKHW.max(dim=1, keepdim=True)
        # The softmax probability of the highest logit is 1 / sum(exp(logit - max)).
        confidence_BHW = 1 / (logits_BKHW - peak_B1HW).exp_().sum(dim=1)
        # In float64, one image at a time: the mean must not depend on the batch.
        means = torch.stack([plane.double().mean() for plane in confidence_BHW])
        mask_BHW = mask_B1HW[:, 0]
        outputs = [mask_BHW.to(torch.uint8), means]
        if with_maps:
            outputs.append((255 * confidence_BHW.nan_to_num(0)).round().to(torch.uint8))
        if labels is not None:
            all_void = np.full(mask_BHW.shape[1:], VOID, np.uint8)
            truth = [all_void if label is None else label for label in labels]
            outputs.append(self._pairs(outputs[0], truth))
        wait = self.transfer.fetch(outputs)
        return lambda: _predictions(wait(), with_maps)

    def _pairs(self, mask_BHW: Tensor, labels: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Count pixel pairs, (B, K, 256), on the device of the mask."""
        classes = self.labels.num_classes
        if self.device.type == "cpu":
            masks = mask_BHW.numpy()
            counts = [count_pairs(*both, classes) for both in zip(masks, labels, strict=True)]
            return torch.from_numpy(np.stack(counts))
        return count_pairs_on_device(mask_BHW, self.transfer.stack(labels, len(labels)), classes)

    def _cudnn_settings(self) -> AbstractContextManager[None]:
        """Fix cuDNN's settings, so that its choice of kernels is the same in every run."""
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
    # The flags belong to the process: without the lock, two threads would overwrite each other's.
    with _CUDNN, cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=allow_tf32
    ):  # fmt: skip
        yield


def _predictions(arrays: Sequence[NDArray[Any]], with_maps: bool) -> list[Prediction]:
    masks, means, *rest = arrays
    missing = [None] * len(masks)
    maps = rest.pop(0) if with_maps else missing
    pairs = rest.pop(0) if rest else missing
    return [
        Prediction(mask, float(mean), scaled, counts)
        for mask, mean, scaled, counts in zip(masks, means, maps, pairs, strict=True)
    ]


Precision = Literal["fp32", "tf32", "bf16", "fp16", "int8"]

ImageArray = NDArray[np.uint8] | NDArray[np.float32]


def check_image(image: ImageArray, channels: int, where: str) -> None:
    """Check that an array is a valid input image of a network.

    Args:
        image: Array as described at `Predictor.predict`.
        channels: Number of input channels of the network.
        where: Name of the image in error messages.

    Raises:
        ImageError: An array of another shape or dtype, or with values that are not finite.
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
            remedy = "Stack the channels as described in docs/networks.md."
        raise ImageError(where=where, found=found, expected=expected, remedy=remedy)
    if image.dtype == np.float32 and not np.isfinite(image).all():
        remedy = "Fill in the values that the sensor did not measure, for example with the mean."
        raise ImageError(
            where=where, found="NaN or infinity", expected="finite numbers", remedy=remedy
        )


def check_scores(mean_confidence: float, where: str) -> None:
    """Check that the scores behind a mask are finite.

    Args:
        mean_confidence: `Prediction.mean_confidence` of the mask.
        where: Name of the image in error messages.

    Raises:
        WeightsError: The logits of some pixels are NaN or infinite.
    """
    if math.isnan(mean_confidence):
        raise WeightsError(
            where=where,
            found="the network's scores are NaN or infinite",
            expected="finite scores",
            remedy="Try --precision fp32, because fp16 can overflow. If all images have this "
            "error, the training diverged: use an earlier checkpoint.",
        )


def check_network(architecture: Architecture, info: WeightsInfo, head: str | None) -> None:
    """Check that a description belongs to a network, and that the network has a head of this name.

    Raises:
        WeightsError: Other input channels, other heads, or an unknown head.
    """
    channels = len(info.preprocessing.mean)
    if channels != architecture.input_channels:
        raise WeightsError(
            where="preprocessing",
            found=f"means of {channels} channels",
            expected=f"{architecture.variant} reads {architecture.input_channels}",
            remedy="Give one mean per channel.",
        )
    if info.architecture.head_classes != architecture.head_classes:
        raise WeightsError(
            where="weights",
            found=f"a description of heads {info.architecture.head_classes}",
            expected=f"the network has heads {architecture.head_classes}",
            remedy="Give a WeightsInfo that describes this model.",
        )
    if head is not None and head not in architecture.head_classes:
        heads = ", ".join(repr(name) for name in architecture.head_classes)
        raise WeightsError(
            where="head",
            found=f"{head!r}",
            expected=f"one of {heads}",
            remedy="Name one of these heads.",
        )


def check_arithmetic(device: str, precision: str) -> None:
    """Check that a device exists and supports a precision. `check_int8` has the rest for int8.

    Raises:
        FcnError: An unknown or missing device, or a precision that the device does not support.
    """
    if precision not in get_args(Precision):
        raise FcnError(
            where="precision",
            found=f"{precision!r}",
            expected=", ".join(get_args(Precision)),
            remedy="Name one of these precisions.",
        )
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise FcnError(
            where="device",
            found=f"{device!r}",
            expected="cpu, cuda or cuda:1",
            remedy="Name one of these devices.",
        ) from error
    if wanted.type == "cuda" and (wanted.index or 0) >= (count := torch.cuda.device_count()):
        raise FcnError(
            where="device",
            found=f"{device!r}, but torch sees {count} CUDA devices",
            expected="a device that exists",
            remedy="Use cpu, or check the driver.",
        )
    if wanted.type == "cpu" and precision == "tf32":
        raise FcnError(
            where="precision",
            found="tf32 on a CPU",
            expected="fp32 or bf16: only GPUs have TF32",
            remedy="Use --precision fp32.",
        )
    if wanted.type == "cpu" and precision == "fp16":
        raise FcnError(
            where="precision",
            found="fp16 on a CPU",
            expected="fp32 or bf16: fp16 is slow and inexact on a CPU",
            remedy="Use --precision bf16.",
        )
