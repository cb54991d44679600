"""A weights file is ours, whole and of the network that it names, or it is refused."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcn_core.errors import WeightsError
from fcn_core.labels import LabelSet
from fcn_core.networks.architecture import VARIANTS, Architecture
from fcn_core.preprocessing import CAFFE_VOC, CENTRED_RGB
from fcn_core.weights.weights_file import WeightsFile, read_weights, save_weights
from fcn_core.weights.weights_info import WeightsInfo

WIDTH = 1 / 16
LABELS = LabelSet("four", ("a", "b", "c", "d"))
ARCHITECTURE = Architecture("fcn8s", 4, WIDTH)
INFO = WeightsInfo(ARCHITECTURE, LABELS, CAFFE_VOC, {"trained": "never", "images": 0})


@pytest.fixture(scope="module")
def saved(random_fcn):
    return save_weights(random_fcn(), INFO)


def split(data):
    """The header as JSON, and the tensors."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, tensors):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def with_metadata(data, **changes):
    """The file with other metadata; None removes a key."""
    header, tensors = split(data)
    document = json.loads(header["__metadata__"]["fcn"]) | changes
    document = {key: value for key, value in document.items() if value is not None}
    header["__metadata__"]["fcn"] = json.dumps(document)
    return joined(header, tensors)


def with_tensors(data, **changes):
    """The file with other tensors; None removes one."""
    tensors = safetensors.torch.load(data) | {k.replace("__", "."): v for k, v in changes.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return safetensors.torch.save(tensors, metadata=split(data)[0]["__metadata__"])


# --- Round trips -------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_network_survives_its_file(random_fcn, variant):
    model = random_fcn(variant)
    data = save_weights(model, WeightsInfo(model.architecture, LABELS, CENTRED_RGB))
    loaded = WeightsFile(data, "w").load()
    assert loaded.architecture == model.architecture
    assert not loaded.training
    image = torch.ones(1, model.architecture.input_channels, 9, 5)
    assert torch.equal(loaded(image), model(image))


def test_what_a_file_says_of_itself_survives(saved):
    assert WeightsFile(saved, "w").info == INFO


def test_equal_weights_are_equal_bytes(random_fcn, saved):
    shuffled = dict(reversed(INFO.origin.items()))
    info = WeightsInfo(ARCHITECTURE, LABELS, CAFFE_VOC, shuffled)
    assert save_weights(random_fcn(), info) == saved
    assert save_weights(WeightsFile(saved, "w").load(), INFO) == saved
    assert save_weights(random_fcn(seed=1), INFO) != saved


def test_the_digest_is_that_of_the_whole_file(saved):
    assert WeightsFile(saved, "w").sha256 == hashlib.sha256(saved).hexdigest()


def test_half_precision_halves_the_file_and_loads_as_float32(random_fcn, saved):
    data = save_weights(random_fcn(), INFO, half=True)
    loaded = WeightsFile(data, "w").load().state_dict()
    assert len(data) < 0.6 * len(saved)
    assert all(
        torch.equal(loaded[name], tensor.half().float())
        for name, tensor in random_fcn().state_dict().items()
    )


def test_a_path_is_read_from_the_disk(tmp_path, saved):
    path = tmp_path / "w.safetensors"
    path.write_bytes(saved)
    assert read_weights(path).info == read_weights(str(path)).info == INFO


def test_saving_under_the_description_of_another_network_is_refused(random_fcn):
    with pytest.raises(WeightsError, match="metadata for"):
        save_weights(random_fcn("fcn16s"), INFO)


def test_the_header_is_read_without_torch(tmp_path, saved):
    path = tmp_path / "w.safetensors"
    path.write_bytes(saved)
    program = (
        "import sys; from fcn_core.weights.weights_file import read_weights;"
        f"info = read_weights({str(path)!r}).info;"
        "assert info.labels.num_classes == 4; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- Damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.00001, 0.0001, 0.5, 0.999999])
def test_a_truncated_file_is_refused(saved, share):
    with pytest.raises(WeightsError, match=r"^weights w: .*(a complete safetensors|truncated)"):
        WeightsFile(saved[: int(share * len(saved))], "weights w")


def test_a_file_cut_in_its_tensors_or_too_long_says_so(saved):
    for data in (saved[:-1], saved + b"\0"):
        with pytest.raises(WeightsError, match=f"{len(data)} bytes; .*{len(saved)}.*truncated"):
            WeightsFile(data, "w")


@pytest.mark.parametrize("data", [b"PK\3\4" + bytes(100), b"x" * 5, bytes(100)])
def test_what_is_not_safetensors_is_refused(data):
    with pytest.raises(WeightsError, match="a complete safetensors file"):
        WeightsFile(data, "w")


def test_a_foreign_safetensors_file_is_refused():
    foreign = safetensors.torch.save({"layer.weight": torch.ones(2)}, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="without metadata of this project"):
        WeightsFile(foreign, "w")


@pytest.mark.parametrize("metadata", [None, [], {"fcn": 1}, {"fcn": "no JSON"}, {"fcn": "[1]"}])
def test_unreadable_metadata_is_refused(saved, metadata):
    header, tensors = split(saved)
    header["__metadata__"] = metadata
    with pytest.raises(WeightsError, match="without metadata of this project"):
        WeightsFile(joined(header, tensors), "w")


@pytest.mark.parametrize("tensor", [{}, {"data_offsets": [0]}, {"data_offsets": [0, "x"]}, 3])
def test_a_malformed_header_is_refused(saved, tensor):
    header, tensors = split(saved)
    with pytest.raises(WeightsError, match="no safetensors header"):
        WeightsFile(joined(header | {"fc6.bias": tensor}, tensors), "w")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_damaged_header_is_refused_or_harmless_but_never_another_error(saved, data):
    damaged = bytearray(saved)
    (length,) = struct.unpack("<Q", saved[:8])
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, 7 + length))] = data.draw(st.sampled_from(b'09"{}[],:e-z'))
    try:
        WeightsFile(bytes(damaged), "w").load()
    except WeightsError as error:
        assert error.where == "w"


