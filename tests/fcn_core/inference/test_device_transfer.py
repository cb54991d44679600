"""Carrying to a device and back beside the computing: what is read must have been written.

No CUDA is needed: `Streams` stands in for it. A copy is done as late as the rules of streams allow,
which is when somebody waits for it; until then its target holds rubbish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcn_core.inference import device_transfer
from fcn_core.inference.device_transfer import CudaTransfer
from fcn_core.predictor import Predictor
from tests.fcn_core.test_predictor import IMAGES, info, same

RUBBISH = 77


class Stream:
    def __init__(self, *_: object) -> None:
        self.queue: list[Callable[[], object]] = []
        self.has_waited = False

    def wait_stream(self, other: Stream) -> None:
        other.run(len(other.queue))
        self.has_waited = True

    def record_event(self) -> Event:
        self.has_waited = False
        return Event(self, len(self.queue))

    def run(self, count: int) -> None:
        todo, self.queue = self.queue[:count], self.queue[count:]
        with torch.inference_mode():  # as where it was queued
            for work in todo:
                work()


class Event:
    def __init__(self, stream: Stream, place: int) -> None:
        self.stream, self.place = stream, place

    def synchronize(self) -> None:
        self.stream.run(self.place)


class Streams:
    """In the place of `torch.cuda`; what computes, computes at once."""

    def __init__(self) -> None:
        self.created: list[Stream] = []  # of a transfer: up, then back
        self.computing = Stream()
        self.current = self.computing
        self.pinned: list[torch.Tensor] = []
        self.kept: list[torch.Tensor] = []

    def Stream(self, _: object) -> Stream:  # noqa: N802  # the name in `torch.cuda`
        self.created.append(Stream())
        return self.created[-1]

    def current_stream(self, _: object) -> Stream:
        return self.current

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def pin(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        self.pinned.append(torch.empty(tuple(shape), dtype=dtype))
        return self.pinned[-1]

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        assert self.current is not self.computing, "a copy beside the computing"
        target.fill_(RUBBISH)
        from_host = any(source is tensor for tensor in self.pinned)
        if from_host or self.current.has_waited:
            self.current.queue.append(lambda: target.copy_(source))

    def keep(self, tensor: torch.Tensor, _: Stream) -> None:
        self.kept.append(tensor)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    found = Streams()
    monkeypatch.setattr(device_transfer.torch, "cuda", found)
    monkeypatch.setattr(device_transfer, "queue_copy", found.copy)
    monkeypatch.setattr(device_transfer, "keep_until_done", found.keep)
    monkeypatch.setattr(device_transfer, "pinned_tensor", found.pin)
    return found


@pytest.fixture(scope="module")
def predictors(random_fcn):
    """By batch size: one, and one to have another device_transfer."""
    return {
        size: [Predictor(random_fcn(), info(), batch_size=size) for _ in range(2)]
        for size in (1, 3)
    }


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    chosen=st.lists(st.integers(0, len(IMAGES) - 1), max_size=9),
    size=st.sampled_from([1, 3]),
    confidence=st.booleans(),
    labeled=st.booleans(),
)
def test_nothing_is_read_before_it_is_there(streams, predictors, chosen, size, confidence, labeled):
    plain, carried = predictors[size]
    carried.transfer = CudaTransfer(torch.device("cpu"))
    carried.device = torch.device("meta")  # no CPU: counts there
    images = [IMAGES[index] for index in chosen]
    labels = [image[..., 0] if n % 2 else None for n, image in enumerate(images)]
    options = {"confidence": confidence, "labels": labels if labeled else None}
    told: list[list[int]] = []
    expected = plain.predict(images, **options)
    found = carried.predict(images, lambda batch: told.append(list(batch)), **options)
    for one, other in zip(found, expected, strict=True):
        assert same(one, other)
        for name in ("confidence", "pairs"):
            assert np.array_equal(getattr(one, name), getattr(other, name))
    # At most two batches are under way, and both may be to blame.
    assert all(len(set(batch)) == len(batch) <= 2 * size for batch in told)
    assert all(set(a) & set(b) for a, b in pairwise(told))


def test_a_copy_without_a_wait_is_seen(streams, predictors, monkeypatch):
    """Of the stand-in: each of the waits is needed."""
    for name in ("computing", "back"):
        carried = predictors[1][1]
        carried.transfer = CudaTransfer(torch.device("cpu"))
        deaf = streams.computing if name == "computing" else streams.created[-1]
        with monkeypatch.context() as patch:
            patch.setattr(deaf, "wait_stream", lambda other: None)
            found = carried.predict([IMAGES[0]])[0]
        assert not same(found, predictors[1][0].predict([IMAGES[0]])[0]), name


def test_memory_is_kept_for_the_streams_that_use_it(streams, predictors):
    carried = predictors[1][1]
    carried.transfer = CudaTransfer(torch.device("cpu"))
    carried.predict([IMAGES[0]])
    height, width = IMAGES[0].shape[:2]
    shapes = [tuple(tensor.shape) for tensor in streams.kept]
    assert shapes == [(1, height, width, 3), (1, height, width), (1,)]
