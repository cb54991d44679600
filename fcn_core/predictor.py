"""Pictures in, masks out: the only place that knows about tensors, devices and batches.

Shape suffixes: B batch, C channel, K class, H height px, W width px.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fcn_core.checkpoint import WeightsFile, WeightsInfo, read_weights
from fcn_core.errors import FcnError, ImageError
from fcn_core.model import FCN

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Prediction:
    """What the network says of one picture.

    Attributes:
        mask: (H, W) uint8, class index of the highest logit (the lowest index among equals).
        mean_confidence: mean over pixels of the softmax probability of the chosen class, 0-1.
    """

    mask: NDArray[np.uint8]
    mean_confidence: float


class Predictor:
    """A network ready to label pictures.

    >>> predictor = Predictor.load("demo")
    >>> picture = np.zeros((40, 60, 3), np.uint8)
    >>> predictor.predict([picture])[0].mask.shape
    (40, 60)
    """

    def __init__(
        self,
        model: FCN,
        info: WeightsInfo,
        *,
        device: str = "cpu",
        precision: Precision = "fp32",
        batch_size: int | None = None,
    ) -> None:
        """Take a network over.

        Args:
            model: moved to `device`, converted to `precision`, put into eval mode.
            info: its preprocessing and classes.
            device: "cpu", "cuda", "cuda:1".
            precision: of the convolutions; softmax and argmax are computed in fp32.
            batch_size: pictures per forward pass. Default: 1 on a CPU, where larger batches are not
                faster, 8 elsewhere.

        Raises:
            FcnError: the device or the precision is not to be had here.
        """
        _check(device, precision)
        self.info = info
        self.device = torch.device(device)
        self.dtype = _DTYPES[precision]
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 8)
        # Channels-last is what oneDNN and cuDNN compute in; anything else is converted per layer.
        self.model = model.eval().to(self.device, self.dtype).to(memory_format=torch.channels_last)
        pre = info.preprocessing
        self._mean = torch.tensor(pre.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(pre.std, device=self.device).view(1, 3, 1, 1)

    @classmethod
    def load(
        cls,
        weights: str | Path | WeightsFile,
        *,
        device: str = "cpu",
        precision: Precision = "fp32",
    ) -> Predictor:
        """A predictor from a weights file ("demo" is the shipped one).

        Raises:
            WeightsError: the file is missing, damaged, of another network, or not yet trained.
            FcnError: the device or the precision is not to be had here.
        """
        file = weights if isinstance(weights, WeightsFile) else read_weights(weights)
        file.check_is_trained()
        return cls(file.load(), file.info, device=device, precision=precision)

    def predict(
        self,
        images: Sequence[NDArray[np.uint8]],
        on_batch: Callable[[Sequence[int]], None] | None = None,
    ) -> list[Prediction]:
        """One prediction per picture, in order.

        Pictures of one shape share a forward pass of exactly `batch_size` slots, empty ones filled
        with zeros: a forward pass of another size may choose other kernels and round otherwise.
        So a picture's result never depends on what else is in the list.

        Args:
            images: (H, W, 3) uint8 RGB, 0-255, of any mixture of sizes from 1x1 up.
            on_batch: told the indices of the pictures before each forward pass.

        Raises:
            ImageError: an array is something else.
        """
        for index, image in enumerate(images):
            _check_image(image, f"picture {index}")
        results: dict[int, Prediction] = {}
        for batch in self._batches(images):
            if on_batch is not None:
                on_batch(batch)
            predictions = self._forward([images[index] for index in batch])
            results.update(zip(batch, predictions, strict=True))
        return [results[index] for index in range(len(images))]

    def _batches(self, images: Sequence[NDArray[np.uint8]]) -> Iterator[list[int]]:
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_shape.setdefault(image.shape, []).append(index)
        for indices in by_shape.values():
            for start in range(0, len(indices), self.batch_size):
                yield indices[start : start + self.batch_size]

    @torch.inference_mode()
    def _forward(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        stack = np.zeros((self.batch_size, *images[0].shape), np.uint8)
        np.stack(images, out=stack[: len(images)])
        logits_BKHW = self.model(self._preprocess(stack))[: len(images)].float()
        mask_BHW = logits_BKHW.argmax(dim=1)
        # The softmax at its own maximum is 1 / sum(exp(logit - max)).
        peak_B1HW = logits_BKHW.amax(dim=1, keepdim=True)
        confidence_BHW = 1 / (logits_BKHW - peak_B1HW).exp_().sum(dim=1)
        # In float64, one picture at a time: the mean must not depend on the batch.
        means = [float(plane.double().mean()) for plane in confidence_BHW]
        masks = mask_BHW.to(torch.uint8).cpu().numpy()
        return [Prediction(mask, mean) for mask, mean in zip(masks, means, strict=True)]

    def _preprocess(self, stack_BHWC: NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(stack_BHWC).to(self.device)  # uint8 over the bus: a quarter
        x_BCHW = pixels.permute(0, 3, 1, 2).float()
        if self.info.preprocessing.channels == "BGR":
            x_BCHW = x_BCHW.flip(1)
        x_BCHW = (x_BCHW - self._mean) / self._std
        return x_BCHW.to(self.dtype).contiguous(memory_format=torch.channels_last)


def _check_image(image: NDArray[np.uint8], where: str) -> None:
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
        or 0 in image.shape
    ):
        found = f"{getattr(image, 'dtype', type(image).__name__)} {np.shape(image)}"
        raise ImageError(
            where, found, "uint8 (H, W, 3) RGB, at least 1x1", "Decode it to RGB first."
        )


def _check(device: str, precision: str) -> None:
    if precision not in get_args(Precision):
        raise FcnError("precision", f"{precision!r}", "fp32, bf16 or fp16", "Choose one of them.")
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise FcnError(
            "device", f"{device!r}", "cpu, cuda or cuda:1", "Choose a device."
        ) from error
    if wanted.type == "cuda" and (wanted.index or 0) >= (count := torch.cuda.device_count()):
        raise FcnError("device", f"{device!r}, but torch sees {count} CUDA devices",
                       "a device that is there", "Use cpu, or check the driver.")  # fmt: skip
    if wanted.type == "cpu" and precision == "fp16":
        raise FcnError("precision", "fp16 on a CPU", "fp32 or bf16: fp16 is slow and inexact there",
                       "Use --precision bf16.")  # fmt: skip
