"""Denser scores: à trous in one pass, or shift-and-stitch in many, and where the two are one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from fcn_core.errors import FcnError, WeightsError
from fcn_core.inference.shift_and_stitch import ShiftAndStitch
from fcn_core.labels import LabelSet
from fcn_core.networks.architecture import Architecture
from fcn_core.predictor import Predictor
from fcn_core.preprocessing import CENTRED_RGB
from fcn_core.weights.weights_info import WeightsInfo
from tests.fcn_core.networks.test_model import cases, image, image_for, relative_error
from tests.support import oracle_networks

WIDTH = 1 / 64
BORDER = 102
"""Half of the receptive field, 202 px, less the pad of 100: cells at least that far inside see
nothing of the border of the padded image."""


@pytest.fixture
def fcn(random_fcn):
    """A small network with biases, in double precision."""
    return lambda variant, biases=0.1: random_fcn(variant, width=WIDTH, biases=biases).double()


# --- Dilated -----------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize(("stride", "size"), cases([16, 8], always=()))
def test_dilated_logits_are_those_of_rarefied_filters(random_fcn, stride, size):
    model = random_fcn("fcn32s", output_stride=stride, biases=0.1)
    image_BCHW = image(*size).float()
    expected = oracle_networks.dilated_logits(model.state_dict(), image_BCHW, stride)
    assert relative_error(model(image_BCHW), expected) < 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("size", [(1, 1), (17, 23), (58, 59), (64, 90)], ids=str)
@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("variant", ["fcn32s", "fcn32s-color-d", "fcn32s-color-hha"])
def test_every_cell_of_the_coarse_net_is_one_of_the_dilated(fcn, variant, stride, size):
    model = fcn(variant)
    image_BCHW = image_for(model, *size)
    every = 32 // stride
    dense = model.with_output_stride(stride).coarse_score(image_BCHW)
    assert relative_error(dense[..., ::every, ::every], model.coarse_score(image_BCHW)) < 1e-12


def test_another_stride_shares_the_parameters(random_fcn):
    model = random_fcn("fcn32s", width=WIDTH)
    dilated = model.with_output_stride(8)
    assert dilated.architecture == Architecture("fcn32s", 4, WIDTH, output_stride=8)
    assert dict(dilated.named_parameters()) == dict(model.named_parameters())
    assert not dilated.training


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"variant": "fcn16s"}, "output stride 8 of fcn16s"),
        ({"variant": "fcn-alexnet"}, "output stride 8 of fcn-alexnet"),
        ({"variant": "fcn32s", "upsampling": "learned"}, "learned upsampling of stride 32"),
    ],
    ids=str,
)
def test_what_cannot_be_dilated_is_refused(random_fcn, options, found):
    with pytest.raises(WeightsError, match=found):
        random_fcn(**options, width=WIDTH).with_output_stride(8)


# --- Shift-and-stitch --------------------------------------------------------------------------


def stitched_and_dilated(model, image_BCHW, stride):
    """The score maps, from the cell at (12.5, 12.5) on, as far as both go."""
    behind = 32 // stride - 1
    stitched = ShiftAndStitch(model, stride).coarse_score(image_BCHW)[..., behind:, behind:]
    dilated = model.with_output_stride(stride).coarse_score(image_BCHW)
    height, width = (
        min(a, b) for a, b in zip(stitched.shape[-2:], dilated.shape[-2:], strict=True)
    )
    return stitched[..., :height, :width], dilated[..., :height, :width]


@torch.inference_mode()
@pytest.mark.parametrize("stride", [16, 8])
def test_stitched_scores_are_the_dilated_ones_away_from_the_border(fcn, stride):
    model, (height, width) = fcn("fcn32s"), (240, 257)
    stitched, dilated = stitched_and_dilated(model, image(height, width), stride)
    rows, columns = (
        [i for i in range(side) if BORDER <= 12.5 + stride * i <= length - 1 - BORDER]
        for side, length in zip(dilated.shape[-2:], (height, width), strict=True)
    )
    inside = (..., slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    assert len(rows) >= 2 and len(columns) >= 3
    assert relative_error(stitched[inside], dilated[inside]) < 1e-12
    # Nearer to it the two see borders in different layer_positions.
    assert relative_error(stitched, dilated) > 1e-4


# A blank canvas then scores what padding adds: nothing.
@torch.inference_mode()
@pytest.mark.parametrize("size", [(1, 1), (40, 57)], ids=str)
@pytest.mark.parametrize("stride", [16, 8])
def test_without_biases_stitched_scores_are_the_dilated_ones_everywhere(fcn, stride, size):
    model = fcn("fcn32s", biases=0)
    stitched, dilated = stitched_and_dilated(model, image(*size), stride)
    full = model.with_output_stride(stride).coarse_score(image(*size)).shape
    assert dilated.shape == full  # the stitched map is at least as large
    assert relative_error(stitched, dilated) < 1e-12


@torch.inference_mode()
@pytest.mark.parametrize("stride", [8])
def test_stitched_logits_are_the_dilated_ones_away_from_the_border(fcn, stride):
    model, image_BCHW = fcn("fcn32s"), image(225, 226)
    stitched = ShiftAndStitch(model, stride)(image_BCHW)
    dilated = model.with_output_stride(stride)(image_BCHW)
    # A pixel takes from cells at less than one stride.
    near = BORDER + stride
    inside = (..., slice(near, 225 - near), slice(near, 226 - near))
    assert relative_error(stitched[inside], dilated[inside]) < 1e-12
    assert stitched.shape == dilated.shape


@torch.inference_mode()
@pytest.mark.parametrize(
    ("variant", "stride"),
    [("fcn32s", 32), ("fcn16s", 16), ("fcn8s", 8), ("fcn-alexnet", 32), ("fcn-googlenet32s", 32)],
)
def test_at_its_own_stride_it_is_the_network(fcn, variant, stride):
    model, image_BCHW = fcn(variant), image(20, 33)
    assert relative_error(ShiftAndStitch(model, stride)(image_BCHW), model(image_BCHW)) < 1e-12


@torch.inference_mode()
@pytest.mark.parametrize(
    ("variant", "stride"),
    [
        ("fcn8s", 4),
        ("fcn8s", 2),
        ("fcn32s", 8),
        ("fcn16s", 8),
        ("fcn-alexnet", 16),
        ("fcn-googlenet32s", 8),
    ],
)
def test_any_network_can_be_stitched(fcn, variant, stride):
    model, image_BCHW = fcn(variant), image(9, 14)
    fine = ShiftAndStitch(model, stride)
    assert fine(image_BCHW).shape == (1, 4, 9, 14)
    # The scores of every run are among the stitched ones; the image starts in the last.
    every = model.plan.stride // stride
    room = model.plan.stride - stride
    for behind in {0, every - 1}:
        moved = F.pad(image_BCHW, (room - behind * stride, behind * stride) * 2)
        among = fine.coarse_score(image_BCHW)[..., behind::every, behind::every]
        assert relative_error(among, model.coarse_score(moved)) < 1e-12


def test_a_predictor_takes_a_stitched_network(random_fcn):
    model = random_fcn("fcn32s", width=WIDTH)
    info = WeightsInfo(model.architecture, LabelSet("four", tuple("abcd")), CENTRED_RGB)
    image = (255 * torch.rand(30, 40, 3)).to(torch.uint8).numpy()
    (found,) = Predictor(ShiftAndStitch(model, 16), info).predict([image])
    scaled = (torch.from_numpy(image).permute(2, 0, 1)[None].float() - 127.5) / 64
    with torch.inference_mode():
        expected = ShiftAndStitch(model, 16)(scaled).argmax(1)[0]
    assert (torch.from_numpy(found.mask) == expected).float().mean() > 0.99


# Every pixel of every size has a cell on either side of it.
@torch.inference_mode()
@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("variant", ["fcn32s", "fcn-alexnet", "fcn-googlenet32s"])
def test_stitched_logits_have_the_size_of_the_image(random_fcn, variant, stride):
    fine = ShiftAndStitch(random_fcn(variant, num_classes=1, width=WIDTH), stride)
    for side in (1, 6, 27, 33):
        assert fine(image(side, 1).float()).shape == (1, 1, side, 1)


def test_at_stride_1_a_pixel_is_the_mean_of_the_four_scores_around_it(fcn):
    model, image_BCHW = fcn("fcn8s"), image(5, 6)
    with torch.inference_mode():
        fine = ShiftAndStitch(model, 1)
        score, found = fine.coarse_score(image_BCHW), fine(image_BCHW)
        # The unmoved grid begins at -23.5, that is three cells of 8 before the one at 0.5.
        first = 7 + 24 - 1
        around = [score[..., first + i :, first + j :][..., :5, :6] for i in (0, 1) for j in (0, 1)]
        assert relative_error(found, sum(around) / 4) < 1e-12


@pytest.mark.parametrize("stride", [0, 3, 64, -8])
def test_a_stride_that_does_not_divide_is_refused(random_fcn, stride):
    with pytest.raises(FcnError, match=f"output stride {stride}; a divisor of 32"):
        ShiftAndStitch(random_fcn("fcn32s", width=WIDTH), stride)


def test_learned_upsampling_is_refused(random_fcn):
    with pytest.raises(FcnError, match="learned upsampling"):
        ShiftAndStitch(random_fcn("fcn32s", width=WIDTH, upsampling="learned"), 16)
