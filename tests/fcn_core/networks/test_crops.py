"""The crops are those that were published, and follow from where pads and strides put each cell."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fcn_core.networks.architecture import VARIANTS, Architecture
from fcn_core.networks.crops import CropPosition, crops, layer_positions
from fcn_core.networks.layers import trunk
from tests.support import oracles

DOCS = Path(__file__).parents[3] / "docs"

# net.py and the prototxt files of shelhamer/fcn.berkeleyvision.org.
PUBLISHED = {
    "fcn32s": [19],
    "fcn16s": [5, 27],
    "fcn8s": [5, 9, 31],
    "fcn8s-atonce": [5, 9, 31],
    "fcn32s-color-d": [19],
    "fcn32s-color-hha": [19],
    "fcn-alexnet": [18],
}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_crops_are_those_of_the_published_nets(variant):
    assert list(crops(Architecture(variant, 2)).values()) == PUBLISHED[variant]


def test_crops_follow_from_pads_and_strides():
    found = {}
    for variant in ("fcn32s", "fcn16s", "fcn8s"):
        *skips, last = crops(Architecture(variant, 2)).items()
        found |= {name.removeprefix("score_"): offset for name, offset in skips}
        found[variant] = last[1]
    assert found == oracles.crop_offsets()


# Pad p puts cell 0 of score_fr 100 - p px further right than pad 100 does.
def test_the_crop_of_googlenet_follows_from_its_pad():
    assert crops(Architecture("fcn-googlenet32s", 2)) == {
        "upscore": 31 - (3 - 100 + 2 + 4 + 8 + 16)
    }


@pytest.mark.parametrize(("stride", "offset"), [(32, 19), (16, 3), (8, -5)])
def test_a_dilated_grid_begins_where_the_coarse_one_does(stride, offset):
    dilated, coarse = (Architecture("fcn32s", 2, output_stride=s) for s in (stride, 32))
    assert crops(dilated) == {"upscore": offset}
    assert (
        layer_positions(dilated)["score_fr"].shift
        == layer_positions(coarse)["score_fr"].shift
        == 12.5
    )
    assert layer_positions(dilated)["score_fr"].scale == stride


@pytest.mark.parametrize(
    ("variant", "field"), [("fcn-alexnet", 355), ("fcn8s", 404), ("fcn-googlenet32s", 907 - 6 * 32)]
)
def test_receptive_fields_are_those_of_the_papers_table_1(variant, field):
    """GoogLeNet's 907 px count the final 7x7 average pool, which the net itself does without."""
    size, step = 1, 1
    for layer in trunk(Architecture(variant, 2)):
        kernel = 5 if layer.kind == "inception" else layer.kernel
        size += (kernel - 1) * step
        step *= layer.stride
    assert (size, step) == (field, 32)


def test_layers_that_do_not_meet_are_refused():
    with pytest.raises(ValueError, match="does not align with"):
        CropPosition().offset(CropPosition().window(2))  # half a cell
    with pytest.raises(ValueError, match="does not align with"):
        CropPosition().offset(CropPosition().window(1, stride=2))


def cells(layers, side):
    """Cells of score_fr on an image of that side, from the formulas of Caffe's layers."""
    for layer in layers:
        reach = layer.dilation * (layer.kernel - 1) + 1
        if layer.kind == "conv":
            side = (side + 2 * layer.pad - reach) // layer.stride + 1
        elif layer.kind == "pool" and layer.stride > 1:
            side = math.ceil((side - reach) / layer.stride) + 1
    return side


def chain(variant, pad):
    """The trunk with another pad before its first layer."""
    first, *rest = trunk(Architecture(variant, 2))
    return (replace(first, pad=pad), *rest)


# Why 100: the round number above what the smallest image needs.
@pytest.mark.parametrize(
    ("variant", "least"), [("fcn32s", 97), ("fcn-alexnet", 99), ("fcn-googlenet32s", 18)]
)
def test_the_least_pad_that_leaves_a_cell_of_a_single_pixel(variant, least):
    assert cells(chain(variant, least), 1) == 1
    assert all(cells(chain(variant, pad), 1) < 1 for pad in range(least))


def test_pools_that_round_down_come_out_too_small_for_the_crop():
    def covered(side):
        cells = (side + 198) // 32 - 6
        return cells >= 1 and 32 * cells + 32 >= 19 + side

    assert sum(not covered(side) for side in range(1, 3000)) == 1139


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_every_size_from_one_pixel_up_is_covered(variant, stride):
    if stride != 32 and not variant.startswith("fcn32s"):
        return
    architecture = Architecture(variant, 2, output_stride=stride)
    (*_, offset) = crops(architecture).values()
    kernel = 63 if variant in ("fcn-alexnet", "fcn-googlenet32s") else 2 * stride
    for side in range(1, 3000):
        count = cells(trunk(architecture), side)
        assert count >= 1
        if offset < 0:  # goes on outwards by one cell
            count, start = count + 1, offset + stride
        else:
            start = offset
        assert start >= 0
        if variant.startswith(("fcn32s", "fcn-")):
            assert stride * (count - 1) + kernel >= start + side


def test_the_page_shows_what_its_script_prints():
    done = subprocess.run(
        [sys.executable, DOCS / "crops.py"], capture_output=True, text=True, check=True
    )
    assert f"```text\n{done.stdout}```" in (DOCS / "crops.md").read_text()
