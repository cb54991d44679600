"""The weights commands as a person calls them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fcn_core.labels import LABEL_SETS, VOC
from fcn_core.networks.architecture import VARIANTS, Architecture
from fcn_core.networks.model import FCN
from fcn_core.preprocessing import CAFFE_VOC, PREPROCESSINGS
from fcn_core.weights import published
from fcn_core.weights.published import PUBLISHED
from fcn_core.weights.weights_file import read_weights
from tests.support import formats, world
from tests.support.formats import caffemodel, torch_file, vgg16_state

Fcnseg = Callable[..., tuple[int, str, str]]
TINY = "name: tiny\nclasses: [ground, thing, stuff]\n"


@pytest.fixture
def label_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def convert(fcnseg: Fcnseg, tmp_path: Path, label_file: Path) -> Callable[..., Any]:
    """Write bytes as a file and convert it: (exit code, stdout, stderr, path of the result)."""

    def call(
        data: bytes, *args: object, form: str = "caffe", variant: str = "fcn8s",
        name: str = "file", labels: object = label_file,
    ) -> tuple[int, str, str, Path]:  # fmt: skip
        source, result = tmp_path / name, tmp_path / "ours.safetensors"
        source.write_bytes(data)
        result.unlink(missing_ok=True)
        named = ("--from", form, "--variant", variant, "--label-set", labels)
        return (*fcnseg("weights", "convert", source, result, *named, *args), result)

    return call


@pytest.fixture(scope="module")
def model(random_fcn: Callable[..., FCN]) -> FCN:
    return random_fcn(num_classes=3, width=1 / 32)


def test_a_converted_file_segments_images_as_its_source_would(
    convert: Callable[..., Any], model: FCN, fcnseg: Fcnseg, tmp_path: Path
) -> None:
    image = world.image(3)
    bgr = image[..., ::-1].astype(np.float32) - np.float32(CAFFE_VOC.mean)
    with torch.inference_mode():
        logits = model(torch.from_numpy(bgr.transpose(2, 0, 1).copy())[None])
    code, out, _, result = convert(caffemodel(model))
    assert code == 0 and "fcn8s, width 0.03125, fixed upsampling" in out
    (tmp_path / "a.png").write_bytes(world.png(image))
    assert fcnseg("predict", tmp_path / "a.png", "--output", tmp_path, "--weights", result)[0] == 0
    with Image.open(tmp_path / "a-mask.png") as mask:
        np.testing.assert_array_equal(np.array(mask), logits[0].argmax(0).numpy())


def test_convert_says_what_it_wrote_and_where_it_came_from(
    convert: Callable[..., Any], model: FCN
) -> None:
    data = caffemodel(model)
    code, out, _, result = convert(data, "--json")
    document = json.loads(out)
    assert code == 0 and document["bytes"] == result.stat().st_size
    assert document["sha256"] == hashlib.sha256(result.read_bytes()).hexdigest()
    assert document["published"] is None
    info = read_weights(result).info
    assert info.origin == {"format": "caffe", "source_sha256": hashlib.sha256(data).hexdigest()}
    assert info.labels.classes == ("ground", "thing", "stuff")


def test_the_same_source_gives_the_same_bytes(convert: Callable[..., Any], model: FCN) -> None:
    first = convert(caffemodel(model))[3].read_bytes()
    assert convert(caffemodel(model), name="other")[3].read_bytes() == first


def test_a_file_with_other_bytes_is_not_overwritten(
    convert: Callable[..., Any], model: FCN, tmp_path: Path, fcnseg: Fcnseg, label_file: Path
) -> None:
    ours = convert(caffemodel(model))[3]
    options = ("--from", "caffe", "--variant", "fcn8s", "--label-set", label_file)
    assert fcnseg("weights", "convert", tmp_path / "file", ours, *options)[0] == 0  # equal bytes
    ours.write_text("notes")
    code, _, err = fcnseg("weights", "convert", tmp_path / "file", ours, *options)
    assert code == 1 and "an existing file with other bytes" in err
    assert ours.read_text() == "notes"


def test_source_and_destination_may_be_any_url(
    fcnseg: Fcnseg, model: FCN, label_file: Path
) -> None:
    from pipeline.storage.store import write_url

    write_url("memory://weights/net.caffemodel", caffemodel(model))
    urls = ("memory://weights/net.caffemodel", "memory://weights/ours.safetensors")
    options = ("--from", "caffe", "--variant", "fcn8s", "--label-set", label_file)
    assert fcnseg("weights", "convert", *urls, *options)[0] == 0
    assert "all finite" in fcnseg("weights", "verify", urls[1])[1]


def test_checksums_that_are_given_must_match(convert: Callable[..., Any], model: FCN) -> None:
    data = caffemodel(model)
    right = hashlib.md5(data).hexdigest()
    assert (
        convert(data, "--md5", right.upper(), "--sha256", hashlib.sha256(data).hexdigest())[0] == 0
    )
    for kind in ("md5", "sha256"):
        code, _, err, _ = convert(data, f"--{kind}", "0" * 32)
        assert code == 1 and f"{kind} " in err and "as given" in err and "again" in err


def test_a_file_with_a_published_name_must_be_that_file(
    convert: Callable[..., Any], model: FCN
) -> None:
    code, _, err, result = convert(caffemodel(model), name="fcn8s-heavy-pascal.caffemodel")
    assert code == 1 and "the published fcn8s-heavy-pascal.caffemodel has sha1 c449ea74" in err
    assert not result.exists()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make bytes a published file."""

    def add(data: bytes, **fields: Any) -> None:
        checksum = f"md5:{hashlib.md5(data).hexdigest()}"
        values = {
            "file": "known.pth",
            "format": "pytorch-fcn",
            "variant": "fcn8s-atonce",
            "label_sets": ("voc",),
            "purpose": "",
            "source": "",
            "checksum": checksum,
        }
        entry = published.Published(**(values | fields))
        monkeypatch.setattr(published, "PUBLISHED", (entry,))

    return add


