"""Each chunk read, computed and written appends a line to a file when it begins and when it ends;
see `tests.support.cluster_trace`."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

FILE = os.environ.get("FCNSEG_TEST_TRACE", os.devnull)
PAUSE = os.environ.get("FCNSEG_TEST_PAUSE", os.devnull)
NODE = os.environ.get("FCNSEG_TEST_NODE", "?")


def _tell(what: str, moment: str, name: str) -> None:
    with open(FILE, "a") as file:
        file.write(f"{what} {moment} {NODE} {name}\n")


def _traced(
    what: str, call: Callable[..., Any], name_of: Callable[..., str], pause: str | None = None
) -> Callable[..., Any]:
    @functools.wraps(call)
    def traced(*args: Any, **kwargs: Any) -> Any:
        name = name_of(*args)
        _tell(what, "begins", name)
        if pause is not None:
            with open(pause) as file:
                time.sleep(float(file.read()))
        result = call(*args, **kwargs)
        _tell(what, "ends", name)
        return result

    return traced


def chunks(module: ModuleType) -> None:
    """Of `pipeline.stages.read`."""
    plain = module.read_chunks

    def read_chunks(shard: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for chunk in plain(shard, *args, **kwargs):
            _tell("read", "ends", chunk.samples[0].location)
            yield chunk

    module.read_chunks = read_chunks


def segment(module: ModuleType) -> None:
    """Of `pipeline.stages.segment`."""
    segmenter = module.Segmenter
    segmenter.__call__ = _traced(
        "compute", segmenter.__call__, lambda self, samples, *more: samples[0].location, PAUSE
    )


def writers(module: ModuleType) -> None:
    """Of `pipeline.stages.write`."""
    module.write_chunk = _traced(
        "write", module.write_chunk, lambda segmented, job: f"{segmented.shard} {segmented.seq}"
    )
