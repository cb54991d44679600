"""Weights files as commands need them: convert one, describe one, try one out.

`fcnseg weights calibrate`: the ranges that int8 needs, from pictures of an input.
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

TRIAL_SIZE = (48, 64)
"""Height and width, px, of the picture that `try_out` feeds."""


@dataclass(frozen=True)
class ConvertRequest:
    """What `fcnseg weights convert` was asked for; see its options.

    Attributes:
        source: URL of the file.
        destination: URL of the file to write.
        format: of the source.
        variant: of the network.
        label_sets: name or YAML file, one per head.
        preprocessing: a key of `PREPROCESSINGS`; None: what is known of the file.
        output_stride: 16 or 8 for a dilated network of the same weights.
        md5: that the source must have.
        sha256: that the source must have.
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
    """Refuse to write a weights file over another one.

    Args:
        destination: URL.
        data: what would be written; the same bytes may be there already.

    Raises:
        WeightsError: other bytes are there.
    """
    try:
        there = read_url(destination)
    except StoreError:  # nothing there; or writing will say what is wrong with the place
        return
    if there != data:
        raise WeightsError(
            where=masked(destination),
            found="a file is there already, with other bytes",
            expected="a new name",
            remedy="Remove it first, or name another DST.",
        )


@dataclass(frozen=True)
class ConvertResult:
    """What was written, and why it is what it is."""

    destination: str
    sha256: str
    bytes: int
    published: str | None
    notes: tuple[str, ...]
    description: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {**vars(self), "notes": list(self.notes)}


def convert(request: ConvertRequest) -> ConvertResult:
    """Convert a file and write the result.

    Raises:
        WeightsError: the file is not what it was said to be; see `fcn_core.weights.convert.convert`.
        ConfigError, LabelSetError: a label set or the preprocessing does not exist.
        StoreError: the source cannot be read or the destination not written.
    """
    where = f"weights {request.source}"
    if request.source == request.destination:
        raise ConfigError(
            where=request.destination,
            found="SRC and DST are one",
            expected="two",
            remedy="Name another DST.",
        )
    labels = tuple(_labels(name) for name in request.label_sets)
    if not labels:
        raise ConfigError(
            where="--label-set",
            found="nothing",
            expected="the classes of the weights",
            remedy="Name it.",
        )
    chosen = _preprocessing(request.preprocessing)
    data = read_url(request.source)
    for kind, wanted in (("md5", request.md5), ("sha256", request.sha256)):
        if wanted is not None:
            check_checksum(data, "md5" if kind == "md5" else "sha256", wanted, where)
    file = posixpath.basename(request.source)
    found = identify_published(data, file, where)
    known = found or find_published(file)
    if known:
        _check_published(known, request, f"{where}, by its {'checksum' if found else 'name'}")
    by_name = False
    if chosen is None and known and known.label_sets:
        chosen, by_name = PREPROCESSINGS[known.preprocessing], not found
    digest = hashlib.sha256(data).hexdigest()
    wanted_network = ConvertOptions(
        request.format, request.variant, labels, chosen, request.output_stride
    )
    converted = convert_bytes(data, wanted_network, where)
    del data  # as large as the result, which is about to be made
    written = _file(converted, digest, found, request.destination)
    refuse_overwriting(request.destination, written.data)
    write_url(request.destination, written.data)
    notes = converted.notes
    if known and by_name:
        notes = (f"the preprocessing is that of the published {known.file}, by its name", *notes)
    return ConvertResult(
        request.destination,
        written.sha256,
        len(written.data),
        found.file if found else None,
        notes,
        describe(written),
    )


def halve(source: str, destination: str) -> WeightsFile:
    """Write a weights file again with its numbers in float16; it is loaded as float32 as before.

    Args:
        source: name or URL of a weights file.
        destination: URL of the file to write.

    Raises:
        WeightsError: it is not a weights file, a number of it is too large for float16, or another
            file is there.
        ConfigError: both are one.
        StoreError: the source cannot be read or the destination not written.
    """
    if source == destination:
        raise ConfigError(
            where=destination,
            found="SRC and DST are one",
            expected="two",
            remedy="Name another DST.",
        )
    file = load_weights(source)
    written = WeightsFile(save_weights(file.load(), file.info, half=True), f"weights {destination}")
    written.load()  # refuses what has become infinite, with the name of the tensor
    refuse_overwriting(destination, written.data)
    write_url(destination, written.data)
    return written