def test_the_checksum_of_a_published_file_tells_its_variant(
    convert: Callable[..., Any], model: FCN, known: Callable[..., None]
) -> None:
    """Staged and at-once state dicts are alike; of published ones the checksum is known."""
    data = torch_file(formats.as_written(model))
    known(data)
    code, _, err, _ = convert(data, form="pytorch-fcn")
    assert code == 1 and "by its checksum: the published known.pth" in err
    assert "Use --from pytorch-fcn --variant fcn8s-atonce" in err
    code, out, _, result = convert(data, form="pytorch-fcn", variant="fcn8s-atonce")
    assert code == 0 and "published weights, recognized by checksum: known.pth" in out
    assert read_weights(result).info.origin["published"] == "known.pth"


def test_the_mean_is_the_published_files_or_the_named_one(
    convert: Callable[..., Any], model: FCN, known: Callable[..., None]
) -> None:
    data = caffemodel(model)
    name = "nyud-fcn32s-color-heavy.caffemodel"
    known(data, format="caffe", variant="fcn8s", preprocessing="siftflow")
    assert preprocessing(convert(data)) == PREPROCESSINGS["siftflow"]
    assert preprocessing(convert(data, "--preprocessing", "nyud")) == PREPROCESSINGS["nyud"]
    known(b"", file=name, format="caffe", variant="fcn8s", preprocessing="nyud", checksum="")
    found = convert(data, name=name)
    assert preprocessing(found) == PREPROCESSINGS["nyud"] and "by its name" in found[1]
    assert preprocessing(convert(data)) == CAFFE_VOC


def test_a_published_name_without_a_checksum_is_not_taken_for_another_format(
    convert: Callable[..., Any], random_fcn: Callable[..., FCN]
) -> None:
    trunk = random_fcn("fcn32s", num_classes=3, width=1 / 32)
    old = torch_file(vgg16_state(trunk, (1, 4, 6)))
    options = {"variant": "fcn32s", "name": "vgg16-00b39a1b.pth"}
    code, _, err, _ = convert(old, form="torchvision", **options)
    assert code == 1 and "by its name: the published vgg16-00b39a1b.pth" in err
    assert "Use --from vgg-caffe-pth" in err
    assert preprocessing(convert(old, form="vgg-caffe-pth", **options)) == CAFFE_VOC
    depth = convert(old, form="vgg-caffe-pth", name=options["name"], variant="fcn32s-color-d")
    assert preprocessing(depth) == PREPROCESSINGS["nyud-color-d"]


def preprocessing(converted: tuple[int, str, str, Path]) -> Any:
    assert converted[0] == 0, converted[2]
    return read_weights(converted[3]).info.preprocessing


