"""Slow, obvious twins of the science. They share no code with it: leave them slow."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own habit

# --- Scores (Long, Shelhamer, Darrell 2015, section 5) -----------------------------------------


def confusion(label: NDArray, mask: NDArray, num_classes: int, void: int = 255) -> list[list[int]]:
    counts = [[0] * num_classes for _ in range(num_classes)]
    for truth, prediction in zip(label.flat, mask.flat, strict=True):
        if truth != void:
            counts[truth][prediction] += 1
    return counts


def scores(n: Sequence[Sequence[int]], policy: str = "reference") -> dict[str, object]:
    """The four formulas, term by term; None where a ratio has no denominator."""
    classes = range(len(n))
    t = [sum(n[i][j] for j in classes) for i in classes]
    predicted = [sum(n[j][i] for j in classes) for i in classes]
    total = sum(t)
    iou = [ratio(n[i][i], t[i] + predicted[i] - n[i][i]) for i in classes]
    averaged = [iou[i] for i in classes if policy == "reference" or t[i] > 0]
    weighted = [t[i] * iou[i] for i in classes if t[i] > 0]
    return {
        "pixel_accuracy": ratio(sum(n[i][i] for i in classes), total),
        "mean_accuracy": mean([ratio(n[i][i], t[i]) for i in classes]),
        "mean_iou": mean(averaged),
        "frequency_weighted_iou": ratio(sum(weighted), total),
        "iou": iou,
    }


def ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# --- Boundary bands (Kohli et al. 2009) --------------------------------------------------------


def boundary_pixels(label: NDArray) -> list[tuple[int, int]]:
    """Pixels with another value above, below, left or right."""
    height, width = label.shape
    found = []
    for y, x in np.ndindex(height, width):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [(j, i) for j, i in around if 0 <= j < height and 0 <= i < width]
        if any(label[place] != label[y, x] for place in inside):
            found.append((y, x))
    return found


def in_band(label: NDArray, width: float) -> NDArray:
    """(H, W) bool: some boundary pixel's centre is nearer than `width` px."""
    marked = boundary_pixels(label)
    result = np.zeros(label.shape, bool)
    for y, x in np.ndindex(label.shape):
        result[y, x] = any((y - j) ** 2 + (x - i) ** 2 < width**2 for j, i in marked)
    return result


# --- The upper bound (appendix A) ---------------------------------------------------------------


