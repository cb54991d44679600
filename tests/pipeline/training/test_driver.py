"""`fcnseg train`: what it leaves behind, resumes and refuses; `fcnseg run` takes its weights."""

from __future__ import annotations

import io
import json
import random
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcn_core.errors import LabelError, TrainingError, WeightsError
from fcn_core.training.learner import Learner
from fcn_core.weights.weights_file import WeightsFile
from pipeline.driver import run
from pipeline.errors import ConfigError, InputError, LeaseError, OutputError
from pipeline.output.lease import Lease
from pipeline.storage.store import Store
from pipeline.training.checkpoint import latest_step
from pipeline.training.config import load_train_config
from pipeline.training.driver import train
from pipeline.training.log import draw_curves
from pipeline.training.progress import TrainResult
from pipeline.training.validation import panels
from tests.support import world
from tests.support.networks import random_fcn

STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    world.write_shards(root / "train", 2, 3)
    world.write_shards(root / "val", 1, 2)
    (root / "tiny.yaml").write_text("{name: tiny, classes: [ground, thing, stuff]}")
    return root


@pytest.fixture
def settings(data, tmp_path):
    """Makes a configuration: a very small network, a very short training."""

    def make(output="out", **changes):
        flags = {
            "input.url": str(data / "train"),
            "input.label_set": str(data / "tiny.yaml"),
            "val.url": str(data / "val"),
            "output.url": output if "://" in str(output) else str(tmp_path / output),
            "model.variant": "fcn32s",
            "model.width": 1 / 32,
            "train.max_steps": STEPS,
            "train.batch_size": 2,
            "train.crop": 16,
            "train.checkpoint_every": 2,
            "train.eval_every": 3,
            "train.log_every": 1,
            "train.overlays": 1,
            **{name.replace("__", "."): value for name, value in changes.items()},
        }
        return load_train_config(None, [], flags)

    return make


def weights(config, name="last"):
    store = Store(config.output.url)
    return WeightsFile(store.read(f"{name}.safetensors"), name)


def lines(config):
    data = Store(config.output.url).read("metrics.jsonl")
    return [json.loads(line) for line in data.splitlines()]


class KilledError(Exception):
    """In the place of a SIGKILL."""


def killed_at(step):
    def listen(progress):
        if progress.line["step"] == step and "loss" in progress.line:
            raise KilledError

    return listen


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    return {}


def sha_of(undisturbed, settings, **changes):
    """Of an undisturbed training."""
    key = json.dumps(changes, sort_keys=True)
    if key not in undisturbed:
        undisturbed[key] = train(settings(f"whole{len(undisturbed)}", **changes)).last_sha256
    return undisturbed[key]


def test_it_leaves_behind_what_the_contract_says(settings):
    config = settings()
    result = train(config)
    store = Store(config.output.url)
    names = {info.path for info in store.objects()}
    assert {"last.safetensors", "best.safetensors", "metrics.jsonl", "curves.png"} <= names
    assert {"checkpoints/step-00000004.safetensors", "checkpoints/step-00000006.safetensors"} == {
        name for name in names if name.startswith("checkpoints/")
    }
    assert "overlays/step-00000006/00.jpg" in names and "_SUCCESS" in names
    assert any(name.startswith("tensorboard/events") for name in names)
    assert "_lease.json" not in names
    with Image.open(io.BytesIO(store.read("curves.png"))) as image:
        assert image.size == (1200, 800)
    with Image.open(io.BytesIO(store.read("overlays/step-00000006/00.jpg"))) as image:
        height, width = world.SIZES[0]
        assert image.size == (3 * width, height)
    assert result.step == result.trained_now == STEPS
    assert result.last_sha256 == weights(config).sha256
    found = lines(config)
    assert [line["step"] for line in found if "loss" in line] == list(range(1, STEPS + 1))
    scored = [line for line in found if "evaluation" in line]
    assert [line["step"] for line in scored] == [3, 6]
    assert all(len(line["evaluation"]["iou"]) == 3 and line["images"] == 2 for line in scored)
    best = weights(config, "best").info.origin
    assert best["best"].startswith("the highest mean_iou on VAL")
    assert best["val"] == max(scored, key=lambda line: line["evaluation"]["mean_iou"])["evaluation"]