def test_two_heads_take_two_label_sets(
    fcnseg: Fcnseg, tmp_path: Path, convert: Callable[..., Any]
) -> None:
    heads = FCN(Architecture("fcn32s", 33, 1 / 64, (("sem", 33), ("geo", 3))))
    heads.reset_parameters()
    code, out, err, result = convert(
        caffemodel(heads), "--label-set", "siftflow-geo", variant="fcn32s", labels="siftflow"
    )
    assert code == 0, err
    assert "head sem: 33 classes" in out and "head geo: 3 classes" in out
    assert preprocessing((code, out, err, result)) == PREPROCESSINGS["siftflow"]
    assert "head sem: 33" in fcnseg("weights", "show", result)[1]
    assert "of head geo" in fcnseg("weights", "verify", result)[1]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--preprocessing", "imagenet"), 2, "'imagenet'; one of voc, context"),
        (("--variant", "fcn4s"), 2, "fcn4s"),
        (("--from", "keras"), 2, "keras"),
        (("--output-stride", "16"), 1, "only fcn32s"),
        (("--label-set", "voc"), 1, "one label set for each"),
        (("--label-set", "no-such-set"), 2, "no-such-set"),
    ],
)
def test_wrong_options_are_named(
    convert: Callable[..., Any], model: FCN, args: tuple[str, ...], code: int, message: str
) -> None:
    found = convert(caffemodel(model), *args)
    assert found[0] == code and message in found[2] and not found[3].exists()


def test_wrong_places_are_named(
    fcnseg: Fcnseg, convert: Callable[..., Any], model: FCN, label_file: Path, tmp_path: Path
) -> None:
    options = ("--from", "caffe", "--variant", "fcn8s", "--label-set", label_file)
    absent = fcnseg("weights", "convert", tmp_path / "absent", tmp_path / "x", *options)
    assert absent[0] == 1 and "absent" in absent[2]
    source = tmp_path / "net.caffemodel"
    source.write_bytes(caffemodel(model))
    same = fcnseg("weights", "convert", source, source, *options)
    assert same[0] == 2 and "the same file as SRC and DST" in same[2]
    folder = fcnseg("weights", "convert", source, f"{tmp_path}/", *options)
    assert folder[0] == 2 and "a folder" in folder[2]
    for command in ("show", "verify"):
        code, _, err = fcnseg("weights", command, source)
        assert code == 1 and "a complete safetensors file" in err and "convert" in err


# --- The tag is checked ever after ---------------------------------------------------------------


def test_an_initialisation_labels_nothing(
    convert: Callable[..., Any], random_fcn: Callable[..., FCN], fcnseg: Fcnseg, shards: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    trunk = random_fcn("fcn32s", num_classes=3, width=1 / 32)
    code, out, _, result = convert(torch_file(vgg16_state(trunk)), form="vgg-caffe-pth")
    assert code == 0 and "initial weights for a training only" in out
    assert "initial weights for a training only" in fcnseg("weights", "verify", result)[1]
    for command in (("run", shards, tmp_path / "out"), ("predict", shards, "--output", tmp_path)):
        code, _, err = fcnseg(*command, "--weights", result)
        assert code == 1 and "initial weights for training" in err
    assert not (tmp_path / "out").exists()


def test_an_output_of_staged_weights_refuses_the_same_tensors_at_once(
    convert: Callable[..., Any], model: FCN, fcnseg: Fcnseg, shards: Path, tmp_path: Path
) -> None:
    data = torch_file(formats.as_written(model))
    for variant, expected in (("fcn8s", 0), ("fcn8s-atonce", 2)):
        _, _, _, result = convert(data, form="pytorch-fcn", variant=variant)
        code, _, err = fcnseg("run", shards, tmp_path / "out", "--weights", result)
        assert code == expected, err


# --- list, show, verify --------------------------------------------------------------------------


def test_list_names_every_published_file_with_score_and_checksum(fcnseg: Fcnseg) -> None:
    code, out, _ = fcnseg("weights", "list")
    assert code == 0
    for entry in PUBLISHED:
        (line,) = [line for line in out.splitlines() if f" {entry.file} " in line]
        assert entry.checksum in line and entry.purpose in out
        if entry.scores:
            assert f"{entry.scores['mean_iou']:.2f} %" in line
    assert json.loads(fcnseg("weights", "list", "--json")[1]) == [e.to_dict() for e in PUBLISHED]


def test_list_of_one_file_says_how_to_convert_it(fcnseg: Fcnseg) -> None:
    _, out, _ = fcnseg("weights", "list", "siftflow-fcn16s-heavy.caffemodel")
    assert "--variant fcn16s --label-set siftflow --label-set siftflow-geo" in out
    _, out, _ = fcnseg("weights", "list", "fcn8s_from_caffe.pth")
    assert "md5 de93e540ec79512f8770033849c8ae89" in out and "65.51 %" in out
    code, _, err = fcnseg("weights", "list", "resnet")
    assert code == 2 and "not the name of published weights" in err


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.file)
def test_what_is_listed_can_be_asked_for(entry: published.Published) -> None:
    assert entry.variant is None or entry.variant in VARIANTS
    assert set(entry.label_sets) <= set(LABEL_SETS)
    means = PREPROCESSINGS[entry.preprocessing].mean
    assert len(means) == Architecture(entry.variant or "fcn32s", 2).input_channels
    assert bool(entry.scores) == bool(entry.scores_from)
    lengths = {"": 0, "md5": 32, "sha1": 40, "sha256": 8}
    kind, _, digest = entry.checksum.partition(":")
    assert len(digest) == lengths[kind] and set(digest) <= set("0123456789abcdef")


