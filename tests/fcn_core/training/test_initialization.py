"""Transplants: a finer net begins with what the coarser one predicts."""

from __future__ import annotations

import pytest
import torch

from fcn_core.errors import WeightsError
from fcn_core.labels import LabelSet
from fcn_core.networks.architecture import Architecture
from fcn_core.preprocessing import CENTRED_RGB
from fcn_core.training.initialization import initialize_network, transplant
from fcn_core.weights.weights_info import WeightsInfo
from tests.support.networks import random_fcn

OLD = LabelSet("old", ("a", "b", "c"))
MORE = LabelSet("more", ("a", "b", "c", "d", "e"))
OTHER = LabelSet("other", ("b", "a", "c"))
IMAGE = torch.randn(1, 3, 40, 50, generator=torch.Generator().manual_seed(1))
WIDTH = 1 / 32


def moved(variant, to, labels=OLD, **options):
    old = random_fcn(variant, 3, WIDTH, biases=0.1, **options)
    info = WeightsInfo(old.architecture, OLD, CENTRED_RGB)
    network = Architecture(to, labels.num_classes, WIDTH, **options)
    start = transplant(old, info, network, labels, "weights x")
    return old.eval(), start, start.model.eval()


@torch.no_grad()
def coarse(model):
    return model.coarse_score(IMAGE)


@pytest.mark.parametrize(("variant", "to"), [("fcn32s", "fcn16s"), ("fcn16s", "fcn8s")])
def test_a_new_skip_adds_nothing_at_first(variant, to):
    old, start, new = moved(variant, to)
    assert start.fresh == ({"fcn16s": "score_pool4", "fcn8s": "score_pool3"}[to],)
    skip = new.plan.skips[-1]
    with torch.no_grad():
        finer = new.get_submodule(skip.upscore)(coarse(old))
    assert torch.allclose(coarse(new), finer, rtol=1e-5, atol=1e-6)


def test_stages_follow_one_another():
    _, _, new = moved("fcn32s", "fcn8s")
    with torch.no_grad():
        assert new(IMAGE).shape == (1, 3, 40, 50)


@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
def test_classes_can_be_added(upsampling):
    old, start, new = moved("fcn16s", "fcn16s", MORE, upsampling=upsampling)
    assert {"score_fr", "score_pool4"} <= set(start.extended)
    with torch.no_grad():
        before, after = old(IMAGE), new(IMAGE)
    assert torch.allclose(after[:, :3], before, rtol=1e-4, atol=1e-5)
    assert not after[:, 3:].any()


def test_scores_of_other_classes_are_not_copied():
    _, start, new = moved("fcn32s", "fcn32s", OTHER)
    assert "score_fr" in start.fresh and "fc7" in start.copied
    assert not coarse(new).any()


def test_another_width_is_refused():
    old = random_fcn("fcn32s", 3, WIDTH)
    info = WeightsInfo(old.architecture, OLD, CENTRED_RGB)
    with pytest.raises(WeightsError, match=r"weights x: conv1_1\.weight is \(2, 3, 3, 3\).*width"):
        transplant(old, info, Architecture("fcn32s", 3, 1 / 16), OLD, "weights x")


def test_another_trunk_is_refused():
    old = random_fcn("fcn-alexnet", 3, WIDTH)
    info = WeightsInfo(old.architecture, OLD, CENTRED_RGB)
    with pytest.raises(WeightsError, match=r"no conv1_1\.weight"):
        transplant(old, info, Architecture("fcn32s", 3, WIDTH), OLD, "weights x")


def test_nothing_is_a_function_of_the_seed():
    first, same, other = (initialize_network(Architecture("fcn8s", 3, WIDTH), s) for s in (1, 1, 2))
    assert torch.equal(first.conv1_1.weight, same.conv1_1.weight)
    assert not torch.equal(first.conv1_1.weight, other.conv1_1.weight)
    assert not first.score_fr.weight.any()


@pytest.mark.parametrize(
    ("variant", "to"), [("fcn8s-atonce", "fcn8s"), ("fcn8s", "fcn8s-atonce"), ("fcn16s", "fcn16s")]
)
def test_scaled_and_plain_skips_say_the_same(variant, to):
    old, start, new = moved(variant, to)
    assert not start.fresh and not start.unused
    before, after = coarse(old), coarse(new)
    assert before.std() > 0.1
    assert torch.allclose(after, before, rtol=1e-4, atol=1e-5)


def test_what_is_not_used_is_told(random_fcn):
    _, start, _ = moved("fcn8s", "fcn16s")
    assert start.unused == ("score_pool3",)
    assert start.describe() == "17 layers copied; not used: score_pool3"
    old = random_fcn("fcn16s", 3, WIDTH, upsampling="learned")
    info = WeightsInfo(old.architecture, OLD, CENTRED_RGB)
    start = transplant(old, info, Architecture("fcn8s", 3, WIDTH), OLD, "weights x")
    assert start.unused == ("upscore16", "upscore2")
    old = random_fcn("fcn32s", 3, WIDTH, output_stride=8)
    info = WeightsInfo(old.architecture, OLD, CENTRED_RGB)
    start = transplant(old, info, Architecture("fcn32s", 3, WIDTH), OLD, "weights x")
    assert "output stride 8" in start.describe()