# --- Metadata ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"format": "fcn-pipeline/2"}, "format 'fcn-pipeline/2'"),
        ({"format": None}, "format None"),
        ({"variant": None}, "'variant'"),
        ({"labels": None}, "'labels'"),
        ({"origin": None}, "'origin'"),
        ({"width": "wide"}, "wide"),
        ({"labels": {"name": "x"}}, "no classes"),
        ({"labels": {"name": "x", "classes": []}}, "0 classes"),
        ({"preprocessing": {}}, "preprocessing"),
        ({"preprocessing": CENTRED_RGB.to_dict() | {"channels": "GBR"}}, "GBR"),
        ({"preprocessing": CENTRED_RGB.to_dict() | {"std": [1, 1, 0]}}, "one positive std"),
        ({"preprocessing": CENTRED_RGB.to_dict() | {"mean": [1, 1]}}, "one mean and"),
        ({"preprocessing": CENTRED_RGB.to_dict() | {"mean": [1, 1, float("nan")]}}, "nan"),
    ],
    ids=str,
)
def test_wrong_metadata_is_refused(saved, changes, found):
    with pytest.raises(WeightsError, match=found):
        WeightsFile(with_metadata(saved, **changes), "w")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"variant": "fcn4s"}, "variant 'fcn4s'; one of fcn32s, fcn16s, fcn8s, fcn8s-atonce"),
        ({"variant": "fcn16s"}, "score_pool3.bias is not part of the network; variant fcn16s"),
        ({"width": 0}, "width 0; above 0"),
        ({"width": 1e9}, r"width 1e\+09; above 0"),
        ({"width": float("nan")}, "width nan; above 0"),
        ({"width": 1 / 8}, r"conv1_1.bias is \(4,\); \(8,\) for fcn8s, width 0.125, 4 classes"),
        ({"labels": {"name": "x", "classes": ["a"]}}, r"score_fr.bias is \(4,\); \(1,\) for"),
    ],
    ids=str,
)
def test_the_description_of_another_network_is_refused(saved, changes, found):
    with pytest.raises(WeightsError, match=found):
        WeightsFile(with_metadata(saved, **changes), "w").load()


# --- Tensors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"fc7__bias": None}, "tensor fc7.bias is missing; variant fcn8s has 36 tensors"),
        ({"upscore2__weight": torch.ones(1)}, "tensor upscore2.weight is not part of the network"),
        ({"fc7__bias": torch.ones(3)}, r"tensor fc7.bias is \(3,\); \(256,\) for fcn8s"),
        ({"fc7__bias": torch.full((256,), torch.nan)}, "tensor fc7.bias holds NaN or infinity"),
        ({"fc7__bias": torch.full((256,), torch.inf)}, "tensor fc7.bias holds NaN or infinity"),
    ],
    ids=["missing", "extra", "shape", "NaN", "infinity"],
)
def test_tensors_that_are_not_the_networks_are_refused(saved, changes, found):
    with pytest.raises(WeightsError, match=f"w: {found}"):
        WeightsFile(with_tensors(saved, **changes), "w").load()


# --- Places ------------------------------------------------------------------------------------


def test_a_missing_file_is_refused_with_its_path(tmp_path):
    with pytest.raises(
        WeightsError, match=r"absent\.safetensors: No such file.*\.safetensors file"
    ):
        read_weights(tmp_path / "absent.safetensors")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="Is a directory"):
        read_weights(tmp_path)
