"""A trunk in bytes: against slow sums of integers, and against itself computed otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own habit

from fcn_core.calibration import measure_int8_ranges, record_peak
from fcn_core.datasets.scenes import render_scene
from fcn_core.errors import FcnError, ImageError, WeightsError
from fcn_core.inference.int8 import Int8Layers, Int8Ranges, has_int8
from fcn_core.labels import SCENES, LabelSet
from fcn_core.metrics import ConfusionMatrix
from fcn_core.networks.architecture import Architecture
from fcn_core.predictor import Predictor
from fcn_core.preprocessing import CAFFE_VOC, CENTRED_RGB
from fcn_core.weights.weights_file import WeightsFile, read_weights, save_weights
from fcn_core.weights.weights_info import INT8_VARIANTS, WeightsInfo

LABELS = LabelSet("four", ("a", "b", "c", "d"))
needs_units = pytest.mark.skipif(not has_int8(), reason="this CPU has no VNNI and no AMX")


def random_images(*sizes, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def weights_file(random_fcn, variant="fcn8s", preprocessing=CENTRED_RGB, **options):
    model = random_fcn(variant, width=1 / 32, biases=0.3, **options)
    return WeightsFile(
        save_weights(model, WeightsInfo(model.architecture, LABELS, preprocessing)), "a file"
    )


def with_ranges(file, seen):
    return WeightsFile(save_weights(file.load(), measure_int8_ranges(file, seen)), file.where)


@pytest.fixture(scope="module")
def small(random_fcn):
    """A network of 1/32 of the width, with ranges."""
    return with_ranges(weights_file(random_fcn), random_images((40, 57), (64, 64)))


# --- The arithmetic ----------------------------------------------------------------------------


@torch.inference_mode()
def slowly(file, image):
    """(bytes by layer, floats of the last): products and sums of integers in float64, unwindowed.

    Float64 holds every sum exactly: 25088 products of two bytes stay far below 2^53.
    """
    model, info = file.load(), file.info
    ranges = Int8Ranges.of(info.preprocessing, info.int8_peaks)
    scale = (ranges.high - ranges.low) / 255
    zero = round(-ranges.low / scale)
    x = (image.double() / scale).round() + zero
    found = {}
    for layer in model.layers:
        if layer.kind == "pool":
            if layer.stride == 1:
                x = F.pad(x, (0, layer.dilation, 0, layer.dilation))
            x = F.max_pool2d(x, 2, layer.stride, dilation=layer.dilation, ceil_mode=True)
        else:
            conv = model.get_submodule(layer.name)
            scales = (conv.weight.abs().amax((1, 2, 3)) / 127)[None, :, None, None].double()
            rounded = (conv.weight.double() / scales.movedim(1, 0)).round()
            sums = F.conv2d(F.pad(x - zero, (layer.pad,) * 4), rounded, dilation=layer.dilation)
            real = sums * scales * scale + conv.bias.double()[None, :, None, None]
            x = real.clamp_min(0)
            if layer is not model.layers[-1]:
                scale, zero = info.int8_peaks[layer.name] / 255, 0
                x = (x / scale).round().clamp_max(255)
        found[layer.name] = x
    return found


@needs_units
@pytest.mark.parametrize("preprocessing", [CENTRED_RGB, CAFFE_VOC])
@pytest.mark.parametrize(
    ("variant", "options"),
    [("fcn8s", {}), ("fcn32s", {"output_stride": 16}), ("fcn32s", {"output_stride": 8})],
)
def test_layers_are_sums_of_integers(random_fcn, preprocessing, variant, options):
    file = weights_file(random_fcn, variant, preprocessing, **options)
    file = with_ranges(file, random_images((40, 57)))
    model = file.load()
    image = torch.from_numpy(random_images((30, 41), seed=1)[0]).permute(2, 0, 1)[None].float()
    pre = file.info.preprocessing
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (pre.mean, pre.std))
    image = (image - mean) / std
    oracle = slowly(file, image)
    layers = Int8Layers(model.layers, model.get_submodule, Int8Ranges.of(pre, file.info.int8_peaks))
    x = layers.to_input(image)
    for layer in model.layers:
        expected = oracle[layer.name]
        x = layers.apply(layer, x)
        # One beside: where float32 and float64 round a half to different sides; carried on.
        assert float((x.double() - expected).abs().max()) <= (1 if x.dtype == torch.uint8 else 1e-4)
        assert float((x.double() != expected).double().mean()) < 0.001 or x.dtype != torch.uint8
        if x.dtype == torch.uint8:
            assert x.amax() > 20, layer.name  # bytes are used
            torch.testing.assert_close(
                layers.to_floats(layer.name, x), x.float() * _scale(file, model.layers, layer)
            )
            x = expected.to(torch.uint8).contiguous(memory_format=torch.channels_last)
    assert x.dtype == torch.float32


def _scale(file, layers, wanted):
    for layer in layers:
        if layer.kind == "conv":
            scale = file.info.int8_peaks[layer.name] / 255
        if layer is wanted:
            return scale
    raise AssertionError


@needs_units
@settings(max_examples=25)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 99), st.sampled_from(INT8_VARIANTS))
def test_windows_change_no_bit(random_fcn, height, width, seed, variant):
    file = with_ranges(weights_file(random_fcn, variant, seed=seed), random_images((40, 57)))
    fast = Predictor.load(file, precision="int8")
    ranges = Int8Ranges.of(file.info.preprocessing, file.info.int8_peaks)
    whole = Int8Layers(fast.model.layers, fast.model.get_submodule, ranges)
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    x = whole.to_input(image.contiguous(memory_format=torch.channels_last))
    with torch.inference_mode():
        for layer in fast.model.layers:
            x = whole.apply(layer, x)
        [trunk] = fast.logits.trunks
        assert torch.equal(trunk(image).last_BCHW, x)


@needs_units
def test_masks_depend_neither_on_batches_nor_on_threads(small):
    images = random_images((40, 57), (40, 57), (40, 57), (33, 20), seed=3)
    info = small.info

    def masks(threads, batch):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            predictor = Predictor(small.load(), info, precision="int8", batch_size=batch)
            return [found.mask for found in predictor.predict(images)]
        finally:
            torch.set_num_threads(before)

    expected = masks(1, 1)
    assert len({mask.tobytes() for mask in expected[:3]}) == 3
    for threads, batch in [(2, 1), (1, 3), (2, 4)]:
        for found, mask in zip(masks(threads, batch), expected, strict=True):
            assert np.array_equal(found, mask)


@needs_units
def test_the_shipped_network_hardly_changes():
    """Mean IoU within half a point: docs/forward.md has it for more scenes."""
    scenes = [render_scene(seed) for seed in range(9_000_000, 9_000_012)]
    file = with_ranges(
        read_weights("demo"), [render_scene(seed).image for seed in range(3_500_000, 3_500_008)]
    )
    scores = {}
    for precision in ("fp32", "int8"):
        predictor = Predictor.load(file, precision=precision)
        confusion = ConfusionMatrix(SCENES.num_classes)
        for scene in scenes:
            confusion.update(scene.label, predictor.predict([scene.image])[0].mask)
        scores[precision] = confusion.scores().mean_iou
    assert abs(scores["fp32"] - scores["int8"]) < 0.005


# --- Ranges ------------------------------------------------------------------------------------


def test_ranges_are_the_greatest_outputs(random_fcn):
    file = weights_file(random_fcn)
    seen = random_images((40, 57), (20, 30))
    found = measure_int8_ranges(file, seen)
    model = file.load()
    one = [measure_int8_ranges(file, [image]).int8_peaks for image in seen]
    assert found.int8_peaks == {name: max(peaks[name] for peaks in one) for name in one[0]}
    assert list(found.int8_peaks) == [layer.name for layer in model.layers if layer.kind == "conv"]
    assert found.origin["int8_pictures"] == 2
    pre = file.info.preprocessing
    image = (
        torch.from_numpy(seen[0]).permute(2, 0, 1)[None].float()
        - torch.tensor(pre.mean).view(1, 3, 1, 1)
    ) / torch.tensor(pre.std).view(1, 3, 1, 1)
    with torch.inference_mode():
        first = F.relu(model.conv1_1(image)).max()
    assert one[0]["conv1_1"] == pytest.approx(float(first), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("layer", ["conv1_1", "fc6"])
def test_features_that_are_not_finite_have_no_range(random_fcn, layer):
    file = weights_file(random_fcn)
    model = file.load()
    weight = model.get_submodule(layer).weight
    weight[0, 0], weight[0, 1] = 3e38, -3e38
    damaged = WeightsFile(save_weights(model, file.info), "damaged")
    with pytest.raises(WeightsError, match=rf"{layer} reaches (inf|nan)"):
        measure_int8_ranges(damaged, random_images((40, 57), (20, 30)))


def test_nan_is_not_lost_in_a_maximum():
    look = record_peak("fc6", {"fc6": 2.0}, "here")
    with pytest.raises(WeightsError, match="fc6 reaches nan"):
        look(nn.Identity(), None, torch.tensor([1.0, torch.nan]))


def test_wider_networks_would_not_fit_32_bits():
    """7 x 7 x 512 w products of at most 255 x 127, all of one sign."""
    labels = LabelSet("two", ("a", "b"))
    for width, fits in ((2.64, True), (2.65, False)):
        inputs = 7 * 7 * Architecture("fcn8s", 2, width).channels(512)
        assert (inputs * 255 * 127 < 2**31) == fits
        info = WeightsInfo(Architecture("fcn8s", 2, width), labels, CENTRED_RGB)
        with nullcontext() if fits else pytest.raises(WeightsError, match=r"at most 2\.64"):
            info.check_supports_int8("here")


def test_ranges_travel_in_the_file(small):
    again = WeightsFile(save_weights(small.load(), small.info, half=True), "half")
    assert again.info == small.info
    assert (
        dict(again.info.int8_peaks)
        and "int8_peaks" not in replace(small.info, int8_peaks={}).to_metadata()["fcn"]
    )


@pytest.mark.parametrize("peaks", [{"conv1_1": -1.0}, {"conv1_1": float("nan")}, {"conv1_1": "x"}])
def test_damaged_ranges_are_refused(small, peaks):
    data = save_weights(small.load(), replace(small.info, int8_peaks=peaks))
    with pytest.raises(WeightsError, match="incomplete metadata"):
        WeightsFile(data, "damaged")


# --- What is refused ---------------------------------------------------------------------------


def test_what_cannot_be_int8_says_why(random_fcn, small, monkeypatch):
    without = weights_file(random_fcn)
    monkeypatch.setattr("fcn_core.inference.int8.has_int8", lambda: True)
    with pytest.raises(WeightsError, match=r"no int8 range of layer conv1_1.*weights calibrate"):
        Predictor.load(without, precision="int8")
    with pytest.raises(FcnError, match="int8 in the plain forward pass"):
        Predictor.load(small, precision="int8", plain=True)
    alexnet = weights_file(random_fcn, "fcn-alexnet")
    with pytest.raises(WeightsError, match="fcn-alexnet"):
        Predictor.load(alexnet, precision="int8")
    with pytest.raises(WeightsError, match="fcn-alexnet"):
        measure_int8_ranges(alexnet, random_images((20, 20)))
    with pytest.raises(WeightsError, match="no readable images"):
        measure_int8_ranges(without, [])
    with pytest.raises(ImageError):
        measure_int8_ranges(without, [np.zeros((3, 3), np.uint8)])
    monkeypatch.setattr("fcn_core.inference.int8.has_int8", lambda: False)
    with pytest.raises(
        FcnError, match=r"without exact sums of byte products.*avx512_vnni.*--precision fp32"
    ):
        Predictor.load(small, precision="int8")


@needs_units
def test_a_cpu_without_units_is_found_out_and_no_random_number_is_taken():
    script = "import torch; from fcn_core.inference.int8 import has_int8; "
    script += "before = torch.get_rng_state(); "
    script += "print(has_int8(), torch.equal(before, torch.get_rng_state()))"
    for units, expected in (("AVX2", "False True"), ("DEFAULT", "True True")):
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": units}
        found = subprocess.run(
            [sys.executable, "-c", script], env=environment, check=True, capture_output=True
        )
        assert found.stdout.decode().strip() == expected


def test_a_missing_layer_is_named(small):
    peaks = dict(small.info.int8_peaks)
    del peaks["conv3_2"]
    file = WeightsFile(save_weights(small.load(), replace(small.info, int8_peaks=peaks)), "less")
    with pytest.raises(WeightsError, match="no int8 range of layer conv3_2"):
        file.info.check_int8_ranges(file.where)