@pytest.mark.parametrize("count", [1, 3, 11, 21, 60, 61, 150, 280])
def test_curves_of_many_classes_are_told_apart_and_no_legend_covers_them(count, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: drawn.append(self) or save(self, *a, **k)
    )
    names = [f"$a class of {'a long name' if k % 5 == 0 else 'a name'} {k}" for k in range(count)]
    lines = [
        {
            "step": step,
            "evaluation": {
                "pixel_accuracy": 0.9,
                "mean_accuracy": 0.8,
                "mean_iou": 0.7,
                "frequency_weighted_iou": 0.6,
                "iou": [None if k == 1 else 0.1 * step * (k + 1) / count for k in range(count)],
            },
        }
        for step in range(1, 9)
    ]
    with Image.open(io.BytesIO(draw_curves(lines, names))) as image:
        assert image.size == (1200, 800)
    (figure,) = drawn
    iou = figure.axes[-1]
    looks = {
        (c.get_color(), str(c.get_linestyle()), str(c._unscaled_dash_pattern), c.get_marker())
        for c in iou.lines
    }
    assert len(looks) == count
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    entries = [text.get_text() for text in legends[0].get_texts()]
    assert len(entries) == min(count, 150) and entries[0].endswith("  80.0")
    assert count < 2 or entries[-1].endswith("  —")
    for legend in legends:
        box = legend.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 1200 and box.y1 <= 800
        assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)
    assert all(axes.get_window_extent().width > 200 for axes in figure.axes)


def test_event_files_hold_the_scalars(settings):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = settings()
    train(config)
    events = EventAccumulator(f"{config.output.url}/tensorboard")
    events.Reload()
    assert {"train/loss", "val/mean_iou", "val_iou/thing"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, STEPS + 1))


def test_weights_hold_neither_time_nor_place_and_say_how_they_came_to_be(settings, undisturbed):
    config = settings("elsewhere")
    assert train(config).last_sha256 == sha_of(undisturbed, settings)
    origin = weights(config).info.origin
    assert origin["recipe"]["name"] == "modern" and origin["step"] == STEPS
    text = json.dumps(origin)
    assert "elsewhere" not in text and socket.gethostname() not in text


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_training_ends_as_an_undisturbed_one(settings, undisturbed, seed):
    rng = random.Random(seed)
    changes = [{}, {"train__recipe": "heavy", "train__crop": 0, "train__learning_rate": 1e-6},
               {"train__stages": ("32s", "16s"), "model__variant": "fcn16s"}][seed]  # fmt: skip
    expected = sha_of(undisturbed, settings, **changes)
    config = settings("killed", **changes)
    total = STEPS * max(1, len(config.train.stages))
    for step in sorted(rng.sample(range(1, total + 1), 2)):
        with pytest.raises(KilledError):
            train(config, killed_at(step))
    assert train(config).last_sha256 == expected
    steps = [line["step"] for line in lines(config) if "loss" in line]
    assert steps == list(range(1, total + 1))


def test_a_finished_training_is_left_alone(settings):
    config = settings()
    first = train(config)
    before = {info.path: info.etag for info in Store(config.output.url).objects()}
    again = train(config)
    assert (again.trained_now, again.last_sha256) == (0, first.last_sha256)
    assert {info.path: info.etag for info in Store(config.output.url).objects()} == before


def test_who_died_between_the_last_checkpoint_and_the_weights_is_mended(settings, undisturbed):
    config = settings()
    train(config)
    store = Store(config.output.url)
    store.delete("_SUCCESS")
    store.write("last.safetensors", b"of an earlier step")
    assert train(config).last_sha256 == sha_of(undisturbed, settings)


def test_a_damaged_checkpoint_is_passed_over_with_a_word(settings, undisturbed, caplog):
    config = settings()
    with pytest.raises(KilledError):
        train(config, killed_at(5))
    path = "checkpoints/step-00000004.safetensors"
    Store(config.output.url).write(path, Store(config.output.url).read(path)[:99])
    result = train(config)
    assert result.last_sha256 == sha_of(undisturbed, settings)
    assert result.trained_now == STEPS - 2
    assert "step-00000004" in caplog.text


def test_damaged_checkpoints_never_push_out_good_ones(settings):
    """Killed again and again behind each checkpoint, it gets further each time."""
    config = settings()
    store = Store(config.output.url)
    store.write("checkpoints/mine.safetensors", b"of somebody")
    for step in (4, 6):
        store.write(f"checkpoints/step-0000000{step}.safetensors", b"damaged")
    reached = []
    for last in (3, 5):
        with pytest.raises(KilledError):
            train(config, killed_at(last))
        reached.append(latest_step(store))
    assert reached == [2, 4]
    assert train(config).trained_now == 2
    names = [info.path for info in store.objects("checkpoints")]
    assert [name.rpartition("/")[2] for name in sorted(names)] == [
        "mine.safetensors", "step-00000004.safetensors", "step-00000006.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"train__seed": 1}, "seed"), ({"train__max_steps": 7}, r"recipe\.max_steps 6; 7, as"),
     ({"input__include": ("s0*",)}, "input"), ({"model__width": 1 / 16}, "width"),
     ({"limits__max_image_pixels": 10_000}, "max_image_pixels")],
)  # fmt: skip
def test_another_configuration_on_the_same_directory_is_refused(settings, changes, name):
    with pytest.raises(KilledError):
        train(settings(), killed_at(3))
    with pytest.raises(OutputError, match=f"a training with {name}"):
        train(settings(**changes))