def describe(file: WeightsFile) -> dict[str, Any]:
    """What a weights file says of itself, from its header: a JSON-able document."""
    info, arch = file.info, file.info.architecture
    tensors = {name: {"dtype": found.dtype, "shape": list(found.shape),
                      "parameters": found.parameters}
               for name, found in file.tensors.items()}  # fmt: skip
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
    """Load a weights file wholly and label a small picture with it.

    Args:
        file: to try.
        sha256: that it must have.

    Returns:
        Its sha256, its parameters, and per head the least and greatest logit of a picture of noise.

    Raises:
        WeightsError: the checksum differs, a tensor is missing, of the wrong shape or not finite,
            or the logits are not finite.
    """
    if sha256 is not None:
        check_checksum(file.data, "sha256", sha256, file.where)
    model = file.load()
    generator = torch.Generator().manual_seed(0)
    channels = model.architecture.input_channels
    picture = 255 * torch.rand(1, channels, *TRIAL_SIZE, generator=generator)
    pre = file.info.preprocessing
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (pre.mean, pre.std))
    with torch.inference_mode():
        logits = model.forward_heads((picture - mean) / std)
    for head, found in logits.items():
        if not torch.isfinite(found).all():
            raise WeightsError(
                where=file.where,
                found=f"logits{f' of head {head}' if head else ''} hold NaN or infinity",
                expected="finite numbers for a picture of noise",
                remedy="The weights are damaged or too large: use another file.",
            )
    return {
        "sha256": file.sha256,
        "variant": file.info.variant,
        "parameters": sum(tensor.parameters for tensor in file.tensors.values()),
        "initialisation": file.info.is_initialisation,
        "logits": {head: [float(found.min()), float(found.max())]
                   for head, found in logits.items()},
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
            remedy="Name one.",
        )
    return PREPROCESSINGS[name]


def _check_published(entry: Published, request: ConvertRequest, where: str) -> None:
    if entry.format != request.format or entry.variant not in (None, request.variant):
        variant = f" --variant {entry.variant}" if entry.variant else ""
        raise WeightsError(
            where=where,
            found=f"the published {entry.file}",
            expected=f"--from {request.format} --variant {request.variant}",
            remedy=f"Say --from {entry.format}{variant}; rename it if it is another file on purpose.",
        )


def _file(
    converted: Converted, source_sha256: str, found: Published | None, destination: str
) -> WeightsFile:
    origin = {**converted.info.origin, "source_sha256": source_sha256}
    if found:
        origin["published"] = found.file
    info = replace(converted.info, origin=origin)
    return WeightsFile(save_weights(converted.model, info), f"weights {destination}")


log = logging.getLogger("fcnseg")


def calibrate(source: str, destination: str, images: str, most: int) -> WeightsFile:
    """Write a weights file again with the ranges of its layers on some pictures.

    Args:
        source: name or URL of a weights file.
        destination: URL of the file to write.
        images: an input of `fcnseg run`; its labels are not looked at.
        most: pictures at most, from shards spread over the input.

    Raises:
        WeightsError: it is no weights file of a network for int8, another file is at the
            destination, or no picture can be read.
        ConfigError: source and destination are one.
        InputError: there is no input.
        StoreError: something cannot be read or written.
    """
    if source == destination:
        raise ConfigError(
            where=destination,
            found="SRC and DST are one",
            expected="two",
            remedy="Name another DST.",
        )
    file = load_weights(source)
    file.check_is_trained()
    found = list_source(InputConfig(url=images), file.info.labels, LimitsConfig())
    info = measure_int8_ranges(file, _pictures(found, most))
    is_half = {tensor.dtype for tensor in file.tensors.values()} == {"F16"}
    data = save_weights(file.load(), info, half=is_half)
    written = WeightsFile(data, f"weights {destination}")
    refuse_overwriting(destination, written.data)
    write_url(destination, written.data)
    return written


def _pictures(source: TrainingSource, most: int) -> Iterator[NDArray[np.uint8]]:
    """Those that decode of the first of each chosen shard."""
    count = max(1, min(most, len(source.shards)))
    shards = [source.shards[place * len(source.shards) // count] for place in range(count)]
    each = -(-most // count)
    few = replace(source, limits=source.limits.model_copy(update={"chunk_images": each}))
    left = most
    for shard in shards:
        try:
            samples = next(few.chunks(shard)).samples[:left]
        except ShardError as error:
            log.warning("passed over: %s", error)
            continue
        for sample in samples:
            try:
                yield decode_image(sample.image, sample.location, source.limits.max_image_pixels)
                left -= 1
            except ImageError as error:
                log.warning("passed over: %s", error)
