"""Laws of the ledger: commits are the truth, the table is a cache that one listing validates."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fcn_core.metrics import ConfusionMatrix
from pipeline.commits import Commit, commit_path, write_commit
from pipeline.errors import OutputError, StoreError
from pipeline.ledger import (
    TABLE_PATH,
    Entry,
    merged,
    read_commits,
    read_ledger,
    worst_shards,
    write_table,
)
from pipeline.store import Store
from tests import world


def commit(shard: str, seed: int = 1, **changes: Any) -> Commit:
    made = Commit(
        shard=shard,
        commit_id=f"{shard}-{seed}",
        fingerprint="f",
        input={"location": f"in/{shard}.tar", "etag": f"e{seed}", "size": seed},
        files=(),
        masks=("parquet", "png"),
        images=10 * seed,
        labeled_images=5,
        failures=seed,
        confusion=((seed, 2, 0), (3, 4, 0), (0, 0, 0)),
        class_pixels=(seed, 6, 2**40),
        confidence_sum=0.1 * seed,
        seconds={"read": 0.5, "forward": 1.25},
    )
    return replace(made, **changes)


SHARDS = ("a", "b", "x/y", "été 1", "p%20+#")


@pytest.fixture
def output(tmp_path: Path) -> Store:
    """Five commits and no table."""
    store = Store(str(tmp_path))
    for seed, shard in enumerate(SHARDS, 1):
        write_commit(store, commit(shard, seed), replaces=None)
    return store


@pytest.fixture
def commits_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the commits that are opened from now on."""
    seen: list[str] = []
    read = Store.read

    def spy(self: Store, path: str, *args: int | None) -> bytes:
        if path.startswith("_commits/"):
            seen.append(path)
        return read(self, path, *args)

    monkeypatch.setattr(Store, "read", spy)
    return seen


def same(ledger: dict[str, Entry], other: dict[str, Entry]) -> bool:
    """Equal, confusion matrices included."""

    def plain(found: dict[str, Entry]) -> list[dict[str, Any]]:
        return [{**vars(e), "confusion": e.confusion.matrix.tolist()} for e in found.values()]

    return plain(ledger) == plain(other)


def test_without_a_table_every_commit_is_read(output: Store, commits_read: list[str]) -> None:
    ledger = read_ledger(output)
    assert list(ledger) == sorted(SHARDS)
    assert sorted(commits_read) == sorted(commit_path(shard) for shard in SHARDS)
    tag = output.stat(commit_path("x/y")).etag
    assert same({"x/y": ledger["x/y"]}, {"x/y": Entry.of(commit("x/y", 3), tag)})


def test_with_a_table_no_commit_is_read(output: Store, commits_read: list[str]) -> None:
    ledger = read_ledger(output)
    write_table(output, ledger)
    commits_read.clear()
    assert same(read_ledger(output), ledger)
    assert commits_read == []


def test_only_what_the_table_lacks_is_read(output: Store, commits_read: list[str]) -> None:
    write_table(output, read_ledger(output))
    write_commit(output, commit("new", 9), replaces=None)
    tag = output.stat(commit_path("b")).etag
    write_commit(output, commit("b", 77), replaces=tag)
    output.delete(commit_path("x/y"))
    commits_read.clear()
    ledger = read_ledger(output)
    assert sorted(commits_read) == [commit_path("b"), commit_path("new")]
    assert (set(ledger), ledger["b"].images) == ({*SHARDS, "new"} - {"x/y"}, 770)


def test_a_table_without_commits_is_worth_nothing(output: Store) -> None:
    write_table(output, read_ledger(output))
    for shard in SHARDS:
        output.delete(commit_path(shard))
    assert read_ledger(output) == {}


def damages(data: bytes) -> dict[str, bytes | None]:
    return {
        "deleted": None,
        "empty": b"",
        "other": b"<html>moved</html>",
        "truncated": data[: len(data) // 2],
        "footer": data[:-8] + bytes(4) + data[-4:],
        "zeros": bytes(len(data)),
    }


@pytest.mark.parametrize("name", damages(b""))
def test_a_damaged_table_changes_nothing(output: Store, commits_read: list[str], name: str) -> None:
    ledger = read_ledger(output)
    write_table(output, ledger)
    damaged = damages(output.read(TABLE_PATH))[name]
    output.delete(TABLE_PATH)
    if damaged is not None:
        output.write(TABLE_PATH, damaged)
    commits_read.clear()
    assert same(read_ledger(output), ledger)
    assert len(commits_read) == len(SHARDS)


def test_no_flipped_byte_of_the_table_changes_anything(output: Store) -> None:
    ledger = read_ledger(output)
    write_table(output, ledger)
    data = output.read(TABLE_PATH)
    for place in range(0, len(data), 31):
        output.write(TABLE_PATH, data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :])
        assert same(read_ledger(output), ledger), place


