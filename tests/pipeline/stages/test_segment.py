"""The segment stage without its process: decoding beside the network changes nothing."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fcn_core.weights.weights_file import read_weights
from pipeline.inputs.sample import Sample
from pipeline.stages import segment
from pipeline.stages.records import SegmentedPart
from pipeline.stages.segment import Segmenter
from pipeline.stages.spec import NetworkSettings
from tests.support import world

SETTINGS = NetworkSettings(world.TINY, "fp32", "cpu", 1, None, 10**6)
KINDS = ("plain", "labeled", "no image", "no class", "other size")


def sample(number: int, kind: str) -> Sample:
    size = world.SIZES[number % 4]
    image = b"no image" if kind == "no image" else world.jpeg(world.image(number, size))
    truth = {
        "labeled": world.label(number, size),
        "no class": np.full(size, 7, np.uint8),
        "other size": np.zeros((3, 3), np.uint8),
    }.get(kind)
    label = None if truth is None else world.png(truth)
    return Sample(f"k{number}", image, label, f"s.tar#{number}")


@pytest.fixture(scope="module")
def segmenter(weights: Path) -> Segmenter:
    return Segmenter(SETTINGS, read_weights(weights))


def content(piece: SegmentedPart) -> list[object]:
    images = [
        (i.key, i.mask.tolist(), i.class_pixels, i.mean_confidence, i.correct_pixels, repr(i.iou))
        for i in piece.images
    ]
    previews = [(p.key, p.image.tolist(), p.mask.tolist(), p.why) for p in piece.previews]
    return [images, piece.failures, previews, piece.confusion.matrix.tolist()]


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    kinds=st.lists(st.sampled_from(KINDS), max_size=12),
    decoders=st.integers(1, 4),
    window=st.sampled_from([1, 3000, 2**28]),
)
def test_decoders_and_windows_change_no_result(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, kinds: list[str], decoders: int,
    window: int,
) -> None:  # fmt: skip
    samples = [sample(number, kind) for number, kind in enumerate(kinds)]
    with monkeypatch.context() as patch:
        patch.setattr(segmenter, "decoders", 0)
        expected = segmenter(samples)
        patch.setattr(segmenter, "decoders", decoders)
        patch.setattr(segment, "WINDOW_BYTES", window)
        assert content(segmenter(samples)) == content(expected)
    assert len(expected.images) + len(expected.failures) == len(samples)


def test_while_the_network_computes_the_next_images_are_decoded(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [sample(number, "plain") for number in range(4)]
    began: list[str] = []
    third = threading.Event()
    decode, predict = segment.decode_sample, segmenter.predictor.predict

    def watched(item: Sample, *args: object) -> object:
        began.append(item.key)
        if item.key == "k2":
            third.set()
        return decode(item, *args)  # type: ignore[arg-type]

    def waiting(*args: object, **kwargs: object) -> object:
        assert third.wait(30), f"only {began} were begun"
        return predict(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(segment, "decode_sample", watched)
    monkeypatch.setattr(segmenter.predictor, "predict", waiting)
    monkeypatch.setattr(segmenter, "decoders", 1)
    monkeypatch.setattr(segment, "WINDOW_BYTES", 1)
    assert [image.key for image in segmenter(samples).images] == ["k0", "k1", "k2", "k3"]


@pytest.mark.parametrize("decoders", [0, 2])
def test_what_is_in_work_is_announced(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, decoders: int
) -> None:
    """At every moment a sample is decoded or in the network, the last announcement names it."""
    announced: list[list[int]] = []
    decode, forward = segment.decode_sample, segmenter.predictor.logits

    def watched(item: Sample, *args: object) -> object:
        assert int(item.key[1:]) in announced[-1]
        return decode(item, *args)  # type: ignore[arg-type]

    def computed(batch: torch.Tensor, head: str | None) -> torch.Tensor:
        assert announced[-1]
        return forward(batch, head)

    monkeypatch.setattr(segment, "decode_sample", watched)
    monkeypatch.setattr(segmenter.predictor, "logits", computed)
    monkeypatch.setattr(segmenter, "decoders", decoders)
    segmenter([sample(n, "plain") for n in range(6)], lambda places: announced.append(list(places)))
    assert {place for places in announced for place in places} == set(range(6))
    assert all(len(places) <= (4 + 1 if decoders else 1) for places in announced)


def test_scores_that_are_no_numbers_are_no_masks(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [sample(n, "labeled") for n in range(6)]
    calm = content(segmenter([samples[n] for n in (0, 1, 3, 4, 5)]))
    height, plain = world.SIZES[2][0], segmenter.predictor.logits

    def logits(x: Tensor, head: str | None) -> Tensor:
        found = plain(x, head)
        if x.shape[2] == height:
            found[0, 1, 3, 4] = torch.nan
        return found

    assert [size[0] == height for size in world.SIZES].count(True) == 1
    monkeypatch.setattr(segmenter.predictor, "logits", logits)
    found = segmenter(samples)
    (failure,) = found.failures
    assert (failure.key, failure.error, failure.location) == ("k2", "WeightsError", "s.tar#2")
    assert "the network's scores are NaN or infinite" in failure.reason
    assert content(replace(found, failures=())) == calm


def test_a_cpu_is_left_to_the_network(weights: Path) -> None:
    found = [
        Segmenter(replace(SETTINGS, decoders=given), read_weights(weights)).decoders
        for given in (None, 3)
    ]
    assert found == [0, 3]
