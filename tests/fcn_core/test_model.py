"""The networks compute what the reference networks do, for every size of picture."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from fcn_core.architecture import VARIANTS, Architecture
from fcn_core.crops import crops
from fcn_core.model import FCN
from fcn_core.upsampling import Upscore, bilinear_kernel
from tests import oracles

VGG = VARIANTS[:4]
SIZES = [(1, 1), (2, 3), (17, 23), (64, 65), (375, 500)]


def picture(height, width, count=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, height, width, generator=generator, dtype=torch.float64)


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("variant", VGG)
def test_logits_equal_the_layer_by_layer_network(random_fcn, variant, size):
    model, image_BCHW = random_fcn(variant), picture(*size).float()
    expected = oracles.fcn_logits(variant, model.state_dict(), image_BCHW)
    assert relative_error(model(image_BCHW), expected) < 1e-4


# The at-once network takes a ten-thousandth of pool3, which float32 could hide in rounding.
@torch.inference_mode()
@pytest.mark.parametrize("variant", VGG)
def test_logits_equal_the_layer_by_layer_network_in_float64(random_fcn, variant):
    model, image_BCHW = random_fcn(variant, width=1 / 32).double(), picture(4, 9, count=2)
    expected = oracles.fcn_logits(variant, model.state_dict(), image_BCHW)
    assert relative_error(model(image_BCHW), expected) < 1e-12


def test_crops_follow_from_pads_and_strides():
    expected = oracles.crop_offsets()
    found = {}
    for variant in ("fcn32s", "fcn16s", "fcn8s"):
        *skips, last = crops(Architecture(variant, 2)).items()
        found |= {name.removeprefix("score_"): offset for name, offset in skips}
        found[variant] = last[1]
    assert found == expected


@cache
def thin(variant):
    return FCN(Architecture(variant, 2, 1 / 64)).eval()


@torch.inference_mode()
@settings(deadline=None)
@given(st.sampled_from(VGG), st.integers(1, 200), st.integers(1, 200))
def test_logits_have_the_size_of_the_picture(variant, height, width):
    logits_BKHW = thin(variant)(torch.zeros(1, 3, height, width))
    assert logits_BKHW.shape == (1, 2, height, width)


# Facts of the architecture at K = 21: VGG-16's 134,260,544 without its classifier, plus scores.
@pytest.mark.parametrize(
    ("variant", "count"),
    [
        ("fcn32s", 134_346_581),
        ("fcn16s", 134_357_354),
        ("fcn8s", 134_362_751),
        ("fcn8s-atonce", 134_362_751),
    ],
)
def test_full_width_has_the_parameters_of_the_reference_network(variant, count):
    with torch.device("meta"):
        model = FCN(Architecture(variant, 21))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_staged_and_atonce_networks_have_the_same_shapes(random_fcn):
    staged, atonce = (random_fcn(v).state_dict() for v in ("fcn8s", "fcn8s-atonce"))
    assert {n: t.shape for n, t in staged.items()} == {n: t.shape for n, t in atonce.items()}


def test_state_dict_names_are_the_layers_of_the_paper_without_the_fixed_kernels(random_fcn):
    layers = [name for name in oracles.TRUNK if not name.startswith("pool")]
    layers += ["score_pool4", "score_pool3"]
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert set(random_fcn("fcn8s").state_dict()) == expected


def test_width_scales_every_channel_but_never_to_nothing():
    assert Architecture("fcn8s", 2, 0.5).channels(64) == 32
    assert Architecture("fcn8s", 2, 1e-6).channels(64) == 1


@torch.inference_mode()
def test_a_batch_is_its_pictures_one_by_one(random_fcn):
    model, batch_BCHW = random_fcn(width=1 / 32).double(), picture(17, 23, count=3)
    alone_BKHW = torch.cat([model(image_CHW[None]) for image_CHW in batch_BCHW])
    assert relative_error(model(batch_BCHW), alone_BKHW) < 1e-12


# --- Upsampling --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 16, 32, 63, 64])
def test_kernel_is_the_formula(size):
    line = [oracles.tent(i, size) for i in range(size)]
    expected = torch.tensor([[a * b for b in line] for a in line])
    assert torch.equal(bilinear_kernel(size), expected)


@pytest.mark.parametrize("size", [4, 16, 32, 63, 64])
def test_kernel_is_symmetric_and_sums_to_the_square_of_its_factor(size):
    kernel = bilinear_kernel(size)
    assert torch.equal(kernel, kernel.T)
    assert torch.equal(kernel, kernel.flip(0))
    assert kernel.double().sum() == ((size + 1) // 2) ** 2


@pytest.mark.parametrize("stride", [2, 8, 16, 32])
def test_upsampling_is_the_explicit_sum(stride):
    plane_HW = picture(3, 2)[0, 0]
    found = Upscore(1, stride).double()(plane_HW[None, None])[0, 0]
    expected = torch.from_numpy(oracles.upsample(plane_HW.numpy(), stride))
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("stride", [2, 8, 16, 32])
def test_upsampling_is_interpolation_of_the_picture_in_a_ring_of_zeros(stride):
    score_BKHW = picture(4, 5)
    ring = F.interpolate(F.pad(score_BKHW, (1,) * 4), scale_factor=stride, mode="bilinear")
    upscored = Upscore(3, stride).double()(score_BKHW)
    height, width = upscored.shape[-2:]
    half = stride // 2
    expected = ring[..., half : half + height, half : half + width]
    assert relative_error(upscored, expected) < 1e-12


@pytest.mark.parametrize("stride", [2, 8, 16, 32])
def test_upsampling_keeps_a_constant_away_from_the_border(stride):
    inner = Upscore(2, stride)(torch.ones(1, 2, 4, 4))[..., stride:-stride, stride:-stride]
    assert torch.equal(inner, torch.ones_like(inner))


def test_upsampling_does_not_mix_classes():
    score_BKHW = torch.zeros(1, 3, 2, 2)
    score_BKHW[:, 1] = 1
    upscored = Upscore(3, 2)(score_BKHW)
    assert upscored[:, 1].any()
    assert not upscored[:, ::2].any()


# --- Starting from the coarser network ---------------------------------------------------------


def with_zero_skip(random_fcn, finer, coarser, skip):
    """Two networks of equal weights, the finer one with a skip that adds nothing."""
    coarse, fine = random_fcn(coarser), random_fcn(finer)
    fine.load_state_dict(coarse.state_dict(), strict=False)
    torch.nn.init.zeros_(fine.get_submodule(skip).weight)
    torch.nn.init.zeros_(fine.get_submodule(skip).bias)
    return fine, coarse


@torch.inference_mode()
@pytest.mark.parametrize(
    ("finer", "coarser", "skip"),
    [("fcn16s", "fcn32s", "score_pool4"), ("fcn8s", "fcn16s", "score_pool3")],
)
def test_a_zero_skip_starts_at_the_coarser_prediction(random_fcn, finer, coarser, skip):
    fine, coarse = with_zero_skip(random_fcn, finer, coarser, skip)
    image_BCHW = picture(96, 128).float()
    # Upsampling in two steps rounds the peaks between the cells off, no more.
    assert relative_error(fine(image_BCHW), coarse(image_BCHW)) < 0.25
    same = fine(image_BCHW).argmax(1) == coarse(image_BCHW).argmax(1)
    assert same.float().mean() > 0.9


@torch.inference_mode()
def test_a_zero_skip_is_the_coarse_score_upsampled_in_two_steps(random_fcn):
    fine, coarse = with_zero_skip(random_fcn, "fcn16s", "fcn32s", "score_pool4")
    cells = []
    coarse.score_fr.register_forward_hook(lambda layer, inputs, score: cells.append(score))
    image_BCHW = picture(20, 30).float()
    coarse(image_BCHW)
    twice = oracles.upsample(oracles.upsample(cells[0][0, 0].numpy(), 2), 16)
    expected = torch.from_numpy(twice[27 : 27 + 20, 27 : 27 + 30])
    assert relative_error(fine(image_BCHW)[0, 0].double(), expected) < 1e-5


# --- Where training starts ---------------------------------------------------------------------


def test_a_fresh_network_scores_every_class_zero():
    model = FCN(Architecture("fcn8s", 3, 1 / 64)).eval()
    model.reset_parameters(torch.Generator().manual_seed(0))
    assert not model(picture(5, 5).float()).any()


def test_equal_seeds_start_from_equal_weights(random_fcn):
    first, second, other = (random_fcn(seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1_1.weight"], other["conv1_1.weight"])
