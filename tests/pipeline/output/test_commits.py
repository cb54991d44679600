"""Laws of commits: what goes in comes out, one per shard, and never somebody else's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_core.metrics import ConfusionMatrix
from pipeline.errors import OutputError, StoreError
from pipeline.inputs.sample import Failure
from pipeline.inputs.shard import Shard
from pipeline.output.commits import (
    COMMIT_FORMAT,
    Commit,
    build_commit,
    with_file,
    write_commit,
)
from pipeline.output.quarantine import write_quarantine
from pipeline.paths import commit_path, quarantine_path
from pipeline.stages.histograms import Histograms
from pipeline.stages.records import Candidate, FileRecord, Receipt, record
from pipeline.stages.shard_stats import ShardStats
from pipeline.storage.store import Store
from tests.support import world

SHARD = Shard("x/a", "tar", "x/a.tar", 99, "tag")
SPEC = world.spec(
    images=Store("memory://in"), run="20260101T000000Z-00000000", masks=("png", "parquet")
)
COUNTS = st.integers(0, 2**62)


def receipt(seq: int, count: int = 2, **changes: Any) -> Receipt:
    made = Receipt(
        shard=SHARD.id,
        seq=seq,
        count=count,
        files=(FileRecord(f"masks/x/a-{seq}.parquet", 10 + seq, "0f"),),
        stats=ShardStats(
            images=3,
            labeled_images=2,
            failures=0,
            confusion=ConfusionMatrix(2, ((5, 1), (0, seq))),
            class_pixels=(6, 7 + seq),
            confidence_sum=2.5,
            histograms=Histograms.count([(3, 1), (0, 4), (4, 0)], [0.5, 1.0, 1.0], [(2, 2)] * 3, 2),
        ),
        failures=(),
        candidates=(Candidate(f"k{seq}", 0.5, None, f"_previews/x/a-{seq}.parquet"),),
        seconds={"read": 0.25, "write": 0.5 + seq},
    )
    counts = {name: changes.pop(name) for name in ("confidence_sum",) if name in changes}
    return replace(made, stats=replace(made.stats, **counts), **changes)


def commit(**changes: Any) -> Commit:
    made = build_commit(SPEC, SHARD, [receipt(0), receipt(1)])
    return replace(made, **changes)


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_a_commit_sums_its_receipts() -> None:
    made = commit()
    assert (made.images, made.labeled_images, made.failures) == (6, 4, 0)
    assert made.confusion == ((10, 2), (0, 1)) and made.class_pixels == (12, 15)
    assert made.confidence_sum == 5.0 and made.seconds == {"read": 0.5, "write": 2.0}
    assert made.input == {"location": "memory://in/x/a.tar", "etag": "tag", "size": 99}
    assert made.masks == ("parquet", "png") and made.fingerprint == "f00d"


def test_a_commit_does_not_depend_on_the_order_of_receipts() -> None:
    values = [0.1, 0.2, 0.3, 1e16, -1e16]
    receipts = [receipt(n, 5, confidence_sum=value) for n, value in enumerate(values)]
    one, other = (
        replace(build_commit(SPEC, SHARD, order), commit_id="")
        for order in (receipts, receipts[::-1])
    )
    assert one == other
    assert [file.path[-9] for file in one.files] == list("01234")


def test_stages_that_only_some_chunks_have_are_kept() -> None:
    made = build_commit(SPEC, SHARD, [receipt(0), receipt(1, seconds={"retry": 1.0})])
    assert made.seconds == {"read": 0.25, "retry": 1.0, "write": 0.5}


def test_a_commit_sums_histograms_and_puts_forward_the_worst_images() -> None:
    made = commit()
    assert made.histograms == receipt(0).stats.histograms + receipt(1).stats.histograms
    assert made.run == SPEC.run
    scores = [n / 100 for n in range(40)]
    many = [receipt(n, 40, candidates=(Candidate(f"k{n}", s, None, "p"),
                                       Candidate(f"l{n}", 0.9, s / 2, "p")))
            for n, s in enumerate(reversed(scores))]  # fmt: skip
    few = world.spec(drift__review_images=5)
    found = build_commit(few, SHARD, many).candidates
    assert [c.mean_confidence for c in found if c.mean_iou is None] == scores[:5]
    assert [c.mean_iou for c in found if c.mean_iou is not None] == [s / 2 for s in scores[:5]]
    assert [c.score for c in found] == sorted(c.score for c in found)


def test_commits_of_format_1_are_read() -> None:
    document = {**json.loads(commit().to_json()), "format": 1}
    for name in ("run", "histograms", "candidates"):
        del document[name]
    found = Commit.from_json(json.dumps(document).encode(), "here")
    assert found == replace(commit(), run="", histograms=None, candidates=(),
                            commit_id=found.commit_id)  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["shares"].pop(),
        lambda h: h["shares"][0].pop(),
        lambda h: h["confidence"].append(0),
        lambda h: h["size"].pop(),
        lambda h: h["aspect"].__setitem__(0, "many"),
        lambda h: h.pop("size"),
    ],
)
def test_histograms_of_other_bins_are_refused(change: Any) -> None:
    document = json.loads(commit().to_json())
    change(document["histograms"])
    with pytest.raises(OutputError, match="no readable commit"):
        Commit.from_json(json.dumps(document).encode(), "here")


@given(
    st.lists(st.tuples(COUNTS, COUNTS), min_size=2, max_size=2),
    st.floats(0, 1e9),
    st.text(max_size=20),
)
def test_json_carries_every_commit(confusion: list, confidence: float, name: str) -> None:
    made = commit(confusion=tuple(confusion), confidence_sum=confidence, shard=name,
                  files=(FileRecord(name, 2**40, "0" * 64),))  # fmt: skip
    copy = Commit.from_json(made.to_json(), "here")
    assert copy == made and copy.to_json() == made.to_json()


def test_counts_of_64_bits_stay_exact() -> None:
    made = commit(confusion=((2**62 + 1, 0), (0, 1)))
    copy = Commit.from_json(made.to_json(), "here")
    assert copy.matrix.matrix[0, 0] == 2**62 + 1 and copy.confusion == made.confusion


def test_scores_are_there_for_people_if_there_are_labels() -> None:
    made = json.loads(commit().to_json())
    expected = ConfusionMatrix(2, [[10, 2], [0, 1]]).scores().to_dict()
    assert made["scores"] == expected and made["format"] == COMMIT_FORMAT
    assert "scores" not in json.loads(commit(labeled_images=0).to_json())


def test_a_newer_format_is_refused_with_the_way_out() -> None:
    document = {**json.loads(commit().to_json()), "format": COMMIT_FORMAT + 1, "more": 1}
    with pytest.raises(OutputError, match=f"here: commit format {COMMIT_FORMAT + 1};") as caught:
        Commit.from_json(json.dumps(document).encode(), "here")
    assert "version of fcnseg that wrote" in caught.value.remedy and "new OUTPUT" in str(caught)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"3", b"{}", b'{"format": 1}', b"\xff"]
)
def test_what_is_no_commit_is_refused_with_the_way_out(data: bytes) -> None:
    with pytest.raises(OutputError, match="here: no readable commit") as caught:
        Commit.from_json(data, "here")
    assert "Delete it" in caught.value.remedy


@pytest.mark.parametrize("field", json.loads(commit().to_json()))
def test_a_commit_without_one_of_its_fields_is_refused(field: str) -> None:
    document = json.loads(commit().to_json())
    del document[field]
    if field != "scores":
        with pytest.raises(OutputError, match="no readable commit"):
            Commit.from_json(json.dumps(document).encode(), "here")


def test_a_commit_is_written_once(output: Store) -> None:
    made = commit()
    write_commit(output, made, replaces=None)
    assert Commit.from_json(output.read(commit_path("x/a")), "") == made
    assert commit_path("x/a") == "_commits/x/a.json"


def test_a_lost_answer_is_told_apart_by_the_commits_id(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Store.create

    def answer_lost(self: Store, path: str, data: bytes) -> str | None:
        create(self, path, data)
        return create(self, path, data)  # a retry, which finds the object of the first try

    monkeypatch.setattr(Store, "create", answer_lost)
    write_commit(output, commit(), replaces=None)


def test_a_foreign_commit_is_refused_and_stays(output: Store) -> None:
    theirs = commit()
    write_commit(output, theirs, replaces=None)
    mine = replace(theirs, commit_id="mine")
    with pytest.raises(StoreError, match=r"_commits/x/a.json: a commit that this driver did not"):
        write_commit(output, mine, replaces=None)
    assert Commit.from_json(output.read(commit_path("x/a")), "") == theirs


def test_a_commit_that_no_longer_holds_is_replaced(output: Store) -> None:
    for lost in (False, True):  # perhaps somebody deleted it to have the shard done again
        tag = write_commit(output, commit(), replaces=None)
        if lost:
            output.delete(commit_path("x/a"))
        newer = commit(fingerprint="beef")
        assert write_commit(output, newer, replaces=tag) == output.stat(commit_path("x/a")).etag
        assert Commit.from_json(output.read(commit_path("x/a")), "") == newer
        output.delete(commit_path("x/a"))


def test_a_commit_that_another_driver_replaced_meanwhile_stays(output: Store) -> None:
    tag = write_commit(output, commit(), replaces=None)
    theirs = commit(fingerprint="beef", files=())
    write_commit(output, theirs, replaces=tag)
    with pytest.raises(StoreError, match="a commit that this driver did not write"):
        write_commit(output, commit(fingerprint="dead"), replaces=tag)
    assert Commit.from_json(output.read(commit_path("x/a")), "") == theirs


FAILURES = [Failure("b", "why", "ImageError", "in#2"), Failure("a", "é\n", "LabelError", "in#1")]


def test_the_quarantine_table_is_named_in_the_commit(output: Store) -> None:
    file = write_quarantine(output, "x/a", FAILURES)
    data = output.read(quarantine_path("x/a"))
    assert file == record("_quarantine/x/a.parquet", data)
    rows = pq.ParquetFile(Path(output.url, quarantine_path("x/a"))).read().to_pylist()
    assert rows == [vars(failure) for failure in reversed(FAILURES)]  # by location
    assert with_file(commit(), file).files == (*commit().files, file)
    made = commit()
    assert with_file(made, None) == made


def test_equal_failures_give_equal_tables_in_any_order(output: Store) -> None:
    assert write_quarantine(output, "x/a", FAILURES) == write_quarantine(
        output, "x/a", FAILURES[::-1]
    )


def test_no_failures_leave_no_table(output: Store) -> None:
    write_quarantine(output, "x/a", FAILURES)
    assert write_quarantine(output, "x/a", []) is None
    assert output.objects() == []
