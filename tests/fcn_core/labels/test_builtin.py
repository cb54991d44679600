"""Class numbers mean one thing, and a value that means nothing is an error."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fcn_core.errors import LabelError, LabelSetError
from fcn_core.labels import LABEL_SETS, VOC, VOID, LabelSet, label_set, voc_palette

PETS = LabelSet("pets", ("background", "cat", "dog"), ignore=(9, VOID))

# The colours of the VOC development kit's documentation, class by class.
VOC_COLOURS = {
    "background": (0, 0, 0),
    "aeroplane": (128, 0, 0),
    "bird": (128, 128, 0),
    "car": (128, 128, 128),
    "cat": (64, 0, 0),
    "chair": (192, 0, 0),
    "person": (192, 128, 128),
    "pottedplant": (0, 64, 0),
    "tvmonitor": (0, 64, 128),
}


def test_voc_classes_have_the_colours_of_the_development_kit():
    assert dict(zip(VOC.classes, VOC.palette, strict=True)).items() >= VOC_COLOURS.items()
    assert voc_palette()[VOID] == (224, 224, 192)


def test_voc_colours_all_differ():
    assert len(set(voc_palette())) == 256


@pytest.mark.parametrize(("name", "classes"), [("voc", 21), ("camvid", 11), ("scenes", 6)])
def test_built_in_sets_have_their_number_of_classes(name, classes):
    assert label_set(name).num_classes == classes == len(label_set(name).palette)


def test_an_unknown_set_is_refused_with_the_known_names():
    with pytest.raises(LabelSetError, match=r"'pets'.*scenes, voc, .*camvid"):
        label_set("pets")


def test_a_label_set_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        VOC.name = "other"


# --- Raw label values --------------------------------------------------------------------------


@given(arrays.arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 2, 9, 255])))
def test_classes_stay_and_ignored_values_become_void(raw):
    expected = [[VOID if value in (9, 255) else value for value in row] for row in raw.tolist()]
    encoded = PETS.encode(raw)
    assert encoded.dtype == np.uint8
    assert encoded.tolist() == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.int64])
def test_every_integer_type_of_label_reads_the_same(dtype):
    assert PETS.encode(np.array([[0, 2, 9, 255]], dtype)).tolist() == [[0, 2, 255, 255]]


def test_a_negative_value_can_be_ignored():
    minus = LabelSet("minus", ("a", "b"), ignore=(-1,))
    assert minus.encode(np.array([[-1, 0, 1, 255]])).tolist() == [[255, 0, 1, 255]]
    assert minus.encode(np.array([[0, 1]], np.uint8)).tolist() == [[0, 1]]


@pytest.mark.parametrize("value", [3, 254, 256, 257, -1])
def test_a_value_that_is_no_class_is_refused_and_never_wrapped(value):
    raw = np.array([[0, value, value]], np.int32)
    with pytest.raises(LabelError, match=f"sample 7: label value {value} in 2 pixels"):
        PETS.encode(raw, where="sample 7")


def test_encoding_leaves_the_raw_label_alone():
    raw = np.array([[9, 1]], np.uint8)
    PETS.encode(raw)
    assert raw.tolist() == [[9, 1]]


# --- What a label set may be -------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 255])
def test_one_to_255_classes_fit(count):
    assert LabelSet("x", tuple(f"c{i}" for i in range(count))).num_classes == count


@pytest.mark.parametrize(
    "fields",
    [
        {"classes": ()},
        {"classes": tuple(f"c{i}" for i in range(256))},
        {"classes": ("cat", "cat")},
        {"classes": ("a", "b"), "palette": ((0, 0, 0),)},
        {"classes": ("a",), "palette": ((0, 0, 256),)},
        {"classes": ("a",), "palette": ((0, -1, 0),)},
        {"classes": ("a", "b"), "ignore": (1,)},
    ],
    ids=str,
)
def test_an_impossible_label_set_is_refused(fields):
    with pytest.raises(LabelSetError, match="label set 'x'"):
        LabelSet("x", **fields)


@pytest.mark.parametrize("name", LABEL_SETS)
def test_a_label_set_survives_json(name):
    document = json.loads(json.dumps(LABEL_SETS[name].to_dict()))
    assert LabelSet.from_dict(document) == LABEL_SETS[name]


def test_ignore_and_palette_may_be_left_out():
    short = LabelSet.from_dict({"name": "x", "classes": ["a", "b"]})
    assert (short.ignore, short.palette) == ((VOID,), voc_palette(2))


@pytest.mark.parametrize(
    "document",
    [
        None,
        ["name", "classes"],
        {"name": "x"},
        {"classes": ["a"]},
        {"name": "x", "classes": ["a"], "colors": []},
        {"name": "x", "classes": 3},
        {"name": "x", "classes": "cat"},
        {"name": "x", "classes": ["a"], "ignore": 255},
        {"name": "x", "classes": ["a"], "ignore": "11"},
        {"name": "x", "classes": ["a"], "ignore": ["void"]},
        {"name": "x", "classes": ["a"], "palette": [[0, 0]]},
        {"name": "x", "classes": ["a"], "palette": ["red"]},
    ],
    ids=str,
)
def test_an_unreadable_document_is_refused(document):
    with pytest.raises(LabelSetError, match=r"labels\.yaml"):
        LabelSet.from_dict(document, where="labels.yaml")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"sky": 1, "ground": 0}, "classes is a dict"),
        (["sky", False], "class 1 is False"),
        (["sky", "no", 3], "class 2 is 3"),
    ],
)
def test_classes_are_a_list_of_texts(classes, message):
    with pytest.raises(LabelSetError, match=message):
        LabelSet.from_dict({"name": "x", "classes": classes})
