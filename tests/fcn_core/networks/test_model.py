"""The networks compute what the reference networks do, for every size of image."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from fcn_core.networks.architecture import VARIANTS, Architecture
from fcn_core.networks.model import FCN
from fcn_core.networks.upsampling import Upscore, bilinear_kernel
from tests.support import oracle_networks, oracles

NETWORKS = (Path(__file__).parents[3] / "docs/networks.md").read_text()
SMALL = [(1, 1), (2, 3), (17, 23), (64, 65)]
LARGE = [(375, 500), (500, 500)]
# The large sizes of the other variants take long and are marked so.
ALWAYS = ("fcn32s", "fcn8s", "fcn-alexnet")


def cases(values, always=ALWAYS):
    """(value, size) for every size; those of the large sizes slow unless named."""
    params = []
    for value, size in product(values, (*SMALL, *LARGE)):
        slow = size in LARGE and (size[0] == 500 or value not in always)
        marks = pytest.mark.slow if slow else ()
        params.append(pytest.param(value, size, marks=marks, id=f"{value}-{size[0]}x{size[1]}"))
    return params


def image(height, width, count=1, seed=0, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, height, width, generator=generator, dtype=torch.float64)


def image_for(model, height, width, count=1):
    return image(height, width, count, channels=model.architecture.input_channels)


def relative_error(found, expected):
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
@pytest.mark.parametrize(("variant", "size"), cases(VARIANTS))
def test_logits_equal_the_layer_by_layer_network(random_fcn, variant, size):
    model = random_fcn(variant, biases=0.1)
    image_BCHW = image_for(model, *size).float()
    expected = oracle_networks.logits(variant, model.state_dict(), image_BCHW)
    assert relative_error(model(image_BCHW), expected) < 1e-4


# The at-once network takes a ten-thousandth of pool3, which float32 could hide in rounding.
@torch.inference_mode()
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_layer_by_layer_network_in_float64(random_fcn, variant):
    model = random_fcn(variant, width=1 / 32, biases=0.1).double()
    image_BCHW = image_for(model, 4, 9, count=2)
    expected = oracle_networks.logits(variant, model.state_dict(), image_BCHW)
    assert relative_error(model(image_BCHW), expected) < 1e-12


@torch.inference_mode()
@pytest.mark.parametrize(("variant", "size"), cases(VARIANTS[:4], always=()))
def test_each_head_is_a_network_of_its_own_on_the_shared_trunk(random_fcn, variant, size):
    model = random_fcn(variant, num_classes=5, heads=(("sem", 5), ("geo", 3)), biases=0.1)
    image_BCHW, weights = image(*size).float(), model.state_dict()
    found = model.forward_heads(image_BCHW)
    assert list(found) == ["sem", "geo"]
    assert torch.equal(model(image_BCHW), found["sem"])
    for head, classes in (("sem", 5), ("geo", 3)):
        expected = oracle_networks.head_logits(variant, weights, image_BCHW, head)
        assert expected.shape[1] == classes
        assert relative_error(found[head], expected) < 1e-4
        assert torch.equal(model(image_BCHW, head), found[head])


def stirred(state):
    """The weights with learned deconvolutions that are no longer bilinear."""
    generator = torch.Generator().manual_seed(2)
    noise = {
        name: 0.01 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in state.items()
        if name.startswith("upscore")
    }
    return state | {name: state[name] + noise[name] for name in noise}


@torch.inference_mode()
@pytest.mark.parametrize("size", SMALL, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_learned_upsampling_is_the_dense_deconvolution(random_fcn, variant, size):
    model = random_fcn(variant, upsampling="learned")
    image_BCHW = image_for(model, *size).float()
    bilinear = oracle_networks.logits(variant, model.state_dict(), image_BCHW)
    assert relative_error(model(image_BCHW), bilinear) < 1e-4
    model.load_state_dict(stirred(model.state_dict()))
    expected = oracle_networks.logits(variant, model.state_dict(), image_BCHW)
    assert relative_error(model(image_BCHW), expected) < 1e-4
    assert relative_error(model(image_BCHW), bilinear) > 1e-3


@pytest.mark.parametrize("upsampling", ["learned", "fixed"])
def test_gradients_on_or_off_the_logits_are_the_same(random_fcn, upsampling):
    model, image_BCHW = random_fcn(upsampling=upsampling), image(40, 50).float()
    found = model(image_BCHW).detach()
    with torch.inference_mode():
        assert relative_error(found, model(image_BCHW)) < 1e-5


@cache
def thin(variant):
    return FCN(Architecture(variant, 2, 1 / 64)).eval()


@torch.inference_mode()
@settings(deadline=None)
@given(st.sampled_from(VARIANTS), st.integers(1, 200), st.integers(1, 200))
def test_logits_have_the_size_of_the_image(variant, height, width):
    model = thin(variant)
    logits_BKHW = model(torch.zeros(1, model.architecture.input_channels, height, width))
    assert logits_BKHW.shape == (1, 2, height, width)


# Facts of the architecture at K = 21: VGG-16's 134,260,544 without its classifier, plus scores. The
# paper's table 1 says 57M for AlexNet, 134M for VGG-16 and 6M for GoogLeNet.
@pytest.mark.parametrize(
    ("variant", "count"),
    [
        ("fcn32s", 134_346_581),
        ("fcn16s", 134_357_354),
        ("fcn8s", 134_362_751),
        ("fcn8s-atonce", 134_362_751),
        ("fcn32s-color-d", 134_346_581 + 64 * 9),
        ("fcn32s-color-hha", 2 * 134_346_581),
        ("fcn-alexnet", 56_954_261),
        ("fcn-googlenet32s", 5_995_077),
    ],
)
def test_full_width_has_the_parameters_of_the_reference_network(variant, count):
    with torch.device("meta"):
        model = FCN(Architecture(variant, 21))
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    row = next(line for line in NETWORKS.splitlines() if line.startswith(f"| `{variant}` |"))
    assert f"| {count:,} |" in row


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
    assert Architecture("fcn-alexnet", 2, 1e-6).channels(256, multiple=2) == 2


@torch.inference_mode()
def test_a_batch_is_its_images_one_by_one(random_fcn):
    model, batch_BCHW = random_fcn(width=1 / 32).double(), image(17, 23, count=3)
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
    plane_HW = image(3, 2)[0, 0]
    found = Upscore(1, stride).double()(plane_HW[None, None])[0, 0]
    expected = torch.from_numpy(oracles.upsample(plane_HW.numpy(), stride))
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("stride", [2, 8, 16, 32])
def test_upsampling_is_interpolation_of_the_image_in_a_ring_of_zeros(stride):
    score_BKHW = image(4, 5)
    ring = F.interpolate(F.pad(score_BKHW, (1,) * 4), scale_factor=stride, mode="bilinear")
    upsample_scores = Upscore(3, stride).double()(score_BKHW)
    height, width = upsample_scores.shape[-2:]
    half = stride // 2
    expected = ring[..., half : half + height, half : half + width]
    assert relative_error(upsample_scores, expected) < 1e-12


@pytest.mark.parametrize("stride", [2, 8, 16, 32])
def test_upsampling_keeps_a_constant_away_from_the_border(stride):
    inner = Upscore(2, stride)(torch.ones(1, 2, 4, 4))[..., stride:-stride, stride:-stride]
    assert torch.equal(inner, torch.ones_like(inner))


def test_upsampling_does_not_mix_classes():
    score_BKHW = torch.zeros(1, 3, 2, 2)
    score_BKHW[:, 1] = 1
    upsample_scores = Upscore(3, 2)(score_BKHW)
    assert upsample_scores[:, 1].any()
    assert not upsample_scores[:, ::2].any()


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
    image_BCHW = image(96, 128).float()
    # Upsampling in two steps rounds the peaks between the cells off, no more.
    assert relative_error(fine(image_BCHW), coarse(image_BCHW)) < 0.25
    same = fine(image_BCHW).argmax(1) == coarse(image_BCHW).argmax(1)
    assert same.float().mean() > 0.9


@torch.inference_mode()
@pytest.mark.parametrize(
    ("finer", "coarser", "skip", "crop", "steps"),
    [
        ("fcn16s", "fcn32s", "score_pool4", 27, (2, 16)),
        ("fcn8s", "fcn16s", "score_pool3", 31, (2, 8)),
    ],
)
def test_a_zero_skip_is_the_coarse_score_upsampled_in_two_steps(
    random_fcn, finer, coarser, skip, crop, steps
):
    fine, coarse = with_zero_skip(random_fcn, finer, coarser, skip)
    image_BCHW = image(20, 30).float()
    twice = coarse.coarse_score(image_BCHW)[0, 0].numpy()
    for stride in steps:
        twice = oracles.upsample(twice, stride)
    expected = torch.from_numpy(twice[crop : crop + 20, crop : crop + 30])
    assert relative_error(fine(image_BCHW)[0, 0].double(), expected) < 1e-5


# --- Where training starts ---------------------------------------------------------------------


def test_a_fresh_network_scores_every_class_zero():
    model = FCN(Architecture("fcn8s", 3, 1 / 64)).eval()
    model.reset_parameters(torch.Generator().manual_seed(0))
    assert not model(image(5, 5).float()).any()


def test_equal_seeds_start_from_equal_weights(random_fcn):
    first, second, other = (random_fcn(seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1_1.weight"], other["conv1_1.weight"])
