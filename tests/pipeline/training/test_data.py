"""The stream of samples: a function of seed and place, whole, shuffled, honest about bad ones."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_core.errors import LabelError
from fcn_core.labels import VOID
from fcn_core.preprocessing import CENTRED_RGB
from fcn_core.training.recipes import HEAVY, MODERN, Augmentation
from pipeline.config import InputConfig, LimitsConfig
from pipeline.errors import InputError, LimitsError
from pipeline.training.data import Cursor, Share, steps, stream
from pipeline.training.source import BadSamples, check_labels, list_source
from tests.support import world

LIMITS = LimitsConfig(chunk_images=3)
SHARE = Share(replace(HEAVY, batch_size=4), CENTRED_RGB, seed=0)


def source(root, limits=LIMITS, **options):
    return list_source(InputConfig(url=str(root), **options), world.TINY, limits)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for shard, images in enumerate((5, 1, 8, 2)):
        (root / f"s{shard}.tar").write_bytes(world.tar(world.samples(shard, images)))
    return source(root)


def taken(data, count, seed=0, shuffle=6, start=Cursor()):  # noqa: B008 - frozen
    with closing(stream(data, seed, shuffle, start)) as samples:
        return [(sample.location, cursor) for sample, cursor in islice(samples, count)]


def test_an_epoch_has_every_sample_once_and_epochs_differ(data):
    found = [location for location, _ in taken(data, 48)]
    epochs = [found[start : start + 16] for start in (0, 16, 32)]
    assert all(Counter(epoch) == Counter(set(found)) and len(epoch) == 16 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert found != [location for location, _ in taken(data, 48, seed=1)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 40), st.sampled_from([1, 4, 6, 100]), st.integers(0, 3))
def test_it_goes_on_from_any_place_as_if_it_had_never_stopped(data, place, shuffle, seed):
    whole = taken(data, 48, seed, shuffle)
    start = whole[place - 1][1] if place else Cursor()
    assert taken(data, 48 - place, seed, shuffle, start) == whole[place:]


def test_few_samples_are_in_memory(data, monkeypatch):
    from pipeline.training import data as train_data

    sizes = []
    real = train_data._Window

    def window(samples, *rest):
        sizes.append(len(samples))
        return real(samples, *rest)

    monkeypatch.setattr(train_data, "_Window", window)
    taken(data, 40, shuffle=4)
    assert max(sizes) <= 4 + LIMITS.chunk_images


def test_processes_share_every_step(data):
    def first(rank, size):
        share = replace(SHARE, rank=rank, size=size)
        with (
            closing(stream(data, 0, 6, Cursor())) as samples,
            closing(steps(data, samples, share, 1)) as work,
        ):
            return list(islice(work, 5))

    alone, *shared = first(0, 1), first(0, 2), first(1, 2)
    for whole, parts in zip(alone, zip(*shared, strict=True), strict=True):
        assert all(part.keys == whole.keys and part.cursor == whole.cursor for part in parts)
        by_slot = {b.slots: b for part in parts for b in part.batches}
        assert sorted(by_slot) == [b.slots for b in whole.batches]
        for batch in whole.batches:
            assert np.array_equal(batch.image, by_slot[batch.slots].image)
            assert np.array_equal(batch.label, by_slot[batch.slots].label)


def test_a_step_is_the_same_from_wherever_it_is_reached(data):
    share = replace(SHARE, recipe=replace(MODERN, batch_size=4, augmentation=Augmentation(crop=8)))

    def some(first, start, count):
        with (
            closing(stream(data, 0, 6, start)) as samples,
            closing(steps(data, samples, share, first)) as work,
        ):
            return list(islice(work, count))

    whole = some(1, Cursor(), 6)
    later = some(4, whole[2].cursor, 3)
    for found, expected in zip(later, whole[3:], strict=True):
        assert found.number == expected.number and found.keys == expected.keys
        assert np.array_equal(found.batches[0].image, expected.batches[0].image)


def damaged(tmp_path, members):
    (tmp_path / "a.tar").write_bytes(world.tar({**world.samples(0, 4), **members}))
    return source(tmp_path)


def batch_of(data, count=1):
    with (
        closing(stream(data, 0, 100, Cursor())) as samples,
        closing(steps(data, samples, SHARE, 1)) as work,
    ):
        return list(islice(work, count))


def test_a_bad_image_leaves_its_place_empty_and_is_told(tmp_path):
    data = damaged(tmp_path, {"img1.jpg": b"no image"})
    (step,) = batch_of(data)
    slot = step.keys.index("img1")
    assert {place: failure.key for place, failure in step.failures.items()} == {slot: "img1"}
    assert step.locations[slot] == step.failures[slot].location
    assert (step.batches[slot].label == VOID).all()
    assert all((b.label != VOID).any() for b in step.batches if b.slots != (slot,))


def test_a_label_of_another_size_is_a_bad_sample(tmp_path):
    data = damaged(tmp_path, {"img2.png": world.png(world.label(1, (5, 6)))})
    (step,) = batch_of(data)
    (failure,) = step.failures.values()
    assert "label is 6x5" in failure.reason


def test_an_out_of_range_label_is_refused_with_its_sample(tmp_path):
    wrong = world.label(1, world.SIZES[1])
    wrong[3, 4] = 7
    data = damaged(tmp_path, {"img1.png": world.png(wrong)})
    with pytest.raises(LabelError, match=r"img1.*label value 7 in 1 pixels"):
        check_labels(data, 1)
    with pytest.raises(LabelError, match="img1"):
        batch_of(data)


def test_all_labels_are_looked_at_and_bad_ones_counted(tmp_path):
    bad = check_labels(damaged(tmp_path, {"img1.png": b"x"}), 2)
    assert bad.seen == 4 and [f.key for f in bad.failures.values()] == ["img1"]


def test_too_many_bad_ones_are_too_many(tmp_path):
    data = damaged(tmp_path, {f"img{n}.png": b"x" for n in range(3)})
    with pytest.raises(LimitsError, match="3 of 4 samples are bad"):
        check_labels(data, 1)


def test_labels_that_are_void_throughout_teach_nothing(tmp_path):
    void = {f"img{n}.png": world.png(np.full(world.SIZES[n], VOID, np.uint8)) for n in range(4)}
    data = damaged(tmp_path, void)
    with pytest.raises(LabelError, match="every pixel of 4 labels is void"):
        check_labels(data, 1)
    del void["img2.png"]
    check_labels(damaged(tmp_path, void), 1)


def test_a_sample_counts_once_when_an_epoch_has_been_seen():
    bad = BadSamples("here", LIMITS)
    epochs = [0, 0, 1, 1, 1, 2, 2, 2, 3]  # of nine steps of 4; an epoch has 11 or 12 samples
    seen = []
    for epoch in epochs:
        bad.count_step(4, epoch)
        seen.append(bad.seen)
    assert seen == [4, 8, 12, 16, 20, 12, 12, 12, 12]
    bad = BadSamples("here", LIMITS, seen=11)
    bad.mark_complete()
    bad.count_step(4, 0)
    assert bad.seen == 11


def test_samples_without_a_label_are_passed_over(tmp_path):
    members = world.samples(0, 4)
    del members["img3.png"]
    (tmp_path / "a.tar").write_bytes(world.tar(members))
    assert {location for location, _ in taken(source(tmp_path), 9)} == {
        sample.location for sample in source(tmp_path).samples()
    }
    assert check_labels(source(tmp_path), 1).seen == 3


def test_an_input_without_labels_is_refused(tmp_path):
    members = {k: v for k, v in world.samples(0, 4).items() if k.endswith(".jpg")}
    (tmp_path / "a.tar").write_bytes(world.tar(members))
    data = source(tmp_path)
    with pytest.raises(InputError, match="no sample with a label"):
        check_labels(data, 1)
    with pytest.raises(InputError, match="no sample with a label"):
        taken(data, 1)


def test_another_data_set_has_another_digest(tmp_path):
    world.write_shards(tmp_path, 2)
    before = source(tmp_path).digest
    assert before == source(tmp_path).digest
    assert before != source(tmp_path, include=("s0*",)).digest
