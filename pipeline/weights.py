"""The commands `fcnseg weights`: convert, halve, describe, verify (`try_out`) and calibrate.

Every command that writes refuses to replace a file with other bytes (`refuse_overwriting`).
"""

from __future__ import annotations

import hashlib
import logging
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fcn_core.calibration import measure_int8_ranges
from fcn_core.errors import ImageError, WeightsError
from fcn_core.images import decode_image
from fcn_core.labels import LABEL_SETS, LabelSet, label_set
from fcn_core.networks.architecture import Variant
from fcn_core.preprocessing import PREPROCESSINGS, Preprocessing
from fcn_core.weights.convert import Converted, ConvertOptions
from fcn_core.weights.convert import convert as convert_bytes
from fcn_core.weights.published import (
    Published,
    SourceFormat,
    check_checksum,
    find_published,
    identify_published,
)
from fcn_core.weights.weights_file import WeightsFile, save_weights
from pipeline.config import InputConfig, LimitsConfig
from pipeline.errors import ConfigError, ShardError, StoreError
from pipeline.redact import masked
from pipeline.resolve import load_weights, read_label_set
from pipeline.storage.store import read_url, write_url
from pipeline.training.source import TrainingSource, list_source

log = logging.getLogger("fcnseg")

TRIAL_SIZE = (48, 64)
"""Height and width, px, of the noise image that `try_out` feeds to the network."""


@dataclass(frozen=True)
class ConvertRequest:
    """Options of `fcnseg weights convert`.

    Attributes:
        source: URL of the file to convert.
        destination: URL of the file to write.
        format: format of the source.
        variant: variant of the network.
        label_sets: name or YAML file of the label set, one per head.
        preprocessing: a key of `PREPROCESSINGS`; None: the preprocessing known for the file.
        output_stride: 32, or 16 or 8 for a dilated network with the same weights.
        md5: required MD5 checksum of the source; None: not checked.
        sha256: required SHA-256 checksum of the source; None: not checked.
    """

    source: str
    destination: str
    format: SourceFormat
    variant: Variant
    label_sets: Sequence[str]
    preprocessing: str | None = None
    output_stride: int = 32
    md5: str | None = None
    sha256: str | None = None


def refuse_overwriting(destination: str, data: bytes) -> None:
    """Refuse to replace an existing file that has other bytes.

    Args:
        destination: URL of the file to write.
        data: bytes to write; a file with the same bytes may exist already.

    Raises:
        WeightsError: a file with other bytes exists.
    """
    try:
        existing = read_url(destination)
    except StoreError:  # no file; or a failing store, which the write will report
        return
    if existing != data:
        raise WeightsError(
            where=masked(destination),
            found="an existing file with other bytes",
            expected="a new name",
            remedy="Remove the file first, or name another DST.",
        )


