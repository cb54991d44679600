"""Arrays in, masks out, and no image's answer depends on its neighbours."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from fcn_core.errors import FcnError, ImageError, WeightsError
from fcn_core.inference.blank_canvas import BlankFeatures
from fcn_core.labels import LabelSet
from fcn_core.networks.architecture import Architecture
from fcn_core.predictor import Predictor
from fcn_core.preprocessing import (
    CAFFE_NYUD_COLOR_D,
    CAFFE_NYUD_COLOR_HHA,
    CAFFE_VOC,
    CENTRED_RGB,
    Preprocessing,
)
from fcn_core.weights.weights_file import WeightsFile, save_weights
from fcn_core.weights.weights_info import WeightsInfo
from tests.support import oracles

RNG = np.random.default_rng(0)
SIZES = [(17, 23), (40, 30), (17, 23), (1, 1), (40, 30), (17, 23), (23, 17), (17, 23), (17, 23)]
LABELS = LabelSet("four", ("a", "b", "c", "d"))


def noise(height, width):
    """Noise in patches, so that masks have regions."""
    patches = RNG.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return np.kron(patches, np.ones((8, 8, 1), np.uint8))[:height, :width].copy()


IMAGES = [noise(*size) for size in SIZES]
LARGE = noise(90, 130)


def info(preprocessing=CENTRED_RGB):
    return WeightsInfo(Architecture("fcn8s", LABELS.num_classes, 1 / 16), LABELS, preprocessing)


def test_blank_canvases_are_computed_as_images_are(random_fcn, monkeypatch):
    """On CUDA, with the same products; there is none here: whatever computes stands in it."""
    inside = []

    @contextmanager
    def products(self):
        inside.append(True)
        yield
        inside.pop()

    features, seen = BlankFeatures._features, []
    monkeypatch.setattr(Predictor, "_cudnn_settings", products)
    monkeypatch.setattr(
        BlankFeatures, "_features", lambda *args: seen.append(list(inside)) or features(*args)
    )
    Predictor(random_fcn(), info()).predict([IMAGES[0]])
    assert len(seen) >= 2 and all(found == [True] for found in seen)


@pytest.fixture(scope="module")
def predictor(random_fcn):
    return Predictor(random_fcn(), info())


def same(first, second):
    return np.array_equal(first.mask, second.mask) and (
        first.mean_confidence == second.mean_confidence
    )


def logits(model, image, preprocessing=CENTRED_RGB):
    """(K, H, W), from the formula of the preprocessing pixel by pixel."""
    colours = image if preprocessing.channels == "RGB" else image[..., ::-1]
    pixels = (colours - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    planes = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float()
    with torch.inference_mode():
        return model(planes[None])[0].numpy()


# --- Batches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_batch_is_its_images_one_by_one_bit_for_bit(random_fcn, batch_size):
    predictor = Predictor(random_fcn(), info(), batch_size=batch_size)
    together = predictor.predict(IMAGES)
    alone = [predictor.predict([image])[0] for image in IMAGES]
    assert all(map(same, together, alone))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_order_is_kept_among_mixed_sizes(random_fcn, batch_size):
    predictor = Predictor(random_fcn(), info(), batch_size=batch_size)
    forth, back = predictor.predict(IMAGES), predictor.predict(IMAGES[::-1])
    assert [prediction.mask.shape for prediction in forth] == SIZES
    assert all(map(same, forth, back[::-1]))


def test_batch_sizes_agree_on_the_masks(random_fcn, predictor):
    batched = Predictor(random_fcn(), info(), batch_size=4).predict([LARGE])[0]
    alone = predictor.predict([LARGE])[0]
    assert np.mean(batched.mask == alone.mask) > 0.999
    assert batched.mean_confidence == pytest.approx(alone.mean_confidence, abs=1e-5)


def test_no_images_are_no_predictions(predictor):
    assert predictor.predict([]) == []


def test_images_are_left_alone(predictor):
    image = LARGE.copy()
    predictor.predict([image])
    assert np.array_equal(image, LARGE)


def test_views_of_arrays_are_images(predictor):
    mirrored = LARGE[:, ::-1]
    assert same(predictor.predict([mirrored])[0], predictor.predict([mirrored.copy()])[0])


# --- Values ------------------------------------------------------------------------------------


def test_the_mask_is_the_highest_logit(random_fcn, predictor):
    prediction = predictor.predict([LARGE])[0]
    assert prediction.mask.dtype == np.uint8
    assert np.mean(prediction.mask == logits(random_fcn(), LARGE).argmax(axis=0)) > 0.999
    assert len(np.unique(prediction.mask)) == 4


def test_mean_confidence_is_the_softmax_of_the_chosen_class(random_fcn, predictor):
    expected = oracles.softmax_peak(logits(random_fcn(), LARGE)).mean()
    assert predictor.predict([LARGE])[0].mean_confidence == pytest.approx(expected, abs=1e-5)


def test_of_equal_logits_the_lowest_class_wins(random_fcn):
    model = random_fcn()
    model.reset_parameters()  # every score is zero
    prediction = Predictor(model, info()).predict([LARGE])[0]
    assert not prediction.mask.any()
    assert prediction.mean_confidence == 1 / 4


@pytest.mark.parametrize("preprocessing", [CAFFE_VOC, CENTRED_RGB, Preprocessing()], ids=str)
def test_preprocessing_is_the_formula(random_fcn, preprocessing):
    model = random_fcn()
    expected = oracles.softmax_peak(logits(model, LARGE, preprocessing)).mean()
    found = Predictor(model, info(preprocessing)).predict([LARGE])[0].mean_confidence
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_bgr_network_sees_what_an_rgb_network_sees_of_the_swapped_image(random_fcn):
    rgb = Preprocessing("RGB", (10, 20, 30), (40, 50, 60))
    bgr = Preprocessing("BGR", (10, 20, 30), (40, 50, 60))
    swapped = Predictor(random_fcn(), info(rgb)).predict([LARGE[..., ::-1]])[0]
    straight, other = (Predictor(random_fcn(), info(p)).predict([LARGE])[0] for p in (bgr, rgb))
    assert same(straight, swapped)
    assert not same(straight, other)


def test_bf16_agrees_with_fp32_on_most_pixels(random_fcn, predictor):
    coarse = Predictor(random_fcn(), info(), precision="bf16").predict([LARGE])[0]
    exact = predictor.predict([LARGE])[0]
    assert np.mean(coarse.mask == exact.mask) > 0.95
    assert coarse.mean_confidence == pytest.approx(exact.mean_confidence, abs=0.02)


# --- Other inputs and several heads ------------------------------------------------------------


FUSION = {"fcn32s-color-d": CAFFE_NYUD_COLOR_D, "fcn32s-color-hha": CAFFE_NYUD_COLOR_HHA}


def fused_logits(model, image, preprocessing):
    """(K, H, W), channel by channel; only the three colours are turned round."""
    order = [2, 1, 0, *range(3, image.shape[2])]
    planes = [image[..., c].astype(float) for c in order]
    planes = [plane - mean for plane, mean in zip(planes, preprocessing.mean, strict=True)]
    with torch.inference_mode():
        return model(torch.from_numpy(np.stack(planes)[None]).float())[0].numpy()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("variant", FUSION)
def test_fusion_nets_take_all_their_channels(random_fcn, variant, dtype):
    model, preprocessing = random_fcn(variant), FUSION[variant]
    channels = model.architecture.input_channels
    image = np.random.default_rng(1).integers(0, 256, (30, 41, channels)).astype(dtype)
    predictor = Predictor(model, WeightsInfo(model.architecture, LABELS, preprocessing))
    (found,) = predictor.predict([image])
    expected = fused_logits(model, image, preprocessing)
    assert np.mean(found.mask == expected.argmax(axis=0)) > 0.999
    peak = oracles.softmax_peak(expected).mean()
    assert found.mean_confidence == pytest.approx(peak, abs=1e-5)


def test_whole_and_real_numbers_of_one_size_keep_apart(random_fcn):
    model = random_fcn("fcn32s-color-d")
    info = WeightsInfo(model.architecture, LABELS, CAFFE_NYUD_COLOR_D)
    predictor = Predictor(model, info, batch_size=2)
    whole = np.random.default_rng(2).integers(0, 256, (9, 8, 4), np.uint8)
    real = whole + np.float32(0.25)
    together = predictor.predict([whole, real, whole])
    assert same(together[0], together[2])
    assert same(together[1], predictor.predict([real])[0])
    assert together[0].mean_confidence != together[1].mean_confidence


def test_a_head_is_chosen_by_its_name(random_fcn, tmp_path):
    model = random_fcn("fcn16s", heads=(("sem", 4), ("geo", 3)))
    geometry = LabelSet("three", ("flat", "upright", "sky"))
    info = WeightsInfo(model.architecture, LABELS, CENTRED_RGB, other_labels=(geometry,))
    path = tmp_path / "two.safetensors"
    path.write_bytes(save_weights(model, info))
    pixels = torch.from_numpy((LARGE.astype(np.float32) - 127.5) / 64).permute(2, 0, 1)[None]
    with torch.inference_mode():
        logits = model.forward_heads(pixels)
    for head, name in ((None, "sem"), ("sem", "sem"), ("geo", "geo")):
        predictor = Predictor.load(path, head=head)
        assert predictor.labels == (geometry if name == "geo" else LABELS)
        mask = predictor.predict([LARGE])[0].mask
        assert np.mean(mask == logits[name].argmax(1)[0].numpy()) > 0.999
    with pytest.raises(WeightsError, match="head: 'depth'; one of 'sem', 'geo'"):
        Predictor.load(path, head="depth")


def test_means_of_another_number_of_channels_are_refused(random_fcn):
    model = random_fcn("fcn32s-color-d")
    with pytest.raises(WeightsError, match="means of 3 channels; fcn32s-color-d reads 4"):
        Predictor(model, WeightsInfo(model.architecture, LABELS, CAFFE_VOC))


def test_the_description_of_other_heads_is_refused(random_fcn):
    with pytest.raises(WeightsError, match=r"the network has heads \{'': 5\}"):
        Predictor(random_fcn(num_classes=5), info())


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((4, 4, 3), np.uint8), r"uint8 \(4, 4, 3\); uint8 or float32 \(H, W, 4\)"),
        (np.zeros((4, 4, 4), np.float64), r"float64 \(4, 4, 4\)"),
        (np.full((4, 4, 4), np.nan, np.float32), "NaN or infinity; finite numbers"),
    ],
    ids=["channels", "dtype", "NaN"],
)
def test_what_is_no_image_with_depth_is_refused(random_fcn, image, found):
    model = random_fcn("fcn32s-color-d")
    predictor = Predictor(model, WeightsInfo(model.architecture, LABELS, CAFFE_NYUD_COLOR_D))
    with pytest.raises(ImageError, match=f"^image 0: {found}"):
        predictor.predict([image])


def test_every_channel_has_a_deviation_of_one_unless_told():
    assert Preprocessing("BGR", (1.0, 2.0, 3.0, 4.0)).std == (1.0,) * 4
    assert Preprocessing.from_dict(CAFFE_NYUD_COLOR_HHA.to_dict()) == CAFFE_NYUD_COLOR_HHA


# --- Loading -----------------------------------------------------------------------------------


def test_a_predictor_of_a_file_is_that_of_its_network(random_fcn, predictor, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(save_weights(random_fcn(), info()))
    expected = predictor.predict([LARGE])[0]
    for weights in (path, str(path), WeightsFile(path.read_bytes(), "w")):
        assert same(Predictor.load(weights).predict([LARGE])[0], expected)


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="No such file"):
        Predictor.load(tmp_path / "absent.safetensors")


# --- Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((4, 4), np.uint8), r"uint8 \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \(4, 4, 4\)"),
        (np.zeros((3, 4, 4), np.uint8), r"uint8 \(3, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \(0, 4, 3\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"uint8 \(1, 4, 4, 3\)"),
        (np.zeros((4, 4, 3), np.float32), r"float32 \(4, 4, 3\)"),
        (np.zeros((4, 4, 3), np.int8), r"int8 \(4, 4, 3\)"),
        ([[[0, 0, 0]]], r"list \(1, 1, 3\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_is_refused_by_its_place(predictor, image, found):
    with pytest.raises(ImageError, match=f"^image 1: {found}; "):
        predictor.predict([LARGE, image])


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"precision": "fp16"}, "precision: fp16 on a CPU"),
        ({"precision": "fp64"}, "precision: 'fp64'"),
        ({"device": "abacus"}, "device: 'abacus'"),
        ({"device": "cuda:99"}, "device: 'cuda:99', but torch sees"),
    ],
    ids=str,
)
def test_what_is_not_to_be_had_is_refused(random_fcn, options, found):
    with pytest.raises(FcnError, match=found):
        Predictor(random_fcn(), info(), **options)