def test_a_finished_training_is_not_taken_for_another_one(settings):
    """Also where its checkpoints were removed to free space."""
    train(settings())
    store = Store(settings().output.url)
    for info in store.objects("checkpoints"):
        store.delete(info.path)
    before = store.read("last.safetensors")
    with pytest.raises(OutputError, match="a training with seed 0"):
        train(settings(train__seed=7))
    assert train(settings()).trained_now == 0
    assert store.read("last.safetensors") == before


def test_who_began_before_a_setting_was_written_down_goes_on(settings, undisturbed):
    with pytest.raises(KilledError):
        train(settings(), killed_at(3))
    store = Store(settings().output.url)
    document = json.loads(store.read("_train.json"))
    del document["parts"]["max_image_pixels"], document["parts"]["val_labels"]
    store.write("_train.json", json.dumps(document).encode())
    assert train(settings()).last_sha256 == sha_of(undisturbed, settings)


def test_settings_that_change_no_weights_may_differ(settings, undisturbed):
    with pytest.raises(KilledError):
        train(settings(), killed_at(3))
    changed = settings(train__checkpoint_every=3, compute__loaders=1, train__log_every=2)
    assert train(changed).last_sha256 == sha_of(undisturbed, settings)


def test_one_driver(settings):
    config = settings()
    with Lease(Store(config.output.url)), pytest.raises(LeaseError):
        train(config)


def test_the_output_of_a_run_is_refused(settings):
    config = settings()
    Store(config.output.url).write("_run.json", b"{}")
    with pytest.raises(OutputError, match="the output of fcnseg run"):
        train(config)


def test_any_store_will_do(settings, undisturbed):
    config = settings("memory://a-training")
    assert train(config).last_sha256 == sha_of(undisturbed, settings)
    assert Store("memory://a-training").read("curves.png").startswith(b"\x89PNG")


def test_trained_weights_label_at_once(settings, data, tmp_path):
    config = settings()
    train(config)
    done = run(
        world.config(data / "val", tmp_path / "masks", f"{config.output.url}/best.safetensors")
    )
    assert done.exit_code == 0
    best = weights(config, "best").info.origin["val"]
    assert done.scores["mean_iou"] == pytest.approx(best["mean_iou"])
    assert done.scores["iou"] == pytest.approx(best["iou"])


def test_stages_follow_one_another_and_leave_their_weights(settings):
    config = settings(train__stages=("32s", "16s", "8s"), model__variant="fcn8s")
    result = train(config)
    assert result.step == 3 * STEPS and result.variant == "fcn8s"
    for name, variant in (
        ("stage-fcn32s", "fcn32s"),
        ("stage-fcn16s", "fcn16s"),
        ("last", "fcn8s"),
    ):
        assert weights(config, name).info.variant == variant
    assert result.best["step"] > 2 * STEPS  # of the last stage
    assert weights(config, "best").info.variant == "fcn8s"


def test_more_classes_than_the_initial_weights_have(settings, tmp_path):
    path = tmp_path / "init.safetensors"
    path.write_bytes(world.weights_bytes(random_fcn("fcn32s", 3, 1 / 32)))
    more = tmp_path / "more.yaml"
    more.write_text("{name: more, classes: [ground, thing, stuff, fourth]}")
    config = settings(model__init=str(path), input__label_set=str(more))
    train(config)
    assert weights(config).load().score_fr.weight.shape[0] == 4
    assert weights(config).info.origin["init_sha256"] == WeightsFile(path.read_bytes(), "").sha256


def test_initial_weights_bring_their_labels_and_preprocessing(settings, weights_file):
    config = settings(model__init=str(weights_file), model__variant="fcn8s", input__label_set=None)
    train(config)
    assert weights(config).info.labels.classes == world.TINY.classes


@pytest.fixture
def weights_file(tmp_path):
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(world.weights_bytes(random_fcn("fcn16s", 3, 1 / 32)))
    return path


def test_a_diverging_training_says_where_and_what_to_try(settings):
    config = settings(train__recipe="heavy", train__crop=0, train__learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"step \d, samples img\d.*train\.learning_rate"):
        train(config)
    assert lines(config)[0]["step"] == 1
    assert "_lease.json" not in {info.path for info in Store(config.output.url).objects()}


