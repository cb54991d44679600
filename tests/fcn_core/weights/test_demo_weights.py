"""The shipped weights: that they are what their page says, and know what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from docs.demo_scenes import TRAIN_SEEDS, VAL_SEEDS, write_scenes
from fcn_core.datasets.scenes import render_scene
from fcn_core.labels import SCENES
from fcn_core.metrics import ConfusionMatrix
from fcn_core.predictor import Predictor
from fcn_core.weights.weights_file import read_weights
from pipeline.cli.commands.demo import FIRST_SEED

DOCS = Path(__file__).parents[3] / "docs"
UNSEEN = range(2_000_000, 2_000_024)


def test_they_know_scenes_they_have_never_seen() -> None:
    predictor = Predictor.load("demo")
    confusion = ConfusionMatrix(SCENES.num_classes)
    for seed in UNSEEN:
        scene = render_scene(seed)
        confusion.update(scene.label, predictor.predict([scene.image])[0].mask)
    assert confusion.scores().mean_iou >= 0.80


def test_the_number_of_threads_changes_no_mask() -> None:
    """Sums may be taken in another order, which is rounding; no pixel of these is that close."""
    predictor = Predictor.load("demo")
    images = [render_scene(seed).image for seed in UNSEEN[:8]]
    before, found = torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found[threads] = predictor.predict(images)
    finally:
        torch.set_num_threads(before)
    for one, *others in zip(*found.values(), strict=True):
        for other in others:
            assert np.array_equal(one.mask, other.mask)
            assert one.mean_confidence == pytest.approx(other.mean_confidence, abs=1e-5)


def test_no_scene_that_scores_or_demonstrates_has_trained() -> None:
    for seeds in (VAL_SEEDS, UNSEEN, range(FIRST_SEED, FIRST_SEED + 1000)):
        assert not set(seeds) & set(TRAIN_SEEDS)


def test_their_page_and_recipe_are_theirs() -> None:
    page = (DOCS / "demo-weights.md").read_text()
    recipe = yaml.safe_load((DOCS / "demo-weights.yaml").read_text())
    file = read_weights("demo")
    assert file.sha256 in page and f"{len(file.data):,} bytes" in page
    origin = file.info.origin
    assert origin["by"] == "fcnseg train"
    assert origin["seed"] == recipe["train"]["seed"]
    assert origin["step"] == recipe["train"]["max_steps"]
    assert file.info.variant == recipe["model"]["variant"]
    assert file.info.architecture.width == recipe["model"]["width"]
    for name in ("batch_size", "learning_rate"):
        assert origin["recipe"][name] == recipe["train"][name]


def test_scenes_are_written_as_shards(tmp_path: Path) -> None:
    write_scenes(tmp_path / "a", range(5), map(render_scene, range(5)), 2)
    assert [path.name for path in sorted((tmp_path / "a").iterdir())] == [
        "scenes-000.tar", "scenes-001.tar", "scenes-002.tar",
    ]  # fmt: skip
