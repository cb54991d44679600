"""Deconvolutions take a cheaper form exactly when it is the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from fcn_core.networks.upsampling import Upscore, bilinear_kernel, upsample_bilinear
from tests.fcn_core.networks.test_model import relative_error
from tests.support import oracles

K = 3
KERNELS = [(2, 4), (8, 16), (16, 32), (32, 64), (32, 63), (8, 15)]


def scores(height=3, width=5, classes=K):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, classes, height, width, generator=generator, dtype=torch.float64)


def learned(stride, size, change=None):
    """A learned layer, loaded with its bilinear weights after `change` has been at them."""
    layer = Upscore(K, stride, size, learned=True).double()
    weight = layer.weight.detach().clone()
    if change:
        change(weight)
    layer.load_state_dict({"weight": weight})
    return layer.eval()


def dense(layer, score_BKHW):
    return F.conv_transpose2d(score_BKHW, layer.weight, stride=layer.stride)


def scaled(weight):
    weight[1, 1] *= 1.5


def asymmetric(weight):
    weight[2, 2, 0, 1] += 0.25


def mixed(weight):
    weight[0, 1, 1, 1] = 0.25


def barely_mixed(weight):
    weight[2, 0, 3, 2] = 5e-324  # the smallest there is


def undefined(weight):
    weight[0, 1, 0, 0] = torch.nan


@torch.inference_mode()
@pytest.mark.parametrize(("stride", "size"), KERNELS)
@pytest.mark.parametrize(
    ("change", "form"),
    [
        (None, "bilinear"),
        (scaled, "grouped"),
        (asymmetric, "grouped"),
        (mixed, "dense"),
        (barely_mixed, "dense"),
    ],
)
def test_every_form_is_the_dense_one(stride, size, change, form):
    layer = learned(stride, size, change)
    assert layer.form == form
    assert relative_error(layer(scores()), dense(layer, scores())) < 1e-12
    # float32, as it is used
    layer.float()
    assert relative_error(layer(scores().float()), dense(layer, scores().float())) < 1e-6


def test_what_is_no_number_is_never_called_zero():
    assert learned(2, 4, undefined).form == "dense"


@torch.inference_mode()
@pytest.mark.parametrize(("stride", "size"), KERNELS)
def test_fixed_upsampling_is_caffes_dense_deconvolution(stride, size):
    expected = oracles.deconv(scores(), size, stride)
    assert relative_error(Upscore(K, stride, size).double()(scores()), expected) < 1e-12
    assert relative_error(upsample_bilinear(scores(), stride, size), expected) < 1e-12


@pytest.mark.parametrize(("stride", "size"), KERNELS)
def test_with_gradients_it_computes_the_same(stride, size):
    for layer in (learned(stride, size), learned(stride, size, scaled), Upscore(K, stride, size)):
        found = layer.double()(scores())
        with torch.inference_mode():
            assert relative_error(found.detach(), layer(scores())) < 1e-12


def test_all_weights_of_a_learned_layer_learn_and_the_form_follows():
    layer = learned(2, 4).train()
    assert layer.form == "bilinear"
    layer(scores()).square().sum().backward()
    assert layer.weight.grad.count_nonzero() == layer.weight.numel()
    with torch.no_grad():
        layer.weight -= 1e-3 * layer.weight.grad
    assert layer.eval().form == "dense"
    with torch.inference_mode():
        assert relative_error(layer(scores()), dense(layer, scores())) < 1e-12


def test_the_form_is_chosen_again_with_every_load():
    layer = learned(2, 4, mixed)
    layer.load_state_dict(learned(2, 4).state_dict())
    assert layer.form == "bilinear"
    layer.load_state_dict(learned(2, 4, mixed).state_dict(), assign=True)
    assert layer.form == "dense"


def test_a_copy_is_a_layer_of_its_own():
    layer = learned(2, 4)
    other = copy.deepcopy(layer)
    other.load_state_dict(learned(2, 4, mixed).state_dict())
    assert (layer.form, other.form) == ("bilinear", "dense")


def test_learned_weights_start_as_the_bilinear_kernel_between_equal_classes():
    weight = Upscore(K, 2, learned=True).weight
    for first in range(K):
        for second in range(K):
            expected = bilinear_kernel(4) if first == second else torch.zeros(4, 4)
            assert torch.equal(weight[first, second], expected)


def test_fixed_kernels_are_not_saved_and_learned_ones_are():
    assert not Upscore(K, 2).state_dict()
    assert not list(Upscore(K, 2).parameters())
    assert list(Upscore(K, 2, learned=True).state_dict()) == ["weight"]
