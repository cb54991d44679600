"""`fcnseg weights calibrate`: the ranges that int8 needs, from pictures of an input."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fcn_core.calibration import calibrated
from fcn_core.checkpoint import WeightsFile, save_weights
from fcn_core.errors import ImageError
from fcn_core.images import decode_image
from pipeline.config import InputConfig, LimitsConfig
from pipeline.errors import ConfigError, ShardError
from pipeline.prepare import load_weights
from pipeline.store import write_url
from pipeline.training.source import Source, list_source
from pipeline.weights import refuse_overwriting

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
        raise ConfigError(destination, "SRC and DST are one", "two", "Name another DST.")
    file = load_weights(source)
    file.check_is_trained()
    found = list_source(InputConfig(url=images), file.info.labels, LimitsConfig())
    info = calibrated(file, _pictures(found, most))
    is_half = {tensor.dtype for tensor in file.tensors.values()} == {"F16"}
    data = save_weights(file.load(), info, half=is_half)
    written = WeightsFile(data, f"weights {destination}")
    refuse_overwriting(destination, written.data)
    write_url(destination, written.data)
    return written


def _pictures(source: Source, most: int) -> Iterator[NDArray[np.uint8]]:
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