def test_show_prints_shapes_parameters_and_metadata(fcnseg: Fcnseg, weights: Path) -> None:
    code, out, _ = fcnseg("weights", "show", weights)
    assert code == 0 and "conv1_1.weight" in out and "2 x 3 x 3 x 3" in out
    document = json.loads(fcnseg("weights", "show", weights, "--json")[1])
    loaded = read_weights(weights).load()
    assert document["parameters"] == sum(p.numel() for p in loaded.parameters())
    assert document["variant"] == "fcn8s" and document["heads"][0]["label_set"] == "tiny"
    assert f"{document['parameters']:,} parameters" in out


def test_verify_loads_labels_and_compares_the_checksum(fcnseg: Fcnseg, weights: Path) -> None:
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    code, out, _ = fcnseg("weights", "verify", weights, "--sha256", sha256)
    assert code == 0 and f"all finite, sha256 {sha256}" in out
    code, _, err = fcnseg("weights", "verify", weights, "--sha256", "0" * 64)
    assert code == 1 and "as given" in err


def test_verify_refuses_nan_and_logits_that_overflow(
    fcnseg: Fcnseg, model: FCN, tmp_path: Path
) -> None:
    for value, found in ((torch.nan, "fc7.bias holds NaN"), (1e38, "logits hold NaN or infinity")):
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state["fc7.bias"].fill_(value)
        state["score_fr.weight"].fill_(100)
        damaged = FCN(model.architecture)
        damaged.load_state_dict(state)
        path = tmp_path / "damaged.safetensors"
        path.write_bytes(world.weights_bytes(damaged))
        code, _, err = fcnseg("weights", "verify", path)
        assert code == 1 and found in err


def test_classes_of_voc_are_in_the_file(
    convert: Callable[..., Any], random_fcn: Callable[..., FCN]
) -> None:
    data = caffemodel(random_fcn("fcn32s", num_classes=21, width=1 / 64))
    _, out, _, result = convert(data, variant="fcn32s", labels="voc")
    assert read_weights(result).info.labels == VOC and "tvmonitor" in out


def test_halving_keeps_the_network_and_rounds_its_numbers(
    fcnseg: Fcnseg, tmp_path: Path, weights: Path
) -> None:
    small = tmp_path / "small.safetensors"
    code, out, err = fcnseg("weights", "halve", weights, small)
    assert code == 0, err
    before, after = read_weights(weights), read_weights(small)
    assert after.sha256 in out
    assert after.info == before.info
    assert len(after.data) < 0.6 * len(before.data)
    old, new = before.load().state_dict(), after.load().state_dict()
    assert all(torch.equal(new[name], old[name].half().float()) for name in old)
    again = tmp_path / "again.safetensors"
    assert fcnseg("weights", "halve", small, again)[0] == 0
    assert again.read_bytes() == small.read_bytes()
    assert fcnseg("weights", "halve", weights, small)[0] == 0  # the same bytes are there already


def test_what_float16_cannot_hold_is_not_halved(fcnseg: Fcnseg, tmp_path: Path, model: FCN) -> None:
    large = tmp_path / "large.safetensors"
    with torch.no_grad():
        kept = model.score_fr.bias.clone()
        model.score_fr.bias[0] = 1e5
        large.write_bytes(world.weights_bytes(model))
        model.score_fr.bias.copy_(kept)
    code, _, err = fcnseg("weights", "halve", large, tmp_path / "small.safetensors")
    assert code != 0
    assert "score_fr.bias holds NaN or infinity" in err.replace("\n", " ")
    assert not (tmp_path / "small.safetensors").exists()


def test_halving_refuses_to_write_over_another_file(
    fcnseg: Fcnseg, tmp_path: Path, weights: Path
) -> None:
    there = tmp_path / "there.safetensors"
    there.write_bytes(b"something else")
    assert fcnseg("weights", "halve", weights, there)[0] != 0
    assert fcnseg("weights", "halve", weights, weights)[0] != 0
    assert there.read_bytes() == b"something else"
