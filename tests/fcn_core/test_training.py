"""Training is a function of its inputs, and refuses what would ruin a run."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
import torch

from fcn_core import training
from fcn_core.architecture import Architecture
from fcn_core.errors import FcnError, LabelError
from fcn_core.labels import VOID
from fcn_core.model import FCN
from fcn_core.predictor import Predictor
from fcn_core.preprocessing import CENTRED_RGB, Preprocessing
from fcn_core.training import DEMO_SETTINGS, DEMO_TEST_SEEDS, TrainSettings, train

CLASSES = 3
SHORT = TrainSettings(max_steps=3, batch_size=2, crop=32, warmup_steps=1)
RGB = Preprocessing()
VALUES = Preprocessing("BGR", (10.0, 20.0, 30.0), (2.0, 4.0, 5.0))


def patches(seed, height=40, width=40):
    """A picture of three colours, by rectangles, and the number of the colour of each pixel."""
    rng = np.random.default_rng(seed)
    label = np.zeros((height, width), np.uint8)
    for value in (1, 2):
        top, left = rng.integers(0, height - 16), rng.integers(0, width - 16)
        label[top : top + 16, left : left + 16] = value
    colours = np.array([[30, 30, 30], [220, 60, 40], [60, 90, 230]])
    image = colours[label] + rng.integers(-20, 20, (height, width, 3))
    return image.astype(np.uint8), label


def samples():
    return cycle([patches(seed) for seed in range(6)])


def network(seed=0):
    model = FCN(Architecture("fcn8s", CLASSES, 1 / 16))
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model


def weights_after(settings, stream=None):
    model = network()
    train(model, CENTRED_RGB, stream or samples(), settings)
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def seen(monkeypatch):
    """What reaches the network and the loss: a list of (images, labels)."""
    batches = []
    real = training.mean_cross_entropy

    def loss(logits, label):
        batches.append((images[-1], label))
        return real(logits, label)

    images = []
    monkeypatch.setattr(training, "mean_cross_entropy", loss)

    def run(stream, settings, preprocessing=RGB):
        model = network()
        model.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0]))
        train(model, preprocessing, stream, settings)
        return batches

    return run


def coded(height, width):
    """A picture whose red channel is its label, times 100."""
    label = np.random.default_rng(0).integers(0, CLASSES, (height, width), np.uint8)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 100 * label
    return image, label


def test_a_tiny_world_is_learnt():
    steps = []
    settings = TrainSettings(
        max_steps=50, batch_size=2, crop=24, learning_rate=5e-3, warmup_steps=5, dropout=0, jitter=0
    )
    train(
        network(),
        CENTRED_RGB,
        cycle([patches(0, 24, 24), patches(1, 24, 24)]),
        settings,
        steps.append,
    )
    assert [step.number for step in steps] == list(range(1, 51))
    assert steps[0].loss == pytest.approx(math.log(CLASSES), rel=1e-5)  # scores start at zero
    assert np.mean([step.loss for step in steps[-5:]]) < 0.35


def test_equal_seeds_give_bitwise_equal_weights():
    assert same(weights_after(SHORT), weights_after(SHORT))


def test_another_seed_gives_other_weights():
    assert not same(weights_after(SHORT), weights_after(replace(SHORT, seed=1)))


def test_training_neither_reads_nor_moves_the_callers_randomness():
    results = []
    for seed in (1, 2):
        model = network()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        train(model, CENTRED_RGB, samples(), SHORT)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(list(model.parameters()))
    assert same(*results)


def test_a_trained_network_is_in_eval_mode():
    model = network()
    train(model, CENTRED_RGB, samples(), SHORT)
    assert not any(module.training for module in model.modules())


def test_only_the_samples_needed_are_taken():
    stream = iter([patches(seed) for seed in range(7)])
    weights_after(SHORT, stream)
    assert len(list(stream)) == 1


def test_flips_and_crops_move_label_and_image_together(seen):
    stream = cycle([coded(50, 41), coded(32, 60)])
    batches = seen(stream, replace(SHORT, max_steps=6, jitter=0))
    for image, label in batches:
        assert label.shape == (2, 32, 32)
        assert torch.equal(image[:, 0], 100.0 * label)
    assert len({label.numpy().tobytes() for _, label in batches}) == len(batches)


def test_some_crops_are_mirrored_and_others_are_not(seen):
    image, label = coded(32, 32)
    batches = seen(cycle([(image, label)]), replace(SHORT, max_steps=6))
    crops = {crop.numpy().tobytes() for _, labels in batches for crop in labels}
    assert crops == {label.astype(np.int64).tobytes(), label[:, ::-1].astype(np.int64).tobytes()}


def test_a_small_picture_is_filled_up_with_the_mean_colour_and_void(seen):
    image, label = coded(10, 20)
    settings = replace(SHORT, max_steps=1, jitter=0, flip=False)
    (pixels, labels), *_ = seen(cycle([(image, label)]), settings, VALUES)
    assert np.array_equal(labels[0, :10, :20], label)
    assert (labels[:, 10:] == VOID).all()
    assert (labels[:, :, 20:] == VOID).all()
    assert (pixels[:, :, 10:] == 0).all()
    assert (pixels[:, :, :, 20:] == 0).all()


def test_pixels_reach_the_network_as_the_preprocessing_says(seen):
    image, label = patches(0, 32, 32)
    settings = replace(SHORT, max_steps=1, jitter=0, flip=False)
    (pixels, _), *_ = seen(cycle([(image, label)]), settings, VALUES)
    expected = (image[..., ::-1] - np.array(VALUES.mean)) / np.array(VALUES.std)
    assert np.allclose(pixels[0].permute(1, 2, 0), expected, atol=1e-5)


def test_jitter_changes_colours_but_no_label_and_stays_in_range(seen):
    image, label = coded(32, 32)
    batches = seen(cycle([(image, label)]), replace(SHORT, flip=False, jitter=0.5))
    for pixels, labels in batches:
        assert 0 <= pixels.min() <= pixels.max() <= 255
        assert np.array_equal(labels[0], label)
    assert not torch.equal(batches[0][0], batches[1][0])


def test_the_loss_is_the_mean_over_labelled_pixels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, CLASSES, 4, 5, generator=generator, dtype=torch.float64)
    label = torch.randint(0, CLASSES, (2, 4, 5), generator=generator)
    label[0, :3] = VOID
    slow = [
        -logits[b, :, y, x].log_softmax(0)[label[b, y, x]].item()
        for b, y, x in np.ndindex(2, 4, 5)
        if label[b, y, x] != VOID
    ]
    assert float(training.mean_cross_entropy(logits, label)) == pytest.approx(np.mean(slow), 1e-5)


def test_a_batch_of_void_teaches_nothing():
    logits = torch.ones(1, CLASSES, 2, 2, requires_grad=True)
    loss = training.mean_cross_entropy(logits, torch.full((1, 2, 2), VOID))
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_rate_rises_then_falls_to_almost_nothing():
    rates = [DEMO_SETTINGS.rate(step) for step in range(1, DEMO_SETTINGS.max_steps + 1)]
    peak = DEMO_SETTINGS.warmup_steps - 1
    assert rates[peak] == max(rates) == DEMO_SETTINGS.learning_rate
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[-1] < 0.01 * rates[peak]


def test_an_out_of_range_label_is_refused_before_it_is_learnt_from():
    image, label = patches(0)
    label[3, 4] = CLASSES
    model, before = network(), list(network().parameters())
    with pytest.raises(LabelError, match=r"sample 1: label value 3; classes are 0-2"):
        train(model, CENTRED_RGB, [patches(1), (image, label)], SHORT)
    assert same(model.parameters(), before)


def test_a_label_of_another_size_is_refused():
    image, label = patches(0)
    with pytest.raises(LabelError, match="sample 0: label is"):
        train(network(), CENTRED_RGB, [(image, label[1:])], SHORT)


def test_a_loss_that_is_not_finite_stops_with_the_step():
    model, steps = network(), []

    def spoil(step):
        steps.append(step)
        if step.number == 2:
            torch.nn.init.constant_(model.fc7.weight, math.nan)

    with pytest.raises(FcnError, match=r"step 3: the loss is nan"):
        train(model, CENTRED_RGB, samples(), SHORT, spoil)
    assert len(steps) == 2


def test_samples_that_run_out_are_an_error():
    with pytest.raises(FcnError, match=r"step 2: the samples have run out; 3 steps take 6"):
        train(network(), CENTRED_RGB, [patches(seed) for seed in range(3)], SHORT)


def test_demo_scenes_for_scoring_are_none_of_those_for_training():
    assert DEMO_SETTINGS.max_steps * DEMO_SETTINGS.batch_size <= DEMO_TEST_SEEDS[0]


def test_the_demo_weights_know_scenes_they_have_never_seen():
    unseen = range(2_000_000, 2_000_024)
    assert training.score_scenes(Predictor.load("demo"), unseen).mean_iou >= 0.80
