"""The forward pass of inference leaves out only what is known or never used."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812 - torch's own habit
from torch.utils.flop_counter import FlopCounterMode

from fcn_core.inference import arithmetic
from fcn_core.inference.blank_canvas import BoundedCache
from fcn_core.inference.forward import FastForward
from fcn_core.inference.windows import axes, canvas, needed_scores, windowed_layers
from fcn_core.labels import LabelSet
from fcn_core.networks import trunks
from fcn_core.networks.architecture import VARIANTS, Architecture
from fcn_core.networks.crops import crops
from fcn_core.networks.layers import decoder, trunk
from fcn_core.predictor import Predictor
from fcn_core.preprocessing import CENTRED_RGB
from fcn_core.weights.weights_info import WeightsInfo

PAGE = (Path(__file__).parents[3] / "docs/forward.md").read_text()
LABELS = LabelSet("four", ("a", "b", "c", "d"))
NETWORKS = [
    *[(variant, {}) for variant in VARIANTS],
    ("fcn32s", {"output_stride": 16}),
    ("fcn32s-color-hha", {"output_stride": 8}),
    ("fcn8s", {"upsampling": "learned"}),
    ("fcn16s", {"num_classes": 5, "heads": (("sem", 5), ("geo", 3))}),
]
TRUNKS = ["fcn32s", "fcn-alexnet", "fcn-googlenet32s"]


def random_image(model, height, width, count=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = (count, model.architecture.input_channels, height, width)
    return torch.randn(*size, generator=generator, dtype=torch.float64)


def exact(random_fcn, variant, seed=0, width=1 / 32, **options):
    model = random_fcn(variant, width=width, seed=seed, biases=0.3, **options)
    return model.double().to(memory_format=torch.channels_last)


def relative_error(found, expected):
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


# --- The same logits ---------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "options"), NETWORKS, ids=str)
def test_logits_are_those_of_the_plain_forward(random_fcn, variant, options):
    model = exact(random_fcn, variant, **options)
    fast, heads = FastForward(model), [None, *model.architecture.head_classes]

    @settings(max_examples=5, deadline=None, derandomize=True)
    @given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 2), st.sampled_from(heads))
    def check(height, width, count, head):
        image_BCHW = random_image(model, height, width, count, seed=height)
        with torch.inference_mode():
            expected = model(image_BCHW, head)
        assert relative_error(fast(image_BCHW, head), expected) < 1e-12

    check()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(1, 120), st.integers(1, 120), st.integers(0, 1000))
def test_so_they_are_for_all_weights_and_sizes(random_fcn, height, width, seed):
    model = exact(random_fcn, "fcn8s", seed=seed)
    image_BCHW = random_image(model, height, width, seed=seed)
    with torch.inference_mode():
        expected = model(image_BCHW)
    assert relative_error(FastForward(model)(image_BCHW), expected) < 1e-12


@pytest.mark.parametrize("size", [(1, 1), (33, 64), (90, 131)], ids=str)
def test_in_single_precision_masks_differ_where_logits_tie_only(random_fcn, size):
    model = random_fcn(biases=0.3).to(memory_format=torch.channels_last)
    image_BCHW = random_image(model, *size).float()
    with torch.inference_mode():
        plain = model(image_BCHW)
    fast = FastForward(model)(image_BCHW)
    assert relative_error(fast, plain) < 1e-5
    best, second = plain.topk(2, dim=1).values.unbind(1)
    clear = best - second > 2e-5 * plain.abs().max()
    assert clear.float().mean() > 0.95
    assert torch.equal(fast.argmax(1)[clear], plain.argmax(1)[clear])


def test_fc6_in_pieces_is_fc6(random_fcn, monkeypatch):
    model = exact(random_fcn, "fcn32s")
    image_BCHW = random_image(model, 150, 40)
    whole = FastForward(model)(image_BCHW)
    monkeypatch.setattr(arithmetic, "PATCH_BYTES", 1)  # a row at a time
    assert relative_error(FastForward(model)(image_BCHW), whole) < 1e-12


# --- The same bits -----------------------------------------------------------------------------


def test_no_bit_depends_on_the_images_before(random_fcn):
    model = random_fcn(biases=0.3).to(memory_format=torch.channels_last)
    images = [random_image(model, *size).float() for size in [(5, 8), (40, 33), (17, 64), (5, 8)]]
    forth, back, forgetful = FastForward(model), FastForward(model), FastForward(model, 0)
    expected = [forth(image) for image in images]
    for one, two in zip(expected, [back(image) for image in images[::-1]][::-1], strict=True):
        assert torch.equal(one, two)
    for one, image in zip(expected, images, strict=True):
        assert torch.equal(one, forgetful(image))


def test_no_bit_depends_on_the_place_in_a_batch(random_fcn):
    model = random_fcn(biases=0.3).to(memory_format=torch.channels_last)
    first, second = (random_image(model, 30, 41, seed=seed).float() for seed in (1, 2))
    fast = FastForward(model)
    forth, back = fast(torch.cat([first, second])), fast(torch.cat([second, first]))
    assert torch.equal(forth, back.flip(0))


# --- The arithmetic of windows -----------------------------------------------------------------


@torch.inference_mode()
def layer_by_layer(model, image_BCHW):
    """An image on its canvas, and what each windowed layer makes of the whole of it."""
    pad = model.layers[0].pad
    x_BCHW = F.pad(image_BCHW, (pad,) * 4)
    found = [x_BCHW]
    x_BCHW = F.relu(trunks.apply_unpadded(model.layers[0], model.get_submodule, x_BCHW))
    found.append(x_BCHW)
    for layer in model.layers[1 : windowed_layers(model.layers)]:
        x_BCHW = trunks.apply(layer, model.get_submodule, x_BCHW)
        found.append(x_BCHW)
    return found


@pytest.mark.parametrize("size", [(1, 47), (19, 8)], ids=str)
@pytest.mark.parametrize("variant", TRUNKS)
def test_an_image_changes_the_cells_it_reaches_and_no_other(random_fcn, variant, size):
    model = exact(random_fcn, variant, width=1 / 8)  # so that not all ReLUs are shut
    near = model.layers[: windowed_layers(model.layers)]
    rows, columns = (axes(near, canvas(near, side)) for side in size)
    seen = layer_by_layer(model, 100 * random_image(model, *size))
    blank = layer_by_layer(model, torch.zeros_like(random_image(model, *size)))
    for one, none, row, column in zip(seen, blank, rows, columns, strict=True):
        assert one.shape[-2:] == (row.size, column.size)
        changed = ((one - none).abs().amax(dim=(0, 1)) > 1e-9).nonzero()
        for axis, cells in zip((row, column), changed.T, strict=True):
            assert axis.image.start <= cells.min() and cells.max() < axis.image.end
            # Not too many either: a kernel may be blind to its last tap, here and there.
            assert cells.min() <= axis.image.start + 1 and cells.max() >= axis.image.end - 2


@pytest.mark.parametrize("side", [3, 10, 31])
@pytest.mark.parametrize("variant", TRUNKS)
def test_a_blank_canvas_is_even_between_its_edges(random_fcn, variant, side):
    model = exact(random_fcn, variant)
    near = model.layers[: windowed_layers(model.layers)]
    even = FastForward(model).trunks[0].blanks.even
    line = axes(near, canvas(near, side))
    blank = layer_by_layer(model, torch.zeros_like(random_image(model, side, side)))
    for x_BCHW, axis, even_C in zip(blank, line, even, strict=True):
        inside = slice(axis.even.start, axis.even.end)
        expected = even_C[:, None, None].expand_as(x_BCHW[0, :, inside, inside])
        torch.testing.assert_close(x_BCHW[0, :, inside, inside], expected)


@pytest.mark.parametrize("variant", ["fcn16s", "fcn8s"])
def test_every_score_of_the_coarsest_map_is_needed(variant):
    layers = trunk(Architecture(variant, 4))
    plan = decoder(Architecture(variant, 4))
    offset = crops(Architecture(variant, 4))[plan.upscore]
    for side in range(1, 200):
        cells = axes(layers, canvas(layers, side))[-1].size
        first, *_ = needed_scores(plan, offset, side, cells)
        assert (first.start, first.end) == (0, cells)


# --- Less work ---------------------------------------------------------------------------------


def operations(call, image_BCHW):
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        call(image_BCHW)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("variant", "share"),
    [("fcn8s", 0.75), ("fcn32s", 0.75), ("fcn-alexnet", 0.85), ("fcn-googlenet32s", 0.8)],
)
def test_fewer_operations_are_done(random_fcn, variant, share):
    model = random_fcn(variant, width=1 / 32).to(memory_format=torch.channels_last)
    fast, image_BCHW = FastForward(model), random_image(model, 180, 240).float()
    fast(image_BCHW)  # makes the blank
    assert operations(fast, image_BCHW) < share * operations(model, image_BCHW)


def test_a_blank_serves_all_sizes_of_equal_remainders(random_fcn):
    fast = FastForward(random_fcn(width=1 / 32))
    for side in (7, 23, 39, 55):
        fast(torch.zeros(1, 3, side, side + 16))
    assert len(fast.trunks[0].blanks.cache) == 1


# --- Bounds ------------------------------------------------------------------------------------


def test_what_is_kept_of_blanks_is_bounded(random_fcn):
    model = random_fcn(width=1 / 32)
    entry = FastForward(model)
    entry(torch.zeros(1, 3, 16, 16))
    size = entry.trunks[0].blanks.cache.nbytes
    fast = FastForward(model, blank_bytes=4 * size)
    cache = fast.trunks[0].blanks.cache
    for height in range(1, 17, 3):
        for width in range(1, 17, 5):
            fast(torch.zeros(1, 3, height, width))
            assert 0 < cache.nbytes <= cache.limit
    assert 2 <= len(cache) < 6 * 4


def test_the_least_recently_used_is_forgotten_first():
    cache, made = BoundedCache(32), []

    def get(key, floats=4):
        return cache.get(key, lambda: (made.append(key), torch.zeros(floats))[1])

    for key in ("a", "b", "a", "c", "a", "b"):
        get(key)
    assert made == ["a", "b", "c", "b"]
    assert cache.nbytes == 32 and len(cache) == 2
    assert get("vast", floats=9).numel() == 9  # used, not kept, and nothing forgotten for it
    get("a")
    assert made == ["a", "b", "c", "b", "vast"]


# --- The predictor -----------------------------------------------------------------------------


def test_a_predictor_is_fast_unless_told(random_fcn, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (40, 57, 3), np.uint8)
    info = WeightsInfo(Architecture("fcn8s", 4, 1 / 16), LABELS, CENTRED_RGB)
    fast, plain = (Predictor(random_fcn(), info, plain=plain) for plain in (False, True))
    expected, found = plain.predict([image])[0], fast.predict([image])[0]
    assert np.mean(found.mask == expected.mask) > 0.999
    assert found.mean_confidence == pytest.approx(expected.mean_confidence, abs=1e-6)
    monkeypatch.setattr(FastForward, "__call__", lambda *_: pytest.fail("fast"))
    plain.predict([image])
    with pytest.raises(pytest.fail.Exception, match="fast"):
        fast.predict([image])


# --- The page ----------------------------------------------------------------------------------


def test_the_margins_of_the_page_are_those_of_the_code():
    layers = trunk(Architecture("fcn8s", 21))
    line = axes(layers, canvas(layers, 500))[1:]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE))
    for layer, axis in list(zip(layers, line, strict=True))[: windowed_layers(layers)]:
        image, even = axis.image, axis.even
        told = [str(axis.size), f"{image.start}-{image.end - 1}", f"{even.start}-{even.end - 1}"]
        assert [cell.strip() for cell in rows[layer.name].split("|")][:3] == told