def test_weights_that_are_not_finite_are_never_the_best(settings, monkeypatch):
    """Not even where the first look at them is the evaluation."""
    learn = Learner.learn

    def overflown(self, number, batches):
        lesson = learn(self, number, batches)
        with torch.no_grad():
            self.model.score_fr.bias[0] = torch.nan
        return lesson

    monkeypatch.setattr(Learner, "learn", overflown)
    config = settings(train__eval_every=1, train__checkpoint_every=5)
    with pytest.raises(TrainingError, match=r"score_fr\.bias holds NaN"):
        train(config)
    names = {info.path for info in Store(config.output.url).objects()}
    assert not {"best.safetensors", "last.safetensors"} & names


def test_out_of_range_labels_are_refused_before_the_first_step(settings, tmp_path):
    members = world.samples(0, 3)
    wrong = world.label(2, world.SIZES[2])
    wrong[3, 4] = 7
    members["img2.png"] = world.png(wrong)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(world.tar(members))
    config = settings(input__url=str(tmp_path / "in"))
    with pytest.raises(LabelError, match=r"img2.*label value 7"):
        train(config)
    assert not Store(config.output.url).objects("checkpoints")


def test_a_bad_image_is_skipped_and_counted(settings, tmp_path, caplog):
    members = {**world.samples(0, 4), "img1.jpg": b"no image"}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(world.tar(members))
    result = train(settings(input__url=str(tmp_path / "in")))
    assert result.bad == 1 and caplog.text.count("skipped /") == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input__label_set": None}, ConfigError, "--label-set: no label set"),
        ({"train__stages": ("32s", "16s")}, ConfigError, "stages that end with the variant"),
        ({"compute__workers": 3}, ConfigError, "3 workers for batches of 2"),
        ({"model__variant": "fcn32s-color-d"}, ConfigError, "with 4 channels"),
        ({"model__preprocessing": "nobody"}, ConfigError, "one of centred"),
        ({"model__init": "/nowhere.safetensors"}, WeightsError, "no such file"),
        (
            {"input__url": "/nowhere/at/all"},
            InputError,
            "no objects: the folder or prefix is",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(settings, changes, error, message):
    with pytest.raises(error, match=message):
        train(settings(**changes))
    assert not Path(settings().output.url).exists()


def test_an_unknown_key_is_named_with_those_that_are_known(settings):
    with pytest.raises(
        ConfigError, match=r"config train\.steps: an unknown key; known here: recipe"
    ):
        settings(train__steps=3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({}, "use --recipe modern"), ({"model__init": "16"}, "--stages 32s,16s,8s")],
)
def test_advice_about_the_recipes_of_the_authors(settings, tmp_path, caplog, changes, said):
    from pipeline.training.prepare import prepare_training

    if changes:
        from dataclasses import replace

        from fcn_core.preprocessing import CAFFE_VOC
        from fcn_core.weights.weights_file import save_weights
        from fcn_core.weights.weights_info import INITIALISATION, WeightsInfo

        model = random_fcn("fcn8s", 3, 1 / 32)
        info = WeightsInfo(model.architecture, world.TINY, CAFFE_VOC, {"role": INITIALISATION})
        path = tmp_path / "vgg.safetensors"
        path.write_bytes(save_weights(model, replace(info)))
        changes = {"model__init": str(path), "model__variant": "fcn8s"}
    prepare_training(settings(train__recipe="heavy", **changes))
    assert said in caplog.text


@pytest.mark.parametrize("size", [(3, 30_000), (70_000, 2), (1500, 1200)])
def test_images_of_any_shape_can_be_drawn(size):
    image = np.zeros((*size, 3), np.uint8)
    drawn = panels(image, image[..., 0], image[..., 0], world.TINY)
    with Image.open(io.BytesIO(drawn)) as curves:
        curves.load()


def test_the_end_of_a_training_names_the_figure_that_chose_the_best(
    monkeypatch: pytest.MonkeyPatch, fcnseg
) -> None:
    scores = {"iou": [0.25, None], "mean_iou": 0.25, "pixel_accuracy": 0.75}
    best = {"step": 60, "evaluation": scores}
    end = TrainResult("out", 80, 80, "fcn8s", "abc", best, ("a", "b"), 0, 80, 1.0)
    monkeypatch.setattr("pipeline.training.driver.train", lambda *_: end)
    code, out, _ = fcnseg("train", "in", "--output", "out", "--label-set", "voc")
    line = "best on VAL: step 60, highest mean IoU 0.2500, pixel accuracy 0.7500 -> out/best."
    assert code == 0 and line in out
