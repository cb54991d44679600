"""`fcnseg weights calibrate`, and runs in int8 with what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fcn_core.calibration import measure_int8_ranges
from fcn_core.errors import WeightsError
from fcn_core.images import decode_image
from fcn_core.inference.int8 import has_int8
from fcn_core.predictor import Predictor
from fcn_core.weights.weights_file import read_weights
from pipeline.config import InputConfig, LimitsConfig
from pipeline.driver import run
from pipeline.errors import ConfigError, InputError
from pipeline.inputs.shard import Shard
from pipeline.stages.read import Chunk
from pipeline.training.source import TrainingSource, list_source
from pipeline.weights import calibrate, calibration_images
from tests.support import world

Fcnseg = Callable[..., tuple[int, str, str]]
needs_units = pytest.mark.skipif(not has_int8(), reason="this CPU has no VNNI and no AMX")


@pytest.fixture
def ready(shards: Path, weights: Path, tmp_path: Path) -> Path:
    """Weights with ranges."""
    path = tmp_path / "int8.safetensors"
    calibrate(str(weights), str(path), str(shards), 12)
    return path


def images_of(shard: int, images: int) -> list[NDArray[np.uint8]]:
    members = world.samples(shard)
    return [decode_image(members[f"img{index}.jpg"], "", 10**8) for index in range(images)]


def test_the_ranges_are_those_of_images_spread_over_the_input(
    fcnseg: Fcnseg, shards: Path, weights: Path, tmp_path: Path
) -> None:
    path = tmp_path / "int8.safetensors"
    words = ("weights", "calibrate", weights, path, "--input", shards, "--pictures", 5)
    code, out, err = fcnseg(*words)
    assert code == 0, err
    before, after = read_weights(weights), read_weights(path)
    assert f"{path}: ranges of 15 layers on 5 images" in out and after.sha256 in out
    seen = [*images_of(0, 2), *images_of(1, 2), *images_of(2, 1)]
    assert after.info == measure_int8_ranges(before, seen)
    assert after.tensors == before.tensors
    old, new = before.load().state_dict(), after.load().state_dict()
    assert all(torch.equal(new[name], old[name]) for name in old)
    assert fcnseg(*words)[0] == 0  # the same bytes are there already
    code, out, _ = fcnseg("weights", "show", path, "--json")
    assert json.loads(out)["int8"] is True
    assert "has the layer ranges that int8 needs" in fcnseg("weights", "show", path)[1]


@pytest.mark.parametrize(("shards_count", "most"), [(15, 8), (15, 14), (3, 3), (2, 9), (9, 1)])
def test_shards_are_spread_over_the_whole_input(
    tmp_path: Path, shards_count: int, most: int
) -> None:
    world.write_shards(tmp_path / "in", shards_count, 1)
    found = list_source(InputConfig(url=str(tmp_path / "in")), world.TINY, LimitsConfig())
    read: list[str] = []

    class Watched(TrainingSource):
        def chunks(self, shard: Shard) -> Iterator[Chunk]:
            read.append(shard.id)
            return super().chunks(shard)

    images = list(calibration_images(Watched(**vars(found)), most))
    ids = [shard.id for shard in found.shards]
    places = [ids.index(name) for name in read]
    assert len(places) == len(images) == min(most, shards_count)
    gaps = np.diff([*places, shards_count])
    assert places[0] == 0 and gaps.max() - gaps.min() <= 1


def test_halves_stay_halves(shards: Path, tmp_path: Path) -> None:
    found = calibrate("demo", str(tmp_path / "w.safetensors"), str(shards), 1)
    assert found.tensors == read_weights("demo").tensors
    assert {tensor.dtype for tensor in found.tensors.values()} == {"F16"}


def test_what_is_damaged_is_passed_over(
    shards: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = {"bad.jpg": b"no image", **world.samples(0)}
    (shards / "s0.tar").write_bytes(world.tar(members))
    (shards / "cut.tar").write_bytes(b"no tar")
    with caplog.at_level("WARNING", "fcnseg"):
        found = calibrate(str(weights), str(tmp_path / "w.safetensors"), str(shards), 100)
    assert found.info.origin["int8_pictures"] == 12
    passed_over = [line for line in caplog.text.splitlines() if "skipped" in line]
    assert len(passed_over) == 2
    assert "cut.tar" in passed_over[0] and "bad.jpg" in passed_over[1]


def test_what_cannot_be_calibrated_writes_nothing(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    target = tmp_path / "w.safetensors"
    with pytest.raises(ConfigError, match="the same file as SRC and DST"):
        calibrate(str(weights), str(weights), str(shards), 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        calibrate(str(weights), str(target), str(tmp_path / "empty"), 4)
    for shard in shards.iterdir():
        shard.write_bytes(world.tar({"bad.jpg": b"no image"}))
    with pytest.raises(WeightsError, match="no readable images"):
        calibrate(str(weights), str(target), str(shards), 4)
    assert not target.exists()
    target.write_bytes(b"something else")
    world.write_shards(shards)
    with pytest.raises(WeightsError, match="with other bytes"):
        calibrate(str(weights), str(target), str(shards), 4)
    assert target.read_bytes() == b"something else"


def test_int8_without_ranges_is_refused_before_anything_is_written(
    fcnseg: Fcnseg, shards: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = (shards, out, "--weights", weights, "--precision", "int8")
    code, _, err = fcnseg("run", *words)
    assert code == 1 and "no int8 range of layer conv1_1" in err and "weights calibrate" in err
    code, _, err = fcnseg("run", *words, "--plain-forward")
    assert code == 2 and "int8 with the plain forward pass" in err
    assert not out.exists()
    image = tmp_path / "p.jpg"
    image.write_bytes(world.samples(0)["img0.jpg"])
    code, _, err = fcnseg("predict", image, "--output", out, *words[2:])
    assert code == 1 and "no int8 range of layer conv1_1" in err


@needs_units
def test_a_run_in_int8_gives_the_masks_of_the_predictor(
    shards: Path, ready: Path, tmp_path: Path
) -> None:
    config = world.config(shards, tmp_path / "out", ready, model__precision="int8")
    assert run(config).exit_code == 0
    predictor = Predictor.load(ready, precision="int8")
    for index, image in enumerate(images_of(0, 4)):
        [path] = tmp_path.glob(f"out/png/**/s0*/**/img{index}.png")
        assert np.array_equal(Image.open(path), predictor.predict([image])[0].mask)