def coarse_scores(label: NDArray, factor: int, void: int = 255) -> dict[int, list[list[Fraction]]]:
    """The score of each class at each pixel: shares of cells, bilinear between their centres."""
    height, width = label.shape
    rows, columns = math.ceil(height / factor), math.ceil(width / factor)

    def share(index: int, row: int, column: int) -> Fraction:
        row, column = min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)
        cell = label[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        known = [int(value) for value in cell.flat if value != void]
        return Fraction(known.count(index), len(known)) if known else Fraction(0)

    def at(index: int, y: int, x: int) -> Fraction:
        v, u = (Fraction(2 * z + 1, 2 * factor) - Fraction(1, 2) for z in (y, x))
        row, column = math.floor(v), math.floor(u)
        down, right = v - row, u - column
        return (
            (1 - down) * (1 - right) * share(index, row, column)
            + (1 - down) * right * share(index, row, column + 1)
            + down * (1 - right) * share(index, row + 1, column)
            + down * right * share(index, row + 1, column + 1)
        )

    present = sorted({int(value) for value in label.flat if value != void})
    return {k: [[at(k, y, x) for x in range(width)] for y in range(height)] for k in present}


# --- Bookkeeping: read everything, keep everything, add one by one ------------------------------


def commits(output: Path) -> dict[str, dict[str, Any]]:
    """Every commit object, by its shard."""
    paths = sorted((output / "_commits").rglob("*.json"))
    found = [json.loads(path.read_text()) for path in paths]
    return {document["shard"]: document for document in found}


def sums(documents: Mapping[str, Any], classes: int) -> tuple[list[list[int]], list[int]]:
    """(confusion matrix, class pixels) of all commits."""
    matrix = [[0] * classes for _ in range(classes)]
    pixels = [0] * classes
    for document in documents.values():
        for i in range(classes):
            pixels[i] += document["class_pixels"][i]
            for j in range(classes):
                matrix[i][j] += document["confusion"][i][j]
    return matrix, pixels


def ranked(documents: Mapping[str, Any]) -> list[tuple[float, str]]:
    """(score, shard): by mean IoU, then those without labeled pixels by mean confidence."""
    keyed = []
    for shard, document in documents.items():
        iou = scores(document["confusion"])["mean_iou"]
        images = document["images"]
        confidence = document["confidence_sum"] / images if images else 1.0
        keyed.append((iou is None, confidence if iou is None else iou, shard))
    return [(score, shard) for _, score, shard in sorted(keyed)]


def pending(
    tags: Mapping[str, str], documents: Mapping[str, Any], fingerprint: str, masks: Sequence[str]
) -> list[str]:
    """The shards of an input (tag by id) that no commit makes done."""
    found = []
    for shard, tag in sorted(tags.items()):
        commit = documents.get(shard)
        holds = (
            commit is not None
            and commit["input"]["etag"] == tag
            and commit["fingerprint"] == fingerprint
            and set(masks) <= set(commit["masks"])
        )
        if not holds:
            found.append(shard)
    return found


# --- Upsampling (surgery.upsample_filt) --------------------------------------------------------


def tent(offset: int, size: int) -> float:
    """The weight at `offset` of a 1-D bilinear kernel of `size`."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 == 1 else factor - 0.5
    return 1 - abs(offset - centre) / factor


def upsample(plane: NDArray, stride: int) -> NDArray:
    """(H, W) to (sH + s, sW + s): each input pixel paints a tent of 2s x 2s where it lands."""
    height, width = plane.shape
    size = 2 * stride
    result = np.zeros((stride * height + stride, stride * width + stride))
    for y, x in np.ndindex(height, width):
        for i, j in np.ndindex(size, size):
            weight = tent(i, size) * tent(j, size)
            result[stride * y + i, stride * x + j] += plane[y, x] * weight
    return result


# --- The networks (net.py and the prototxt files of the reference code) ------------------------

TRUNK = (
    "conv1_1 conv1_2 pool1 conv2_1 conv2_2 pool2 conv3_1 conv3_2 conv3_3 pool3 "
    "conv4_1 conv4_2 conv4_3 pool4 conv5_1 conv5_2 conv5_3 pool5 fc6 fc7 score_fr"
).split()


def fcn_logits(variant: str, weights: Mapping[str, Tensor], image: Tensor) -> Tensor:
    """The forward pass, layer after layer as the reference network lists them."""

    def up(layer: str) -> Tensor | None:
        return weights.get(f"{layer}.weight")

    out = {"data": image}
    x = image
    for name in TRUNK:
        x = ceil_pool(x) if name.startswith("pool") else conv(x, name, weights)
        x = x if name == "score_fr" else x.clamp(min=0)
        out[name] = x
    if variant == "fcn32s":
        return crop(deconv(out["score_fr"], 64, 32, up("upscore")), 19, like=image)
    if variant == "fcn8s-atonce":
        out["pool4"], out["pool3"] = 0.01 * out["pool4"], 0.0001 * out["pool3"]
    upscore2 = deconv(out["score_fr"], 4, 2, up("upscore2"))
    fuse_pool4 = upscore2 + crop(conv(out["pool4"], "score_pool4", weights), 5, like=upscore2)
    if variant == "fcn16s":
        return crop(deconv(fuse_pool4, 32, 16, up("upscore16")), 27, like=image)
    up_pool4 = deconv(fuse_pool4, 4, 2, up("upscore_pool4"))
    fuse_pool3 = up_pool4 + crop(conv(out["pool3"], "score_pool3", weights), 9, like=up_pool4)
    return crop(deconv(fuse_pool3, 16, 8, up("upscore8")), 31, like=image)


def conv(x: Tensor, name: str, weights: Mapping[str, Tensor]) -> Tensor:
    pad = 100 if name == "conv1_1" else 1 if name.startswith("conv") else 0
    return F.conv2d(F.pad(x, (pad,) * 4), weights[f"{name}.weight"], weights[f"{name}.bias"])


def ceil_pool(x: Tensor) -> Tensor:
    """2x2, stride 2; an odd side is completed with minus infinity."""
    height, width = x.shape[-2:]
    x = F.pad(x, (0, width % 2, 0, height % 2), value=-math.inf)
    corners = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
    return torch.stack(corners).amax(dim=0)


def deconv(x: Tensor, size: int, stride: int, weight: Tensor | None = None) -> Tensor:
    """Caffe's Deconvolution; without a weight as after surgery.interp: bilinear on the diagonal."""
    if weight is not None:
        return F.conv_transpose2d(x, weight, stride=stride)
    classes = x.shape[1]
    weight = torch.zeros(classes, classes, size, size, dtype=x.dtype)
    for i, j in np.ndindex(size, size):
        for k in range(classes):
            weight[k, k, i, j] = tent(i, size) * tent(j, size)
    return F.conv_transpose2d(x, weight, stride=stride)


def crop(finer: Tensor, offset: int, *, like: Tensor) -> Tensor:
    height, width = like.shape[-2:]
    result = finer[:, :, offset : offset + height, offset : offset + width]
    assert result.shape[-2:] == like.shape[-2:], "the crop runs out of the image"
    return result


Map = tuple[Fraction, Fraction]
"""Where cell x of a layer lies in the image: scale * x + shift."""


def crop_offsets() -> dict[str, Fraction]:
    """The crops, from where pads and strides put each layer (caffe.coord_map), exactly."""
    place: dict[str, Map] = {"data": (Fraction(1), Fraction(0))}
    last = place["data"]
    for name in TRUNK:
        kernel, stride = {"p": (2, 2), "c": (3, 1)}.get(name[0], (7 if name == "fc6" else 1, 1))
        pad = 100 if name == "conv1_1" else 1 if name[0] == "c" else 0
        last = place[name] = down(last, kernel, stride, pad)
    score, pool4, pool3, data = (place[n] for n in ("score_fr", "pool4", "pool3", "data"))
    upscore2 = up(score, 2)
    upscore_pool4 = up(upscore2, 2)
    return {
        "fcn32s": offset(up(score, 32), data),
        "pool4": offset(pool4, upscore2),
        "fcn16s": offset(up(upscore2, 16), data),
        "pool3": offset(pool3, upscore_pool4),
        "fcn8s": offset(up(upscore_pool4, 8), data),
    }


def down(place: Map, kernel: int, stride: int, pad: int) -> Map:
    """A cell of a convolution or pool sits at the centre of its window."""
    scale, shift = place
    return scale * stride, scale * (Fraction(kernel - 1, 2) - pad) + shift


def up(place: Map, stride: int) -> Map:
    """Input cell x of a deconvolution lands on output cell stride * x + (kernel - 1) / 2."""
    scale, shift = place
    finer = scale / stride
    return finer, shift - finer * Fraction(2 * stride - 1, 2)


def offset(place: Map, like: Map) -> Fraction:
    """The cell of `place` that lies on cell 0 of `like`."""
    assert place[0] == like[0]
    return (like[1] - place[1]) / place[0]


def softmax_peak(logits: NDArray) -> NDArray:
    """(K, H, W) to (H, W): the softmax probability of the highest class, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=0))
    return (powers / powers.sum(axis=0)).max(axis=0)
