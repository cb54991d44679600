"""Properties of the search for poisoned samples, with fake workers that die on request."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_core.metrics import ConfusionMatrix
from pipeline.errors import WorkerError
from pipeline.inputs.sample import Failure, Sample
from pipeline.stages.previews import MAX_PER_REASON, PreviewChoice, PreviewCounts, choose_previews
from pipeline.stages.records import LEAST_CONFIDENT, RANDOM, ImageResult, Preview, SegmentedPart
from pipeline.workers import segmenter
from pipeline.workers.segmenter import ATTEMPTS, PoisonSearch, merge_parts, split_part
from pipeline.workers.supervisor import WorkerFailure

CLASSES = 3
COUNTS = PreviewCounts(review=5)


def sample(index: int) -> Sample:
    return Sample(f"k{index}", b"", None, f"s.tar#{index}")


def result(index: int, score: float, is_labeled: bool) -> ImageResult:
    mask = np.full((2, 5), index % CLASSES, np.uint8)
    is_labeled = is_labeled and not math.isnan(score)
    truth: dict[str, Any] = {}
    if is_labeled:
        iou = (score, math.nan, math.nan)
        truth = {"correct_pixels": round(10 * score), "labeled_pixels": 10, "iou": iou}
    return ImageResult(f"k{index}", mask, score, (0, 0, 10), **truth)


@dataclass
class FakeWorker:
    """A worker that dies of some samples.

    Attributes:
        poison: samples that kill it.
        accurate: whether it reports which sample it was working on.
        bad: samples that fail without killing it.
        scores: score of each sample; empty: 0.5 for all.
        dips: numbers of the calls at which it dies whatever the samples are.
        calls: number of calls so far.
        deaths: number of deaths so far.
    """

    poison: set[int]
    accurate: bool = True
    bad: set[int] = field(default_factory=set)
    scores: Sequence[float] = ()
    dips: set[int] = field(default_factory=set)
    calls: int = 0
    deaths: int = 0

    def __call__(self, samples: Sequence[Sample]) -> SegmentedPart | WorkerFailure:
        self.calls += 1
        indices = [int(s.key[1:]) for s in samples]
        assert indices == sorted(indices) and indices
        guilty = [n for n, index in enumerate(indices) if index in self.poison]
        if guilty or self.calls in self.dips:
            self.deaths += 1
            suspects = tuple(guilty[:1]) if self.accurate else ()
            return WorkerFailure("the worker process died (SIGSEGV)", suspects=suspects)
        images, failures = [], []
        confusion = ConfusionMatrix(CLASSES)
        for index in indices:
            if index in self.bad:
                failures.append(Failure(f"k{index}", "bad", "ImageError", f"s.tar#{index}"))
                continue
            score = self.scores[index] if self.scores else 0.5
            images.append(result(index, score, is_labeled=index % 2 == 0))
            confusion.update(np.array([index % CLASSES]), np.array([0]))
        previews = [Preview(i.key, i.mask, None, i.mask) for i in images]
        chosen = choose_previews(images, previews, COUNTS)
        return SegmentedPart(tuple(images), tuple(failures), chosen, confusion, {"forward": 1.0})


def whole(worker: FakeWorker, count: int) -> SegmentedPart:
    """Return the results of all samples but the poisoned ones, in one call."""
    calm = FakeWorker(set(), bad=worker.bad, scores=worker.scores)
    left = [sample(n) for n in range(count) if n not in worker.poison]
    empty = SegmentedPart((), (), (), ConfusionMatrix(CLASSES), {})
    part = calm(left) if left else empty
    assert isinstance(part, SegmentedPart)
    return part


@st.composite
def chunks(draw: st.DrawFn) -> tuple[int, FakeWorker]:
    count = draw(st.integers(1, 70))
    some = st.sets(st.integers(0, count - 1), max_size=6)
    scores = draw(st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=count, max_size=count))
    poison = draw(some)
    return count, FakeWorker(poison, draw(st.booleans()), draw(some), scores)


@given(chunks())
def test_exactly_the_poison_is_found_and_the_other_results_do_not_change(
    chunk: tuple[int, FakeWorker],
) -> None:
    count, worker = chunk
    search = PoisonSearch(worker)
    keys = [f"k{n}" for n in range(count)]
    parts = list(search.segment([sample(n) for n in range(count)]))
    assert {failure.key for failure in search.poisoned} == {f"k{n}" for n in worker.poison}
    merged, calm = merge_parts(keys, parts, CLASSES, COUNTS), whole(worker, count)
    assert [i.key for i in merged.images] == [i.key for i in calm.images]
    assert [f.key for f in merged.failures] == [f.key for f in calm.failures]
    assert merged.confusion == calm.confusion
    assert [p.key for p in merged.previews] == [p.key for p in calm.previews]
    # One death of the whole chunk, three of the sample alone; without suspects, the halvings.
    halvings = 1 if worker.accurate else 1 + math.ceil(math.log2(count))
    assert worker.deaths <= len(worker.poison) * (ATTEMPTS + halvings)


@given(st.integers(1, 40), st.sets(st.integers(1, 12), max_size=2), st.booleans())
def test_deaths_that_no_sample_causes_quarantine_nothing(
    count: int, dips: set[int], accurate: bool
) -> None:
    worker = FakeWorker(set(), accurate, dips=dips)
    search = PoisonSearch(worker)
    parts = list(search.segment([sample(n) for n in range(count)]))
    assert search.poisoned == []
    assert sum(len(part.images) for part in parts) == count


@given(st.integers(2, 60), st.data())
def test_parts_are_smaller_and_hold_every_sample_once(count: int, data: st.DataObject) -> None:
    part = tuple(sample(n) for n in range(count))
    suspects = data.draw(st.lists(st.integers(0, count - 1), max_size=8))
    parts = split_part(part, suspects)
    assert all(0 < len(smaller) < count for smaller in parts)
    assert sorted((s for smaller in parts for s in smaller), key=part.index) == list(part)
    accused = {part[n].key for n in suspects}
    if 0 < len(accused) < count:
        assert {s.key for s in parts[0 if suspects and 0 in suspects else 1]} == accused


def test_the_search_ends_when_there_are_too_many_poisoned_samples() -> None:
    worker = FakeWorker(set(range(50)))
    search = PoisonSearch(worker, lambda poisoned: poisoned >= 3)
    assert list(search.segment([sample(n) for n in range(50)])) == []
    assert search.is_over_limit and [f.key for f in search.poisoned] == ["k0", "k1", "k2"]
    assert worker.deaths == 3 * (ATTEMPTS + 1)


def test_a_fault_of_the_code_quarantines_no_image() -> None:
    def attempt(samples: Sequence[Sample]) -> WorkerFailure:
        return WorkerFailure("the worker process failed", fault="Traceback: ZeroDivisionError")

    with pytest.raises(WorkerError, match="ZeroDivisionError"):
        list(PoisonSearch(attempt).segment([sample(0), sample(1)]))


def test_an_attempt_after_a_kill_waits_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(segmenter.time, "sleep", pauses.append)
    search = PoisonSearch(
        lambda samples: WorkerFailure("the worker process died (SIGKILL)", is_killed=True)
    )
    assert list(search.segment([sample(0)])) == []
    assert len(search.poisoned) == 1 and len(pauses) == ATTEMPTS - 1 and min(pauses) > 0


@given(st.lists(st.sampled_from([0.1, 0.2, math.nan]), min_size=1, max_size=12), st.data())
def test_parts_give_the_same_previews_however_the_chunk_is_split(
    scores: list[float], data: st.DataObject
) -> None:
    worker = FakeWorker(set(), scores=scores)
    cut = data.draw(st.integers(0, len(scores)))
    halves = [range(cut), range(cut, len(scores))]
    parts = [worker([sample(n) for n in half]) for half in halves if half]
    keys = [f"k{n}" for n in range(len(scores))]
    merged = merge_parts(
        keys, [p for p in reversed(parts) if isinstance(p, SegmentedPart)], CLASSES, COUNTS
    )
    chosen = [(p.key, p.why) for p in merged.previews]
    assert chosen == [(p.key, p.why) for p in whole(worker, len(scores)).previews]

    # The worst images, computed in another way. Labeled images have even numbers; their mean IoU
    # is NaN if the whole label is void.
    def worst(numbers: Iterable[int], most: int) -> set[str]:
        by_score = sorted(numbers, key=lambda n: -1 if math.isnan(scores[n]) else scores[n])
        return {f"k{n}" for n in by_score[:most]}

    unsure = worst(range(len(scores)), MAX_PER_REASON)
    unscored = [n for n, score in enumerate(scores) if n % 2 or math.isnan(score)]
    unsure |= worst(unscored, COUNTS.review)
    assert {key for key, why in chosen if LEAST_CONFIDENT in why} == unsure
    assert sum(RANDOM in why for _, why in chosen) == min(len(scores), MAX_PER_REASON)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.1, 0.2, 0.3, math.nan])), max_size=40))
def test_previews_chosen_one_by_one_equal_those_chosen_at_once(
    images: list[tuple[bool, float]],
) -> None:
    results = [
        result(n, score, is_labeled=is_labeled) for n, (is_labeled, score) in enumerate(images)
    ]
    previews = [Preview(i.key, i.mask, None, i.mask) for i in results]
    choice = PreviewChoice(COUNTS)
    for image, preview in zip(results, previews, strict=True):
        choice.consider(image, preview)
        assert len(choice.chosen()) <= 2 * (COUNTS.review + MAX_PER_REASON)
    chosen = [(p.key, p.why) for p in choice.chosen()]
    assert chosen == [(p.key, p.why) for p in choose_previews(results, previews, COUNTS)]


def test_previews_are_small_and_their_classes_unmixed() -> None:
    mask = np.zeros((500, 1000), np.uint8)
    mask[:, 500:] = 2
    image = np.stack([mask] * 3, axis=-1)
    small = Preview("k", image, mask, mask).shrunk()
    assert small.image.shape == (160, 320, 3) and small.label is not None
    for values in (small.mask, small.label):
        assert values.shape == (160, 320) and set(np.unique(values)) == {0, 2}
    tiny = Preview("k", image[:20, :30], None, mask[:20, :30])
    assert tiny.shrunk() is tiny