def test_a_table_of_other_columns_is_not_believed(output: Store, commits_read: list[str]) -> None:
    ledger = read_ledger(output)
    write_table(output, ledger)
    path = Path(output.url, TABLE_PATH)
    table = pq.ParquetFile(path).read()
    pq.write_table(table.drop_columns(["masks"]), path)
    commits_read.clear()
    assert same(read_ledger(output), ledger)
    assert len(commits_read) == len(SHARDS)


@pytest.mark.parametrize("column", ["seconds", "confusion", "class_pixels", "masks", "images"])
def test_a_table_with_nulls_is_not_believed(output: Store, column: str) -> None:
    ledger = read_ledger(output)
    write_table(output, ledger)
    path = Path(output.url, TABLE_PATH)
    table = pq.ParquetFile(path).read()
    rows = [{**row, column: None} for row in table.to_pylist()]
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)
    assert same(read_ledger(output), ledger)


def test_a_newer_commit_is_refused_with_the_way_out(output: Store) -> None:
    path = commit_path("b")
    document = {**json.loads(output.read(path)), "format": 2}
    output.write(path, json.dumps(document).encode())
    for reader in (read_ledger, lambda output: list(read_commits(output))):
        with pytest.raises(OutputError, match=r"/_commits/b.json: commit format 2") as caught:
            reader(output)
        assert "version of fcnseg that wrote" in caught.value.remedy


def test_a_store_that_fails_is_no_damaged_table(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> bytes:
        raise StoreError("x", "the store failed", "a working store")

    monkeypatch.setattr(Store, "read", failing)
    with pytest.raises(StoreError):
        read_ledger(output)


def test_objects_that_are_no_commits_are_passed_over(output: Store) -> None:
    before = read_ledger(output)
    output.write("_commits/notes.txt", b"")
    output.write("_commits.json", b"")
    assert same(read_ledger(output), before)
    assert len(list(read_commits(output))) == len(SHARDS)


def test_commits_are_read_whole_and_in_order(output: Store) -> None:
    found = list(read_commits(output))
    assert {made.shard: made for made in found} == {
        shard: commit(shard, seed) for seed, shard in enumerate(SHARDS, 1)
    }
    assert [made.shard for made in found] == sorted(SHARDS, key=commit_path)


def test_the_table_has_the_scores_of_every_shard(output: Store) -> None:
    write_commit(output, commit("bare", confusion=((0,) * 3,) * 3, images=0), replaces=None)
    ledger = read_ledger(output)
    write_table(output, ledger)
    rows = pq.ParquetFile(Path(output.url, TABLE_PATH)).read().to_pylist()
    assert [row["shard"] for row in rows] == list(ledger)
    for row, entry in zip(rows, ledger.values(), strict=True):
        scores = entry.confusion.scores().to_dict()
        assert {name: row[name] for name in scores} == scores
        assert row["confusion"] == entry.confusion.matrix.ravel().tolist()
        assert row["mean_confidence"] == (
            entry.confidence_sum / entry.images if entry.images else None
        )


def test_equal_ledgers_are_equal_tables(output: Store) -> None:
    tables = []
    for _ in range(2):
        write_table(output, read_ledger(output))
        tables.append(output.read(TABLE_PATH))
    assert tables[0] == tables[1]


def test_an_empty_ledger_is_a_table_without_rows(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    write_table(output, {})
    assert pq.ParquetFile(tmp_path / TABLE_PATH).read().num_rows == 0
    assert read_ledger(output) == {}


def test_the_merged_matrix_is_the_sum(output: Store) -> None:
    ledger = read_ledger(output)
    total = sum((entry.confusion.matrix for entry in ledger.values()), 0)
    assert merged(ledger, world.TINY).matrix.tolist() == total.tolist()
    assert merged({}, world.TINY).matrix.tolist() == ConfusionMatrix(3).matrix.tolist()


def test_worst_shards_come_first_and_those_without_labels_last(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    bare = ((0,) * 3,) * 3
    for made in (
        commit("good", confusion=((9, 1, 0), (0, 9, 0), (0, 0, 0))),
        commit("bad", confusion=((1, 9, 0), (9, 0, 0), (0, 0, 0))),
        commit("unsure", confusion=bare, images=10, confidence_sum=2.0),
        commit("sure", confusion=bare, images=10, confidence_sum=9.0),
        commit("empty", confusion=bare, images=0, confidence_sum=0.0),
    ):
        write_commit(output, made, replaces=None)
    ranked = worst_shards(read_ledger(output))
    assert [entry.shard for entry in ranked] == ["bad", "good", "unsure", "sure", "empty"]
    assert not math.isnan(ranked[0].confusion.scores().mean_iou)
