"""The learner against slow oracles: Caffe's update rule, the two losses, elementwise dropout."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fcn_core.errors import TrainingError, WeightsError
from fcn_core.labels import VOID
from fcn_core.networks.architecture import Architecture
from fcn_core.networks.model import FCN
from fcn_core.preprocessing import CENTRED_RGB
from fcn_core.training.batch import NOTHING, stack
from fcn_core.training.initialization import initialize_network
from fcn_core.training.learner import Learner, SampleDropout, StepPlan, summed_cross_entropy
from fcn_core.training.recipes import ACCUM, HEAVY, MODERN, ONLINE, RECIPES, Augmentation
from tests.support.networks import random_fcn

CLASSES = 3
WHOLE = Augmentation()
PLAIN = replace(HEAVY, dropout=0.0, learning_rate=1e-4, stage_rates={})


def image(seed, size=(12, 16)):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, size).astype(np.uint8)
    label[0, :3] = VOID
    return rng.integers(0, 256, (*size, 3)).astype(np.float32), label


def patches(seed, side=24):
    """An image of three colours, by rectangles, and the number of the colour of each pixel."""
    rng = np.random.default_rng(seed)
    label = np.zeros((side, side), np.uint8)
    for value in (1, 2):
        top, left = rng.integers(0, side - 16, 2)
        label[top : top + 16, left : left + 16] = value
    colours = np.array([[30, 30, 30], [220, 60, 40], [60, 90, 230]])
    return (colours[label] + rng.integers(-20, 20, (side, side, 3))).astype(np.float32), label


def batches(*seeds, how=WHOLE):
    return stack([image(seed) for seed in seeds], range(len(seeds)), how, CENTRED_RGB)


def network(**options):
    return random_fcn("fcn32s", CLASSES, 1 / 32, biases=0.1, **options)


def learner(recipe, model=None, steps=10, **plan):
    return Learner(model or network(), StepPlan(recipe, steps, **plan))


def parameters(taught):
    return {n: p.detach().clone() for n, p in taught.model.named_parameters()}


def gradients(model, *seeds, scale=1.0):
    """Of the summed loss, by torch alone, without dropout."""
    model.train()
    model.dropout.p = 0.0
    total = sum(summed_cross_entropy(model(b.image), b.label) for b in batches(*seeds))
    names, values = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(total * scale, values)
    return dict(zip(names, found, strict=True))


def test_recipes_are_those_of_the_authors():
    sgd = [(r.name, r.batch_size, r.momentum, r.loss, r.weight_decay, r.bias_rate, r.optimizer)
           for r in (HEAVY, ACCUM, ONLINE)]  # fmt: skip
    assert sgd == [
        ("heavy", 1, 0.99, "sum", 5e-4, 2.0, "sgd"),
        ("accum", 20, 0.9, "sum", 5e-4, 2.0, "sgd"),
        ("online", 1, 0.9, "sum", 5e-4, 2.0, "sgd"),
    ]
    rates = {"fcn32s": 1e-10, "fcn16s": 1e-12, "fcn8s": 1e-14, "fcn8s-atonce": 1e-10}
    for variant, rate in rates.items():
        assert HEAVY.base_rate(Architecture(variant, 21)) == rate
    assert all(r.dropout == 0.5 and r.augmentation == WHOLE for r in (HEAVY, ACCUM, ONLINE))
    assert HEAVY.schedule(1, 100) == HEAVY.schedule(100, 100) == 1
    assert RECIPES["modern"] is MODERN


def test_the_modern_rate_rises_then_falls_and_goes_with_the_width():
    factors = [MODERN.schedule(step, 1000) for step in range(1, 1001)]
    assert max(factors) == factors[99] == 1  # warm-up: a tenth of so few steps
    assert factors[:100] == sorted(factors[:100])
    assert factors[99:] == sorted(factors[99:], reverse=True)
    assert 0 < factors[-1] < 0.01
    slim, full = (MODERN.base_rate(Architecture("fcn8s", 2, w)) for w in (1 / 8, 1.0))
    assert slim == pytest.approx(1e-3) and full == pytest.approx(slim / 8)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_every_number_of_steps_has_a_schedule(steps):
    assert all(0 < MODERN.schedule(step, steps) <= 1 for step in range(1, steps + 1))


def test_updates_are_those_of_caffe():
    """v = m v + lr lr_mult (g + wd decay_mult w); w -= v. Biases: lr x 2, no decay."""
    recipe = replace(PLAIN, weight_decay=0.1)
    slow = network()
    taught = learner(recipe, network())
    speed = {name: torch.zeros_like(p) for name, p in slow.named_parameters()}
    for step, seed in enumerate((1, 2, 3), start=1):
        taught.learn(step, batches(seed))
        found = gradients(slow, seed)
        with torch.no_grad():
            for name, p in slow.named_parameters():
                is_bias = p.ndim == 1
                decay = 0.0 if is_bias else 0.1 * p
                rate = 1e-4 * (2 if is_bias else 1)
                speed[name] = 0.99 * speed[name] + rate * (found[name] + decay)
                p -= speed[name]
    for name, p in parameters(taught).items():
        assert torch.allclose(p, dict(slow.named_parameters())[name], rtol=1e-4, atol=1e-6), name


def test_the_gradients_of_several_images_are_averaged():
    recipe = replace(PLAIN, batch_size=3, momentum=0.0, weight_decay=0.0, bias_rate=1.0)
    taught, before = learner(recipe), network()
    taught.learn(1, batches(1, 2, 3))
    expected = gradients(before, 1, 2, 3, scale=1 / 3)
    for name, p in parameters(taught).items():
        moved = dict(before.named_parameters())[name].detach() - 1e-4 * expected[name]
        assert torch.allclose(p, moved, rtol=1e-4, atol=1e-7), name


def test_a_mean_loss_is_over_the_labeled_pixels_of_the_batch():
    recipe = replace(PLAIN, loss="mean", batch_size=2, momentum=0.0, weight_decay=0.0)
    taught, before = learner(replace(recipe, bias_rate=1.0)), network()
    lesson = taught.learn(1, batches(1, 2))
    labeled = 2 * (12 * 16 - 3)
    assert lesson.labeled_pixels == labeled
    expected = gradients(before, 1, 2, scale=1 / labeled)
    for name, p in parameters(taught).items():
        moved = dict(before.named_parameters())[name].detach() - 1e-4 * expected[name]
        assert torch.allclose(p, moved, rtol=1e-4, atol=1e-7), name


def test_a_tiny_world_is_learnt_from_nothing():
    recipe = replace(MODERN, batch_size=2, dropout=0.0, augmentation=Augmentation(crop=24))
    start = initialize_network(Architecture("fcn8s", CLASSES, 1 / 16), seed=0)
    taught = learner(recipe, start, steps=60)
    batch = stack([patches(0), patches(1)], [0, 1], recipe.augmentation, CENTRED_RGB)
    losses = [taught.learn(step, batch).loss for step in range(1, 61)]
    assert losses[0] == pytest.approx(math.log(CLASSES), rel=1e-5)
    assert np.mean(losses[-5:]) < 0.35


@pytest.mark.parametrize("recipe", [PLAIN, replace(MODERN, dropout=0.0)])
def test_the_loss_that_is_told_is_per_labeled_pixel(recipe):
    start = initialize_network(Architecture("fcn32s", CLASSES, 1 / 32), seed=0)
    lesson = learner(recipe, start).learn(1, batches(1, 2))
    assert lesson.loss == pytest.approx(math.log(CLASSES), rel=1e-5)  # scores start at zero


def test_the_loss_is_float32_and_leaves_void_out():
    logits = torch.randn(1, CLASSES, 4, 5, generator=torch.Generator().manual_seed(0))
    label = torch.full((1, 4, 5), VOID)
    assert float(summed_cross_entropy(logits, label)) == 0
    label[0, 2, 3] = 1
    found = summed_cross_entropy(logits.bfloat16(), label)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(-float(logits[0, :, 2, 3].log_softmax(0)[1]), rel=0.02)


def test_fixed_upsampling_stays_bilinear_and_learned_does_not():
    for upsampling in ("fixed", "learned"):
        model = network(upsampling=upsampling)
        before = model.state_dict().get("upscore.weight", torch.zeros(0)).clone()
        learner(replace(PLAIN, learning_rate=1e-3), model).learn(1, batches(1))
        if upsampling == "fixed":
            assert "upscore.weight" not in model.state_dict()
        else:
            assert not torch.equal(model.state_dict()["upscore.weight"], before)


def test_dropout_is_elementwise_scaled_and_of_each_image_alone():
    layer = SampleDropout(0.5).train()
    x = torch.ones(3, 4, 8, 8).to(memory_format=torch.channels_last)
    layer.begin([7, 8, 7], x.device)
    dropped = layer(x)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert 0.35 < float((dropped == 0).float().mean()) < 0.65
    assert not (dropped.amax(dim=(2, 3)) == 0).any()  # no whole channel
    assert torch.equal(dropped[0], dropped[2]) and not torch.equal(dropped[0], dropped[1])
    layer.begin([8], x.device)
    assert torch.equal(layer(x[:1])[0], dropped[1])
    assert torch.equal(layer.eval()(x), x)


def test_a_second_layer_of_dropout_has_another_mask():
    layer = SampleDropout(0.5).train()
    layer.begin([7], torch.device("cpu"))
    x = torch.ones(1, 4, 8, 8)
    assert not torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("recipe", [HEAVY, replace(MODERN, batch_size=2)])
def test_going_on_from_what_was_kept_is_bitwise_the_same(recipe):
    recipe = replace(recipe, learning_rate=1e-4, stage_rates={})
    whole = learner(recipe, steps=4)
    for step in (1, 2, 3, 4):
        whole.learn(step, batches(step))
    first = learner(recipe, steps=4)
    for step in (1, 2):
        first.learn(step, batches(step))
    again = network()
    again.load_state_dict(first.model.state_dict())
    second = learner(recipe, again, steps=4)
    second.load_optimizer(first.optimizer_tensors(), "a checkpoint")
    for step in (3, 4):
        second.learn(step, batches(step))
    found, expected = parameters(second), parameters(whole)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_memory_of_another_network_is_refused():
    taught = learner(PLAIN)
    with pytest.raises(WeightsError, match=r"here: optimizer state fc9\.weight\.momentum_buffer"):
        taught.load_optimizer({"fc9.weight.momentum_buffer": torch.zeros(3)}, "here")


def test_a_loss_that_is_not_finite_changes_nothing():
    taught = learner(PLAIN)
    with torch.no_grad():
        taught.model.score_fr.bias[0] = math.nan
    before = parameters(taught)
    with pytest.raises(TrainingError, match=r"step 4: the loss is nan.*train\.learning_rate"):
        taught.learn(4, batches(1))
    assert all(
        torch.equal(p, before[n]) or n == "score_fr.bias" for n, p in parameters(taught).items()
    )
    with pytest.raises(TrainingError, match=r"score_fr\.bias holds NaN"):
        taught.check_is_finite(4)


@pytest.mark.parametrize("recipe", [PLAIN, MODERN])
def test_a_gradient_that_is_not_finite_changes_nothing(recipe):
    taught = learner(recipe)
    taught.model.score_fr.weight.register_hook(lambda gradient: gradient * math.inf)
    before = parameters(taught)
    with pytest.raises(TrainingError, match=r"step 4: the norm of the gradients is (nan|inf)"):
        taught.learn(4, batches(*range(recipe.batch_size)))
    assert all(torch.equal(p, before[n]) for n, p in parameters(taught).items())


def test_nothing_is_learnt_from_what_cannot_be_used():
    taught = learner(replace(PLAIN, weight_decay=0.0))
    before = parameters(taught)
    views = [(NOTHING[0].astype(np.float32), NOTHING[1])]
    lesson = taught.learn(1, stack(views, [0], WHOLE, CENTRED_RGB))
    assert (lesson.loss, lesson.labeled_pixels) == (0, 0)
    assert all(torch.equal(p, before[n]) for n, p in parameters(taught).items())


def test_bf16_leaves_weights_and_loss_float32_and_close():
    exact = learner(PLAIN).learn(1, batches(1))
    low = learner(PLAIN, precision="bf16")
    assert low.learn(1, batches(1)).loss == pytest.approx(exact.loss, rel=0.05)
    assert all(p.dtype == torch.float32 for p in low.model.parameters())
    assert isinstance(low.model, FCN)
