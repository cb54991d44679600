"""A caffemodel gives the arrays that were written into it, in any form, or says what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from fcn_core.errors import WeightsError
from fcn_core.weights.caffemodel import V1_TYPES, read_caffemodel
from tests.support import formats
from tests.support.formats import blob, bytes_field, int_field, layer, net, unpacked_blob

WEIGHT = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2) - 7.5
BIAS = np.array([0.25, -1], np.float32)
FORMS = pytest.mark.parametrize("form", ["V1", "V2"])


def only(data: bytes):
    (found,) = read_caffemodel(data, "m").values()
    return found


@FORMS
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("doubles", [False, True])
def test_weights_come_back_in_shape_and_order(form, legacy, doubles) -> None:
    blobs = [blob(WEIGHT, legacy=legacy, doubles=doubles), blob(BIAS, legacy=legacy)]
    found = only(net(layer(form, "conv1_1", "Convolution", blobs)))
    assert (found.name, found.type) == ("conv1_1", "Convolution")
    for read, written in zip(found.blobs, (WEIGHT, BIAS), strict=True):
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, written)


arrays = nps.arrays(
    np.float32, nps.array_shapes(min_dims=0, max_dims=5, max_side=4), elements=st.floats(width=32)
)


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=9), st.lists(arrays, min_size=1, max_size=3)),
       st.sampled_from(["V1", "V2"]))  # fmt: skip
def test_any_arrays_survive(layers, form) -> None:
    data = net(*(layer(form, name, "Convolution", [blob(a) for a in blobs])
                 for name, blobs in layers.items()))  # fmt: skip
    if not layers:
        return
    found = read_caffemodel(data, "m")
    assert list(found) == list(layers)
    for name, written in layers.items():
        for read, array in zip(found[name].blobs, written, strict=True):
            np.testing.assert_array_equal(read, array)


def test_a_legacy_inner_product_is_a_matrix() -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    written = [blob(matrix, legacy=True), blob(BIAS, legacy=True)]
    found = only(net(layer("V1", "fc6", "InnerProduct", written)))
    assert [one.shape for one in found.blobs] == [(2, 3), (2,)]
    np.testing.assert_array_equal(found.blobs[0], matrix)


def test_a_legacy_convolution_of_one_channel_keeps_its_four_axes() -> None:
    single = np.ones((1, 1, 2, 3), np.float32)
    assert only(net(layer("V1", "c", "Convolution", [blob(single, legacy=True)]))).blobs[
        0
    ].shape == (1, 1, 2, 3)


def test_numbers_written_one_by_one_or_in_pieces_are_the_same_list() -> None:
    shape = bytes_field(7, bytes_field(1, b"".join(map(formats.varint, WEIGHT.shape))))
    raw = WEIGHT.astype("<f4").tobytes()
    pieces = shape + bytes_field(5, raw[:40]) + bytes_field(5, raw[40:])
    for written in (unpacked_blob(WEIGHT), pieces):
        found = only(net(layer("V2", "c", "Convolution", [written])))
        np.testing.assert_array_equal(found.blobs[0], WEIGHT)


def test_layers_without_weights_and_gradients_are_passed_over() -> None:
    with_diff = blob(BIAS) + bytes_field(6, bytes(8)) + bytes_field(9, bytes(16))
    data = net(layer("V2", "relu", "ReLU"), layer("V2", "c", "Convolution", [with_diff]))
    assert list(read_caffemodel(data, "m")) == ["c"]
    np.testing.assert_array_equal(only(data).blobs[0], BIAS)


def test_every_v1_type_has_another_name() -> None:
    assert len(set(V1_TYPES.values())) == len(V1_TYPES) == 39
    assert all(V1_TYPES[number] == name for name, number in formats.V1_NUMBERS.items())


# --- Damage ------------------------------------------------------------------------------------

GOOD = net(
    *(layer("V2", f"c{n}", "Convolution", [blob(WEIGHT), blob(BIAS)]) for n in range(3)),
)


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_truncated_file_is_refused_or_has_fewer_layers(cut) -> None:
    data = GOOD[: cut * len(GOOD) // 40]
    try:
        found = read_caffemodel(data, "m")
    except WeightsError as error:
        assert error.where.startswith("m")
    else:
        # Only a cut exactly between two layers cannot be seen here: their names are missing.
        assert len(found) < 3


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_of_something_else_are_refused(data) -> None:
    with pytest.raises(WeightsError, match=r"^m: .*\.caffemodel"):
        read_caffemodel(data, "m")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1))
def test_a_damaged_file_is_read_or_refused_but_never_another_error(damage) -> None:
    data = bytearray(GOOD)
    for place, value in damage:
        data[place] = value
    try:
        read_caffemodel(bytes(data), "m")
    except WeightsError as error:
        assert error.where.startswith("m")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (net(), "0 layers, none with weights"),
        (net(layer("V2", "relu", "ReLU")), "1 layers, none with weights"),
        (net(*[layer("V2", "c", "Convolution", [blob(BIAS)])] * 2), "two layers 'c'"),
        (net(bytes_field(2, bytes_field(1, b""))), "V0 format.*upgrade_net_proto_binary"),
        (
            net(layer("V2", "c", "Convolution", [blob(WEIGHT)[:-9]])),
            "truncated or have another format",
        ),
        (
            net(layer("V2", "c", "Convolution", [blob(BIAS) + bytes_field(7, int_field(1, 3))])),
            r"m, layer 'c', blob 0: 2 numbers; shape \(2, 3\)",
        ),
        (net(layer("V2", "c", "Convolution", [bytes_field(5, b"abcde")])), "5 bytes; numbers of 4"),
    ],
    ids=["empty", "relu", "twice", "V0", "cut", "shape", "odd"],
)
def test_each_damage_is_named(data, found) -> None:
    with pytest.raises(WeightsError, match=found):
        read_caffemodel(data, "m")
