"""The built-in sets say what their sources say; values and RGB codes become classes or errors."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcn_core.errors import LabelError, LabelSetError
from fcn_core.images import decode_label, encode_mask
from fcn_core.labels import (
    ADE20K,
    CAMVID,
    CITYSCAPES,
    CITYSCAPES_TRAINIDS,
    CONTEXT59,
    CONTEXT60,
    LABEL_SETS,
    NYUDV2,
    SIFTFLOW,
    SIFTFLOW_GEO,
    VOC,
    VOID,
    LabelSet,
    voc_palette,
)

COUNTS = {
    "scenes": 6, "voc": 21, "camvid": 11, "context59": 59, "context60": 60, "nyudv2": 40,
    "siftflow": 33, "siftflow-geo": 3, "cityscapes": 19, "cityscapes-trainids": 19, "ade20k": 150,
}  # fmt: skip

every_set = pytest.mark.parametrize("labels", LABEL_SETS.values(), ids=LABEL_SETS.keys())


def test_the_built_in_sets_have_their_number_of_classes():
    assert {name: labels.num_classes for name, labels in LABEL_SETS.items()} == COUNTS


@every_set
def test_names_are_words_and_differ(labels):
    assert len(set(labels.classes)) == labels.num_classes == len(labels.palette)
    assert all(name == name.strip() and name for name in labels.classes)


@every_set
def test_no_two_classes_share_a_colour_but_two_of_ade20k(labels):
    shared = [colour for colour, n in Counter(labels.palette).items() if n > 1]
    assert shared == ([(140, 140, 140)] if labels is ADE20K else [])


# --- Places in the tables that tell whether a name or colour slipped ---------------------------


@pytest.mark.parametrize(
    ("labels", "index", "name", "colour"),
    [
        (VOC, 20, "tvmonitor", (0, 64, 128)),
        (CAMVID, 4, "pavement", (60, 40, 222)),
        (CONTEXT60, 0, "background", (0, 0, 0)),
        (CONTEXT60, 59, "wood", voc_palette()[59]),
        (CONTEXT59, 58, "wood", voc_palette()[58]),
        (NYUDV2, 19, "floor mat", voc_palette()[19]),
        (NYUDV2, 39, "otherprop", voc_palette()[39]),
        (SIFTFLOW, 27, "sky", voc_palette()[27]),
        (SIFTFLOW, 32, "window", voc_palette()[32]),
        (SIFTFLOW_GEO, 0, "sky", (0, 0, 0)),
        (CITYSCAPES, 13, "car", (0, 0, 142)),
        (CITYSCAPES, 18, "bicycle", (119, 11, 32)),
        (ADE20K, 0, "wall", (120, 120, 120)),
        (ADE20K, 20, "car", (0, 102, 200)),
        (ADE20K, 89, "television receiver", (0, 255, 194)),
        (ADE20K, 149, "flag", (92, 0, 255)),
    ],
)
def test_a_class_stands_where_its_source_has_it(labels, index, name, colour):
    assert (labels.classes[index], labels.palette[index]) == (name, colour)


def test_the_context_sets_are_one_list_with_and_without_background():
    assert CONTEXT60.classes[1:] == CONTEXT59.classes
    assert CONTEXT60.classes[1:21] == VOC.classes[1:]


# --- Raw values ----------------------------------------------------------------------------------

# labelId to trainId, from the table of cityscapesScripts.
TRAIN_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12,
    26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip


def test_every_cityscapes_id_has_its_train_id():
    ids = np.arange(-1, 34)
    expected = [TRAIN_IDS.get(i, VOID) for i in ids.tolist()]
    assert CITYSCAPES.encode(ids[None]).tolist() == [expected]
    kept = np.array([[*range(19), VOID]], np.uint8)
    assert CITYSCAPES_TRAINIDS.encode(kept).tolist() == kept.tolist()
    with pytest.raises(
        LabelError, match=r"label value 34 .* has classes for 7-8, 11-13, 17, 19-28, 31-33"
    ):
        CITYSCAPES.encode(np.array([[34]]))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [(CONTEXT59, 59), (NYUDV2, 40), (SIFTFLOW, 33), (SIFTFLOW_GEO, 3), (ADE20K, 150)],
    ids=lambda v: getattr(v, "name", v),
)
def test_zero_is_void_and_classes_count_from_one(labels, classes):
    raw = np.arange(classes + 1, dtype=np.uint8)[None]
    assert labels.encode(raw).tolist() == [[VOID, *range(classes)]]
    # What the data layers of the paper's code do: subtract one in 8 bits, so that 0 wraps to 255.
    assert np.array_equal(labels.encode(raw), raw - np.uint8(1))
    with pytest.raises(LabelError, match=f"label value {classes + 1} in 1 pixels"):
        labels.encode(np.array([[classes + 1]]))


def test_the_geometric_void_of_sift_flow_is_minus_one():
    assert SIFTFLOW_GEO.encode(np.array([[-1, 0, 1, 3]], np.int8)).tolist() == [[255, 255, 0, 2]]


DTYPES = st.sampled_from([np.uint8, np.uint16, np.int16, np.int32, np.int64])


@st.composite
def mapped_sets(draw):
    """A label set with an arbitrary map, and the slow oracle of what it means."""
    classes = draw(st.integers(1, 6))
    meaning = draw(
        st.dictionaries(
            st.integers(0, 254), st.sampled_from([*range(classes), VOID]), min_size=1, max_size=12
        )
    )
    meaning[draw(st.integers(0, 254))] = 0
    ignored = draw(st.sets(st.integers(0, 254), max_size=3)) - meaning.keys()
    labels = LabelSet(
        "x",
        tuple(f"c{i}" for i in range(classes)),
        ignore=tuple(ignored),
        mapping=tuple(draw(st.permutations(list(meaning.items())))),
    )
    return labels, {**meaning, **dict.fromkeys(ignored, VOID), VOID: VOID}


@given(mapped_sets(), st.lists(st.integers(0, 255), min_size=1, max_size=30), DTYPES)
@settings(max_examples=200)
def test_a_map_means_what_a_dictionary_means(drawn, pixels, dtype):
    labels, meaning = drawn
    unknown = [value for value in pixels if value not in meaning]
    raw = np.array([pixels], dtype)
    if unknown:
        lowest = min(unknown)
        where = f"in {pixels.count(lowest)} pixels, the first in row 0, column "
        with pytest.raises(
            LabelError, match=f"label value {lowest} {where}{pixels.index(lowest)};"
        ):
            labels.encode(raw)
    else:
        assert labels.encode(raw).tolist() == [[meaning[value] for value in pixels]]


@given(mapped_sets(), st.randoms())
def test_equal_meaning_is_an_equal_document(drawn, random):
    labels, meaning = drawn
    pairs = list(meaning.items())
    random.shuffle(pairs)
    another = LabelSet("x", labels.classes, ignore=(VOID,), mapping=tuple(pairs))
    assert another.to_dict() == labels.to_dict()
    again = LabelSet.from_dict(json.loads(json.dumps(labels.to_dict())))
    assert again == labels and hash(again) == hash(labels)


def test_a_map_that_changes_nothing_is_left_out():
    plain = LabelSet("x", ("a", "b"))
    told = LabelSet("x", ("a", "b"), mapping=((1, 1), (0, 0)))
    assert told == plain and set(plain.to_dict()) == {"name", "classes", "ignore", "palette"}


def test_documents_of_sets_that_outputs_hold_have_not_changed():
    # `voc` and `camvid` stand in the fingerprints of existing outputs.
    for name, ignore in (("scenes", [255]), ("voc", [255]), ("camvid", [11, 255])):
        document = LABEL_SETS[name].to_dict()
        assert list(document) == ["name", "classes", "ignore", "palette"]
        assert document["ignore"] == ignore


def test_values_beyond_the_table_are_errors_and_never_wrapped():
    for value in (65536 + 1, -65535, 2**40 + 1):
        with pytest.raises(
            LabelError, match=f"label value {value} in 1 pixels, .* row 0, column 1"
        ):
            VOC.encode(np.array([[0, value]]))


def test_a_raw_value_may_be_large_or_negative():
    far = LabelSet("far", ("a",), mapping=((70_000, 0), (-3, 0)))
    assert far.encode(np.array([[70_000, -3, 255]])).tolist() == [[0, 0, 255]]


def test_a_label_without_pixels_is_one():
    assert VOC.encode(np.zeros((0, 5), np.uint8)).shape == (0, 5)


# --- RGB codes -----------------------------------------------------------------------------------


def png(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return buffer.getvalue()


def slow_encode(rgb, labels):
    meaning = dict(labels.colours)
    return [[meaning[tuple(pixel)] for pixel in row] for row in rgb.tolist()]


coded = [labels for labels in LABEL_SETS.values() if labels.colours]


def test_which_sets_have_rgb_codes():
    assert [labels.name for labels in coded] == [
        "voc", "camvid", "cityscapes", "cityscapes-trainids",
    ]  # fmt: skip


@pytest.mark.parametrize("labels", coded, ids=lambda labels: labels.name)
def test_rgb_codes_become_classes(labels):
    colours = np.array([colour for colour, _ in labels.colours], np.uint8)
    rng = np.random.default_rng(0)
    rgb = colours[rng.integers(0, len(colours), (17, 23))]
    expected = slow_encode(rgb, labels)
    for data in (png(rgb), png(np.dstack([rgb, np.full((17, 23), 255, np.uint8)]))):
        assert labels.encode(decode_label(data, colours=True)).tolist() == expected
    assert set(itertools.chain(*expected)) == {*range(labels.num_classes), VOID}


@pytest.mark.parametrize("labels", coded, ids=lambda labels: labels.name)
def test_a_mask_saved_as_rgb_is_read_back(labels):
    mask = np.random.default_rng(1).integers(0, labels.num_classes, (9, 31)).astype(np.uint8)
    as_rgb = Image.open(io.BytesIO(encode_mask(mask, labels.palette))).convert("RGB")
    again = labels.encode(decode_label(png(np.asarray(as_rgb)), colours=True))
    assert np.array_equal(again, mask)


def test_the_32_colours_of_camvid_group_as_segnet_does():
    groups = Counter(index for _, index in CAMVID.colours)
    # Sky 1, building 5, pole 2, road 3, pavement 3 and SegNet's own, tree 2, sign 3, fence 1,
    # car 5, pedestrian 4, bicyclist 2, void 1: 32 and 1.
    assert [groups[i] for i in range(11)] == [1, 5, 2, 3, 4, 2, 3, 1, 5, 4, 2]
    assert groups[VOID] == 1


def test_values_of_palette_images_count_and_not_their_colours():
    mask = np.array([[0, 7, 20, 255]], np.uint8)
    swapped = encode_mask(mask, voc_palette()[::-1][:21])
    assert VOC.encode(decode_label(swapped, colours=True)).tolist() == mask.tolist()


def test_an_unknown_colour_is_named_with_its_place():
    rgb = np.zeros((3, 4, 3), np.uint8)
    rgb[1, 2] = rgb[2, 0] = (9, 8, 7)
    rgb[0, 3] = (9, 9, 9)
    with pytest.raises(
        LabelError,
        match=r"sample 7: color \(9, 8, 7\) in 2 pixels, the first in row 1, column 2; label set "
        r"'voc' has RGB codes for 22 colors",
    ):
        VOC.encode(rgb, "sample 7")


@pytest.mark.parametrize(
    ("data", "colours", "message"),
    [
        (png(np.zeros((2, 2, 3), np.uint8)), False, "a RGB PNG; a label is a gray or palette PNG"),
        (png(np.zeros((2, 2, 4), np.uint8)), True, "transparent pixels"),
        (png(np.zeros((2, 2, 2), np.uint8)), True, "a LA PNG"),
    ],
)
def test_other_images_are_no_rgb_labels(data, colours, message):
    with pytest.raises(LabelError, match=message):
        decode_label(data, colours=colours)


def test_a_set_that_accepts_no_rgb_says_so():
    assert NYUDV2.colours == ()
    with pytest.raises(LabelError, match=r"color \(0, 0, 0\) in 4 pixels"):
        NYUDV2.encode(np.zeros((2, 2, 3), np.uint8))


def test_colours_of_a_file_are_tables_by_class_name():
    document = {
        "name": "x",
        "classes": ["a", "b"],
        "colours": {"b": [[1, 2, 3], [4, 5, 6]], "void": [[0, 0, 0]]},
    }
    labels = LabelSet.from_dict(document)
    rgb = np.array([[[4, 5, 6], [0, 0, 0], [1, 2, 3]]], np.uint8)
    assert labels.encode(rgb).tolist() == [[1, VOID, 1]]
    assert LabelSet.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels
    turned = {**document, "colours": {"void": [[0, 0, 0]], "b": [[4, 5, 6], [1, 2, 3]]}}
    assert LabelSet.from_dict(turned).to_dict() == labels.to_dict()


def test_a_built_in_set_can_be_told_to_refuse_rgb():
    strict = LabelSet.from_dict({**VOC.to_dict(), "colours": {}})
    assert strict.colours == () and strict != VOC
    assert LabelSet.from_dict(strict.to_dict()) == strict


def test_a_set_of_another_name_or_classes_has_no_codes_of_a_built_in_one():
    assert LabelSet("mine", VOC.classes).colours == ()
    assert LabelSet("voc", VOC.classes[:20]).colours == ()
    assert LabelSet.from_dict(VOC.to_dict()).colours == VOC.colours


# --- What a label set may be ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mapping": ((7, 2),)}, "map sends 7 to 2; class indices are 0-1"),
        ({"mapping": ((7, -1),)}, "map sends 7 to -1"),
        ({"mapping": ((7, 0), (7, 1))}, "map has a raw value twice"),
        ({"mapping": ((255, 0),)}, "map makes 255 a class"),
        ({"mapping": ((7, 255),)}, "map makes every value void"),
        ({"mapping": ((7, 1),), "ignore": (7,)}, "ignore value 7 is also the class 'b'"),
        ({"colours": (((0, 0, 256), 0),)}, r"the RGB code \(0, 0, 256\)"),
        ({"colours": (((0, 0, 0), 2),)}, r"the RGB code \(0, 0, 0\) for class 2"),
        ({"colours": (((0, 0, 0), 0), ((0, 0, 0), 1))}, r"the RGB code \(0, 0, 0\) stands for two"),
        ({"classes": ("a", "void"), "colours": (((0, 0, 0), 255),)}, "a class 'void' and colors"),
    ],
    ids=str,
)
def test_an_impossible_label_set_is_refused(fields, message):
    with pytest.raises(LabelSetError, match=f"label set 'x': {message}"):
        LabelSet(**{"name": "x", "classes": ("a", "b"), **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"map": "7: 0"},
        {"map": [7, 0]},
        {"map": None},
        {"map": {"seven": 0}},
        {"map": {7: 0.5}},
        {"map": {7: "cat"}},
        {"colours": [[0, 0, 0]]},
        {"colours": {"dog": [[0, 0, 0]]}},
        {"colours": {"a": [0, 0, 0]}},
        {"colours": {"a": [[0, 0]]}},
        {"colours": {"a": "black"}},
    ],
    ids=str,
)
def test_an_unreadable_document_is_refused(fields):
    with pytest.raises(LabelSetError, match=r"labels\.yaml"):
        LabelSet.from_dict({"name": "x", "classes": ["a", "b"], **fields}, where="labels.yaml")


@every_set
def test_a_palette_of_raw_values_shows_each_in_the_colour_of_its_class(labels):
    palette = labels.value_palette()
    assert len(palette) == 256
    for raw, index in labels.values:
        if 0 <= raw <= 255:
            assert palette[raw] == (voc_palette()[VOID] if index == VOID else labels.palette[index])


def test_the_documentation_lists_every_set_with_its_classes_and_values():
    text = (Path(__file__).parents[3] / "docs/label-sets.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| (\d+) \| [^|]* \| ([^|]*) \| (yes|no)", text, re.MULTILINE)
    assert {name: int(count) for name, count, _, _ in rows} == COUNTS
    for name, _, void, rgb in rows:
        labels = LABEL_SETS[name]
        named = set()
        for low, high in re.findall(r"(-?\d+)(?:-(\d+))?", void):
            named |= set(range(int(low), int(high or low) + 1))
        assert named == {VOID, *labels.ignore}, name
        assert (rgb == "yes") == bool(labels.colours), name
