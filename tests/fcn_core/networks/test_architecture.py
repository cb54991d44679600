"""The description of a network survives its file, and says no to what cannot be built."""

from __future__ import annotations

import pytest
import torch

from fcn_core.errors import WeightsError
from fcn_core.networks.architecture import VARIANTS, Architecture
from fcn_core.networks.model import FCN
from tests.support.oracles import TRUNK

HEADS = (("sem", 33), ("geo", 3))
UNUSUAL = [
    Architecture("fcn16s", 33, 0.5, HEADS),
    Architecture("fcn8s", 21, upsampling="learned"),
    Architecture("fcn32s", 21, output_stride=8),
    Architecture("fcn32s-color-hha", 40, 1 / 16, (), "learned", 16),
]


def names(architecture):
    with torch.device("meta"):
        return list(FCN(architecture).state_dict())


@pytest.mark.parametrize("architecture", [*UNUSUAL, *(Architecture(v, 5) for v in VARIANTS)])
def test_a_description_is_read_back(architecture):
    document = {"format": "of a larger document", **architecture.to_dict()}
    assert Architecture.from_dict(document, architecture.num_classes) == architecture


def test_a_usual_network_is_described_as_ever():
    assert Architecture("fcn8s", 21).to_dict() == {"variant": "fcn8s", "width": 1.0}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"variant": "fcn4s"}, "variant 'fcn4s'; one of fcn32s, "),
        ({"variant": ["fcn8s"]}, "variant"),
        ({"width": 0}, "width 0; above 0"),
        ({"width": "wide"}, "unreadable network"),
        ({"width": None}, "unreadable network"),
        ({"upsampling": "nearest"}, "upsampling 'nearest'; fixed or learned"),
        ({"output_stride": 4}, "output stride 4; 32, 16 or 8"),
        ({"output_stride": 8}, "output stride 8 of fcn8s; 32, because only fcn32s"),
        ({"heads": [["sem", 4], ["geo", 3]]}, "5 classes, but heads"),
        ({"heads": [["a", 5], ["a", 3]]}, "different names"),
        ({"heads": [["", 5]]}, "different names"),
        ({"heads": [["a.b", 5]]}, "different names"),
        ({"heads": [["a", 5], ["b", 0]]}, "at least one class"),
        ({"heads": [["a"]]}, "unreadable network"),
        ({"heads": 3}, "unreadable network"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused_with_its_place(changes, found):
    document = {"variant": "fcn8s", "width": 1.0} | changes
    with pytest.raises(WeightsError, match=rf"^file w: .*{found}"):
        Architecture.from_dict(document, 5, "file w")


def test_no_classes_are_refused():
    with pytest.raises(WeightsError, match="0 classes"):
        Architecture("fcn8s", 0)


# The names that net.py gives, and with them those of every released file.
def test_layers_have_the_published_names():
    trunk = [name for name in TRUNK if name[0] in "cf"]
    both = ("weight", "bias")
    hha = Architecture("fcn32s-color-hha", 40, upsampling="learned")
    expected = {f"{n}{s}.{k}" for n in (*trunk, "score_fr") for s in ("color", "hha") for k in both}
    assert set(names(hha)) == expected | {"upscore.weight"}
    early = names(Architecture("fcn32s-color-d", 40))
    assert early[0] == "conv1_1_bgrd.weight" and "conv1_1.weight" not in early
    alexnet = {name.split(".")[0] for name in names(Architecture("fcn-alexnet", 21))}
    assert alexnet == {f"conv{i}" for i in range(1, 6)} | {"fc6", "fc7", "score_fr"}


@pytest.mark.parametrize(
    ("variant", "decoder"),
    [
        ("fcn32s", "score_fr upscore"),
        ("fcn16s", "score_fr upscore2 score_pool4 upscore16"),
        ("fcn8s", "score_fr upscore2 score_pool4 upscore_pool4 score_pool3 upscore8"),
        ("fcn8s-atonce", "score_fr upscore2 score_pool4 upscore_pool4 score_pool3 upscore8"),
    ],
)
def test_every_layer_of_the_decoder_stands_once_per_head(variant, decoder):
    found = names(Architecture(variant, 33, heads=HEADS, upsampling="learned"))
    layers = list(dict.fromkeys(name.split(".")[0] for name in found))
    expected = [f"{name}_{head}" for head in ("sem", "geo") for name in decoder.split()]
    assert [name for name in layers if "score" in name] == expected
    assert [name for name in layers if "score" not in name] == [n for n in TRUNK if n[0] in "cf"]


def test_googlenet_has_the_names_of_caffes_model():
    found = names(Architecture("fcn-googlenet32s", 21))
    for name in ("conv1/7x7_s2", "conv2/3x3_reduce", "inception_3a/1x1", "inception_5b/pool_proj"):
        assert f"{name}.weight" in found
    assert len({name.split("/")[0] for name in found if name.startswith("inception")}) == 9