@dataclass(frozen=True)
class ConvertResult:
    """The result of a conversion.

    Attributes:
        destination: URL of the written file.
        sha256: its SHA-256 checksum.
        bytes: its size, bytes.
        published: file name of the published weights with the source's checksum, if known.
        notes: decisions of the conversion, in words.
        description: see `describe`.
    """

    destination: str
    sha256: str
    bytes: int
    published: str | None
    notes: tuple[str, ...]
    description: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a JSON document."""
        return {**vars(self), "notes": list(self.notes)}


def convert(request: ConvertRequest) -> ConvertResult:
    """Convert a weights file of another framework, write it, and return what was written.

    Raises:
        WeightsError: the source does not match the request (`fcn_core.weights.convert.convert`).
        ConfigError, LabelSetError: a label set or the preprocessing does not exist.
        StoreError: the source cannot be read, or the destination cannot be written.
    """
    where = f"weights {request.source}"
    if request.source == request.destination:
        raise ConfigError(
            where=request.destination,
            found="the same file as SRC and DST",
            expected="two different files",
            remedy="Name another DST.",
        )
    labels = tuple(_labels(name) for name in request.label_sets)
    if not labels:
        raise ConfigError(
            where="--label-set",
            found="no label set",
            expected="the classes of the weights",
            remedy="Add --label-set.",
        )
    chosen = _preprocessing(request.preprocessing)
    data = read_url(request.source)
    for kind, checksum in (("md5", request.md5), ("sha256", request.sha256)):
        if checksum is not None:
            check_checksum(data, "md5" if kind == "md5" else "sha256", checksum, where)
    file = posixpath.basename(request.source)
    identified = identify_published(data, file, where)
    known = identified or find_published(file)
    if known:
        _check_published(known, request, f"{where}, by its {'checksum' if identified else 'name'}")
    is_by_name = False
    if chosen is None and known and known.label_sets:
        chosen, is_by_name = PREPROCESSINGS[known.preprocessing], not identified
    digest = hashlib.sha256(data).hexdigest()
    options = ConvertOptions(request.format, request.variant, labels, chosen, request.output_stride)
    converted = convert_bytes(data, options, where)
    del data  # frees memory: the result is as large as the source
    written = _file(converted, digest, identified, request.destination)
    refuse_overwriting(request.destination, written.data)
    write_url(request.destination, written.data)
    notes = converted.notes
    if known and is_by_name:
        notes = (f"the preprocessing is that of the published {known.file}, by its name", *notes)
    return ConvertResult(
        request.destination,
        written.sha256,
        len(written.data),
        identified.file if identified else None,
        notes,
        describe(written),
    )


def halve(source: str, destination: str) -> WeightsFile:
    """Write a copy of a weights file in float16 and return it; loading still gives float32.

    Args:
        source: name or URL of a weights file.
        destination: URL of the file to write.

    Raises:
        WeightsError: the source is not a weights file, a value is too large for float16, or the
            destination exists with other bytes.
        ConfigError: source and destination are the same.
        StoreError: the source cannot be read, or the destination cannot be written.
    """
    if source == destination:
        raise ConfigError(
            where=destination,
            found="the same file as SRC and DST",
            expected="two different files",
            remedy="Name another DST.",
        )
    file = load_weights(source)
    written = WeightsFile(save_weights(file.load(), file.info, half=True), f"weights {destination}")
    written.load()  # raises for values that became infinite, and names the tensor
    refuse_overwriting(destination, written.data)
    write_url(destination, written.data)
    return written


def describe(file: WeightsFile) -> dict[str, Any]:
    """Return the header of a weights file as a JSON document; tensors are not loaded."""
    info, arch = file.info, file.info.architecture
    tensors = {name: {"dtype": tensor.dtype, "shape": list(tensor.shape),
                      "parameters": tensor.parameters}
               for name, tensor in file.tensors.items()}  # fmt: skip
    heads = zip(arch.head_classes, (info.labels, *info.other_labels), strict=True)
    return {
        "variant": arch.variant,
        "width": arch.width,
        "upsampling": arch.upsampling,
        "output_stride": arch.output_stride,
        "heads": [{"name": head, "label_set": labels.name, "classes": list(labels.classes)}
                  for head, labels in heads],
        "preprocessing": info.preprocessing.to_dict(),
        "initialisation": info.is_initialisation,
        "int8": bool(info.int8_peaks),
        "origin": dict(info.origin),
        "sha256": file.sha256,
        "bytes": len(file.data),
        "parameters": sum(tensor["parameters"] for tensor in tensors.values()),
        "tensors": tensors,
    }  # fmt: skip


def try_out(file: WeightsFile, sha256: str | None = None) -> dict[str, Any]:
    """Load a whole weights file and run its network on a small noise image.

    Args:
        file: weights file to try.
        sha256: required SHA-256 checksum; None: not checked.

    Returns:
        JSON document: checksum, variant, number of parameters, and [min, max] logit per head.

    Raises:
        WeightsError: the checksum differs, a tensor is missing, has the wrong shape or is not
            finite, or the logits are not finite.
    """
    if sha256 is not None:
        check_checksum(file.data, "sha256", sha256, file.where)
    model = file.load()
    generator = torch.Generator().manual_seed(0)
    channels = model.architecture.input_channels
    image = 255 * torch.rand(1, channels, *TRIAL_SIZE, generator=generator)
    pre = file.info.preprocessing
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (pre.mean, pre.std))
    with torch.inference_mode():
        logits = model.forward_heads((image - mean) / std)
    for head, values in logits.items():
        if not torch.isfinite(values).all():
            raise WeightsError(
                where=file.where,
                found=f"logits{f' of head {head}' if head else ''} hold NaN or infinity",
                expected="finite numbers for a noise image",
                remedy="The weights are damaged or too large: use another file.",
            )
    return {
        "sha256": file.sha256,
        "variant": file.info.variant,
        "parameters": sum(tensor.parameters for tensor in file.tensors.values()),
        "initialisation": file.info.is_initialisation,
        "logits": {head: [float(values.min()), float(values.max())]
                   for head, values in logits.items()},
    }  # fmt: skip


def _labels(name: str) -> LabelSet:
    return label_set(name) if name in LABEL_SETS else read_label_set(name)


def _preprocessing(name: str | None) -> Preprocessing | None:
    if name is None:
        return None
    if name not in PREPROCESSINGS:
        raise ConfigError(
            where="--preprocessing",
            found=f"{name!r}",
            expected=f"one of {', '.join(PREPROCESSINGS)}",
            remedy="Choose one of these.",
        )
    return PREPROCESSINGS[name]


def _check_published(entry: Published, request: ConvertRequest, where: str) -> None:
    if entry.format != request.format or entry.variant not in (None, request.variant):
        variant = f" --variant {entry.variant}" if entry.variant else ""
        raise WeightsError(
            where=where,
            found=f"the published {entry.file}",
            expected=f"--from {request.format} --variant {request.variant}",
            remedy=f"Use --from {entry.format}{variant}, or rename the file if its name is a "
            "coincidence.",
        )


def _file(
    converted: Converted, source_sha256: str, published: Published | None, destination: str
) -> WeightsFile:
    origin = {**converted.info.origin, "source_sha256": source_sha256}
    if published:
        origin["published"] = published.file
    info = replace(converted.info, origin=origin)
    return WeightsFile(save_weights(converted.model, info), f"weights {destination}")


def calibrate(source: str, destination: str, images: str, max_images: int) -> WeightsFile:
    """Write a copy of a weights file with the int8 ranges of its layers, and return it.

    Args:
        source: name or URL of a weights file.
        destination: URL of the file to write.
        images: URL of an input of `fcnseg run`; its labels are not read.
        max_images: upper bound of images to measure, taken from shards spread over the input.

    Raises:
        WeightsError: the source is not a weights file of a network for int8, the destination exists
            with other bytes, or no image can be decoded.
        ConfigError: source and destination are the same.
        InputError: the input is empty.
        StoreError: the input or a file cannot be read or written.
    """
    if source == destination:
        raise ConfigError(
            where=destination,
            found="the same file as SRC and DST",
            expected="two different files",
            remedy="Name another DST.",
        )
    file = load_weights(source)
    file.check_is_trained()
    listed = list_source(InputConfig(url=images), file.info.labels, LimitsConfig())
    info = measure_int8_ranges(file, calibration_images(listed, max_images))
    is_half = {tensor.dtype for tensor in file.tensors.values()} == {"F16"}
    data = save_weights(file.load(), info, half=is_half)
    written = WeightsFile(data, f"weights {destination}")
    refuse_overwriting(destination, written.data)
    write_url(destination, written.data)
    return written


def calibration_images(source: TrainingSource, max_images: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the valid images among the first ones of evenly spread shards."""
    count = max(1, min(max_images, len(source.shards)))
    shards = [source.shards[place * len(source.shards) // count] for place in range(count)]
    images_per_shard = -(-max_images // count)
    limits = source.limits.model_copy(update={"chunk_images": images_per_shard})
    sampled = replace(source, limits=limits)
    left = max_images
    for shard in shards:
        try:
            samples = next(sampled.chunks(shard)).samples[:left]
        except ShardError as error:
            log.warning("skipped: %s", error)
            continue
        for sample in samples:
            try:
                yield decode_image(sample.image, sample.location, source.limits.max_image_pixels)
                left -= 1
            except ImageError as error:
                log.warning("skipped: %s", error)
