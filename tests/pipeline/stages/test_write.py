"""Confidence maps: what the network says of every pixel, beside the masks."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fcn_core.images import decode_image
from fcn_core.predictor import Predictor
from pipeline.driver import plan, run
from pipeline.output.gc import find_garbage
from pipeline.output.verify import verify
from pipeline.storage.store import Store
from tests.support import world


@pytest.fixture
def output(shards: Path, weights: Path, tmp_path: Path) -> Path:
    run(world.config(shards, tmp_path / "out", weights, output__masks=("parquet", "confidence")))
    return tmp_path / "out"


def test_maps_are_the_softmax_of_the_chosen_class(weights: Path) -> None:
    predictor = Predictor.load(weights)
    image = world.image(3, (21, 34))
    found = predictor.predict([image], confidence=True)[0]
    preprocessing = predictor.info.preprocessing
    assert preprocessing.channels == "RGB"
    scaled = (image - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)
    with torch.inference_mode():
        logits = predictor.model(torch.from_numpy(scaled).permute(2, 0, 1)[None], None)[0].double()
    expected = 255 * logits.softmax(0).max(0).values.numpy()
    assert found.confidence is not None and found.confidence.dtype == np.uint8
    assert np.abs(found.confidence - expected).max() <= 0.5 + 1e-2
    assert found.confidence.std() > 0
    plain = predictor.predict([image])[0]
    assert plain.confidence is None and np.array_equal(plain.mask, found.mask)


def test_a_run_leaves_one_for_every_image(output: Path, shards: Path, weights: Path) -> None:
    predictor = Predictor.load(weights)
    paths = sorted((output / "confidence").rglob("*.png"))
    assert len(paths) == 12
    for path in paths:
        data = world.samples(int(path.parent.name[1:]))[f"{path.stem}.jpg"]
        expected = predictor.predict([decode_image(data)], confidence=True)[0]
        with Image.open(io.BytesIO(path.read_bytes())) as map_:
            assert map_.mode == "L"
            assert np.array_equal(np.asarray(map_), expected.confidence)
        assert np.mean(expected.confidence) / 255 == pytest.approx(
            expected.mean_confidence, abs=0.5 / 255
        )


def test_commits_verify_and_gc_know_them(output: Path) -> None:
    store = Store(str(output))
    commit = json.loads((output / "_commits/s1.json").read_text())
    named = {file["path"] for file in commit["files"]}
    assert {f"confidence/s1/img{n}.png" for n in range(4)} <= named
    assert commit["masks"] == ["confidence", "parquet"]
    assert verify(store, deep=True).problem_count == 0
    assert [garbage.path for garbage in find_garbage(store, 0.0)] == []
    (output / "confidence/s1/img0.png").write_bytes(b"x")
    (output / "confidence/s1/orphan.png").write_bytes(b"x")
    assert [path for path, _ in verify(store).problems] == ["confidence/s1/img0.png"]
    assert [garbage.path for garbage in find_garbage(store, 0.0)] == ["confidence/s1/orphan.png"]


def test_asked_for_later_they_are_added_and_nothing_else_changes(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(world.config(shards, out, weights, output__masks=("parquet",)))
    before = {path: path.read_bytes() for path in (out / "masks").iterdir()}
    fingerprint = json.loads((out / "_run.json").read_text())["fingerprint"]
    later = world.config(shards, out, weights, output__masks=("parquet", "confidence"))
    assert len(plan(later).pending) == 3
    assert run(later).done_now == 3
    assert {path: path.read_bytes() for path in (out / "masks").iterdir()} == before
    assert json.loads((out / "_run.json").read_text())["fingerprint"] == fingerprint
    assert len(list((out / "confidence").rglob("*.png"))) == 12


def test_maps_alone_are_refused(shards: Path, weights: Path, tmp_path: Path, fcnseg: Any) -> None:
    words = ("run", shards, tmp_path / "out", "--weights", weights, "--masks", "confidence")
    code, _, err = fcnseg(*words)
    assert code == 2 and "a format of the masks besides confidence" in err
