"""The fields of a training: described, documented, and what they make of a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from fcn_core.training.recipes import HEAVY, MODERN
from pipeline.errors import ConfigError
from pipeline.training.config import TrainConfig, load_train_config

DOCS = (Path(__file__).parents[3] / "docs" / "training.md").read_text()
OWN = [
    (f"{section}.{name}", field.description)
    for section in ("model", "train", "compute")
    for name, field in TrainConfig.model_fields[section].annotation.model_fields.items()
]


def load(*sets, **flags):
    return load_train_config(None, sets, {"input.url": "i", "output.url": "o", **flags})


@pytest.mark.parametrize(("name", "description"), OWN)
def test_every_field_is_described_and_documented(name, description):
    assert description
    assert f"`{name}`" in DOCS


def test_sections_are_named_as_everywhere():
    sections = {name for name, f in TrainConfig.model_fields.items() if f.annotation}
    assert sections == {"input", "val", "output", "model", "train", "compute", "limits"}
    kinds = (TrainConfig.model_fields[name].annotation for name in ("model", "train"))
    assert all(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)


def test_a_recipe_is_as_published_unless_told_otherwise():
    assert load("train.recipe=heavy").recipe() == HEAVY
    assert load().recipe() == MODERN
    changed = load("train.learning_rate=0.5", "train.crop=0", "train.max_steps=24").recipe()
    assert (changed.learning_rate, changed.augmentation.crop, changed.max_steps) == (0.5, None, 24)
    assert not changed.rate_by_width and changed.augmentation.scale == (1.0, 1.0)


def test_images_are_enlarged_as_told():
    assert load("train.scale=[1,1]").recipe().augmentation.scale == (1.0, 1.0)
    assert load("train.scale=[0.5,2]", "train.crop=0").recipe().augmentation.scale == (1.0, 1.0)
    for wrong in ("[1.5,0.75]", "[0,1]", "[1]"):
        with pytest.raises(ConfigError, match=r"train\.scale"):
            load(f"train.scale={wrong}")


def test_a_rate_that_is_named_holds_in_every_stage():
    recipe = load("train.recipe=heavy", "train.learning_rate=1e-9").recipe()
    assert not recipe.stage_rates and recipe.learning_rate == 1e-9


def test_stages_end_with_the_variant():
    assert load("train.stages=[32s, 16s, 8s]").variants() == ("fcn32s", "fcn16s", "fcn8s")
    assert load("train.stages=[32s, 8s-atonce]", "model.variant=fcn8s-atonce").variants()
    with pytest.raises(ConfigError, match="a stage twice"):
        load("train.stages=[8s, 8s]")


def test_keys_of_an_optional_section_are_named():
    with pytest.raises(
        ConfigError, match=r"config val\.urls: an unknown key; known here: url, lab"
    ):
        load("val.urls=x", "val.url=y")
