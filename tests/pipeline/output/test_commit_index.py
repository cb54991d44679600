"""Laws of the commit index: commits decide; the table is a cache that one listing validates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcn_core.labels import LabelSet
from pipeline.errors import OutputError, StoreError
from pipeline.finish import write_table
from pipeline.output import commit_index as commit_index_module
from pipeline.output import commit_index as spill
from pipeline.output import shard_table
from pipeline.output.commit_index import CommitIndex, hashes, read_commit_index, read_commits
from pipeline.output.commits import COMMIT_FORMAT, Commit, write_commit
from pipeline.output.shard_table import Entry
from pipeline.output.summary import Summary, summarize
from pipeline.paths import SHARD_TABLE, commit_path
from pipeline.storage.store import Store
from tests.support import oracles, world


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


def plain(entry: Entry) -> dict[str, Any]:
    """Comparable, confusion matrix included."""
    values = {name: getattr(entry, name) for name in Entry.__dataclass_fields__}
    return {**values, "confusion": entry.confusion.matrix.tolist()}


def read(output: Store) -> dict[str, dict[str, Any]]:
    """What the commit index says of every shard."""
    index, summary = summarize(output, world.TINY)
    found = {entry.shard: plain(entry) for entry in index.entries()}
    assert len(index) == len(found) == summary.shards
    return found


def save(output: Store) -> Summary:
    """Write the table, as a run does in the end."""
    return write_table(output, read_commit_index(output), world.TINY)


def rows(output: Store) -> list[dict[str, Any]]:
    return pq.ParquetFile(Path(output.url, SHARD_TABLE)).read().to_pylist()  # type: ignore[no-any-return]


def put(output: Store, made: Commit) -> str:
    """Commit, over an older commit if there is one."""
    path = commit_path(made.shard)
    older = next((info.etag for info in output.objects("_commits") if info.path == path), None)
    return write_commit(output, made, replaces=older)


def test_without_a_table_every_commit_is_read(output: Store, commits_read: list[str]) -> None:
    found = read(output)
    assert list(found) == sorted(SHARDS)
    assert sorted(commits_read) == sorted(commit_path(shard) for shard in SHARDS)
    tag = output.stat(commit_path("x/y")).etag
    assert found["x/y"] == plain(Entry.of(commit("x/y", 3), tag))


def test_with_a_table_no_commit_is_read(output: Store, commits_read: list[str]) -> None:
    found = read(output)
    save(output)
    commits_read.clear()
    assert read(output) == found
    assert commits_read == []


def test_only_what_the_table_lacks_is_read(output: Store, commits_read: list[str]) -> None:
    save(output)
    put(output, commit("new", 9))
    put(output, commit("b", 77))
    output.delete(commit_path("x/y"))
    commits_read.clear()
    found = read(output)
    assert sorted(commits_read) == [commit_path("b"), commit_path("new")]
    assert (set(found), found["b"]["images"]) == ({*SHARDS, "new"} - {"x/y"}, 770)
    commits_read.clear()
    index = read_commit_index(output)
    put(output, commit("newer", 5))
    assert set(index.commit_tags(["b", "x/y", "newer"])) == {"b"}
    assert "b" in index and "newer" not in index


def test_a_table_without_commits_is_worth_nothing(output: Store) -> None:
    save(output)
    for shard in SHARDS:
        output.delete(commit_path(shard))
    assert read(output) == {}


def test_a_table_that_says_it_all_is_not_written_again(output: Store) -> None:
    save(output)
    before = output.stat(SHARD_TABLE)
    assert save(output).shards == len(SHARDS)
    assert output.stat(SHARD_TABLE) == before
    output.delete(commit_path("b"))
    save(output)
    assert "b" not in [row["shard"] for row in rows(output)]


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
    found = read(output)
    save(output)
    damaged = damages(output.read(SHARD_TABLE))[name]
    output.delete(SHARD_TABLE)
    if damaged is not None:
        output.write(SHARD_TABLE, damaged)
    commits_read.clear()
    assert read(output) == found
    assert len(commits_read) == len(SHARDS)


def test_no_flipped_byte_of_the_table_changes_anything(output: Store) -> None:
    found = read(output)
    expected = save(output).scores()
    data = output.read(SHARD_TABLE)
    for place in range(0, len(data), 61):
        output.write(SHARD_TABLE, data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :])
        assert read(output) == found, place
        assert save(output).scores() == expected, place


def test_damage_in_the_heavy_columns_alone_is_found_where_they_are_read(output: Store) -> None:
    expected = save(output).scores()
    path = Path(output.url, SHARD_TABLE)
    table = pq.ParquetFile(path).read()
    changed = [{**row, "confusion": [9] * 9} for row in table.to_pylist()]
    pq.write_table(type(table).from_pylist(changed, schema=table.schema), path)
    put(output, commit("c", 4, confusion=((0,) * 3,) * 3))
    index = read_commit_index(output)  # planning needs no confusion matrix, and believes the rest
    assert len(index) == len(SHARDS) + 1
    summary = write_table(output, index, world.TINY)
    assert summary.scores()["confusion"] == expected["confusion"]
    assert [row["shard"] for row in rows(output)] == sorted([*SHARDS, "c"])


def test_a_table_of_other_columns_is_not_believed(output: Store, commits_read: list[str]) -> None:
    found = read(output)
    save(output)
    path = Path(output.url, SHARD_TABLE)
    table = pq.ParquetFile(path).read()
    pq.write_table(table.drop_columns(["masks"]), path)
    commits_read.clear()
    assert read(output) == found
    assert len(commits_read) == len(SHARDS)


@pytest.mark.parametrize("column", ["seconds", "confusion", "class_pixels", "masks", "images"])
def test_a_table_with_nulls_is_not_believed(output: Store, column: str) -> None:
    found = read(output)
    save(output)
    path = Path(output.url, SHARD_TABLE)
    table = pq.ParquetFile(path).read()
    changed = [{**row, column: None} for row in table.to_pylist()]
    pq.write_table(type(table).from_pylist(changed, schema=table.schema), path)
    assert read(output) == found


def test_a_table_that_is_not_sorted_is_not_believed(output: Store, commits_read: list[str]) -> None:
    index = read_commit_index(output)
    entries = list(index.entries())
    with shard_table.TableWriter(output) as table:
        table.write(shard_table.batch_of(entries[::-1]))
        table.put()
    commits_read.clear()
    assert read(output) == {entry.shard: plain(entry) for entry in entries}
    assert len(commits_read) == len(SHARDS)


def test_a_newer_commit_is_refused_with_the_way_out(output: Store) -> None:
    path = commit_path("b")
    document = {**json.loads(output.read(path)), "format": COMMIT_FORMAT + 1}
    output.write(path, json.dumps(document).encode())
    for reader in (read_commit_index, lambda output: list(read_commits(output))):
        with pytest.raises(OutputError, match=r"/_commits/b.json: commit format") as caught:
            reader(output)
        assert "version of fcnseg that wrote" in caught.value.remedy


def test_a_commit_at_the_place_of_another_is_refused(output: Store) -> None:
    output.write(commit_path("copy"), output.read(commit_path("b")))
    with pytest.raises(OutputError, match=r"copy\.json: the commit of shard 'b'"):
        read_commit_index(output)


def test_a_commit_of_other_classes_is_refused(output: Store) -> None:
    put(output, commit("odd", confusion=((1, 2), (3, 4)), class_pixels=(1, 2)))
    with pytest.raises(OutputError, match=r"shard odd: 2 values in class_pixels; 3 for the 3"):
        save(output)
    assert len(list(read_commit_index(output).entries())) == len(SHARDS) + 1


def test_a_store_that_fails_is_no_damaged_table(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> bytes:
        raise StoreError("x", "the store failed", "a working store")

    monkeypatch.setattr(Store, "read", failing)
    with pytest.raises(StoreError):
        read_commit_index(output)


def test_a_remote_table_is_read_the_same(output: Store, commits_read: list[str]) -> None:
    remote = Store("memory://index-of-a-remote-store")
    for path in ("a", "b", "x/y"):
        put(remote, commit(path))
    found = read(remote)
    save(remote)
    commits_read.clear()
    assert read(remote) == found and commits_read == []
    put(remote, commit("b", 3))
    assert set(save(remote).spread) == set(found)
    data = remote.read(SHARD_TABLE)
    remote.write(SHARD_TABLE, data[: len(data) // 2])
    assert read(remote)["b"]["images"] == 30


def test_objects_that_are_no_commits_are_passed_over(output: Store) -> None:
    before = read(output)
    output.write("_commits/notes.txt", b"")
    output.write("_commits.json", b"")
    assert read(output) == before
    assert len(list(read_commits(output))) == len(SHARDS)


def test_commits_are_read_whole_and_in_order(output: Store) -> None:
    found = list(read_commits(output))
    assert {made.shard: made for made in found} == {
        shard: commit(shard, seed) for seed, shard in enumerate(SHARDS, 1)
    }
    assert [made.shard for made in found] == sorted(SHARDS, key=commit_path)


def test_the_table_has_the_scores_of_every_shard(output: Store) -> None:
    put(output, commit("bare", confusion=((0,) * 3,) * 3, images=0))
    save(output)
    entries = list(read_commit_index(output).entries())
    assert [row["shard"] for row in rows(output)] == [entry.shard for entry in entries]
    for row, entry in zip(rows(output), entries, strict=True):
        scores = entry.confusion.scores().to_dict()
        assert {name: row[name] for name in scores} == scores
        assert row["confusion"] == entry.confusion.matrix.ravel().tolist()
        assert row["mean_confidence"] == (
            entry.confidence_sum / entry.images if entry.images else None
        )


def test_equal_indexes_are_equal_tables(output: Store) -> None:
    tables = []
    for _ in range(2):
        output.delete(SHARD_TABLE)
        save(output)
        tables.append(output.read(SHARD_TABLE))
    assert tables[0] == tables[1]


def test_an_empty_index_is_a_table_without_rows(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    summary = save(output)
    assert rows(output) == [] and read(output) == {}
    assert summary.scores()["confusion"] == [[0] * 3] * 3 and summary.worst_of_all(5) == []


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
        put(output, made)
    ranked = save(output).worst_of_all(9)
    assert [score.shard for score in ranked] == ["bad", "good", "unsure", "sure", "empty"]
    assert [score.score for score in ranked[2:]] == [0.2, 0.9, 1.0]


# --- The same as the obvious implementation, whatever happens ----------------------------------

NAMES = ("a", "a-b", "a/b", "b", "é", "é/1", "0", "z z", "%2f", "a.tar")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["commit", "commit", "delete", "table", "damage", "run", "drop"]),
        st.sampled_from(NAMES),
        st.integers(1, 5),
    ),
    max_size=14,
)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of two rows, so that a few shards are many batches."""
    for module in (shard_table, commit_index_module):
        monkeypatch.setattr(module, "ROWS", 2)
    monkeypatch.setattr(spill, "SPILL_ROWS", 2)


def do(output: Store, step: str, name: str, seed: int, table: bytes) -> None:
    if step == "commit":
        put(output, commit(name, seed, confusion=((seed, 0, seed), (0, 0, 0), (1, 0, 0))))
    elif step == "delete":
        output.delete(commit_path(name))
    elif step == "table":
        save(output)
    elif step == "drop":
        output.delete(SHARD_TABLE)
    elif step == "damage" and table:
        place = len(table) * seed // 6
        output.write(SHARD_TABLE, table[:place] + b"damaged" + table[place + 7 :])
    elif step == "run":  # as a run: the commit index grows while it is held
        index = read_commit_index(output)
        for shard in (name, f"{name}-{seed}"):
            made = commit(shard, seed + 1)
            tag = write_commit(output, made, replaces=index.commit_tags([shard]).get(shard))
            index.add(Entry.of(made, tag))
        write_table(output, index, world.TINY)


@given(STEPS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_index_is_what_reading_everything_gives(
    tmp_path_factory: pytest.TempPathFactory, small_batches: None, steps: list[tuple[str, str, int]]
) -> None:
    output = Store(str(tmp_path_factory.mktemp("steps")))
    for step, name, seed in steps:
        there = any(info.path == SHARD_TABLE for info in output.objects("stats"))
        do(output, step, name, seed, output.read(SHARD_TABLE) if there else b"")
        documents = oracles.commits(Path(output.url))
        index, summary = summarize(output, world.TINY)
        assert [e.shard for e in index.entries()] == sorted(documents)
        for entry in index.entries():
            document = documents[entry.shard]
            assert entry.confusion.matrix.tolist() == document["confusion"]
            assert (entry.input_etag, entry.images) == (
                document["input"]["etag"], document["images"],
            )  # fmt: skip
        assert index.with_failures() == {
            shard: output.stat(commit_path(shard)).etag
            for shard in sorted(documents) if documents[shard]["failures"]
        }  # fmt: skip
        check_summary(summary, documents)
        keys = hashes([*NAMES, "nobody"], len(NAMES) + 1)
        assert [place >= 0 for place in index.find(keys)] == [
            name in documents for name in (*NAMES, "nobody")
        ]
        assert sorted(index.names(index.others(keys))) == sorted(documents.keys() - {*NAMES})
    save(output)
    incremental = rows(output)
    output.delete(SHARD_TABLE)
    save(output)
    assert rows(output) == incremental


def check_summary(summary: Summary, documents: dict[str, Any]) -> None:
    """Against sums that are made one by one."""
    matrix, pixels = oracles.sums(documents, len(world.TINY.classes))
    found = summary.scores()
    assert (found["confusion"], found["class_pixels"]) == (matrix, pixels)
    for name in ("images", "labeled_images", "failures"):
        assert found[name] == sum(document[name] for document in documents.values())
    for name, value in oracles.scores(matrix).items():
        assert found[name] == pytest.approx(value)
    ranked = oracles.ranked(documents)
    assert [score.shard for score in summary.worst_of_all(99)] == [shard for _, shard in ranked]
    assert summary.spread == sorted(documents)
    assert summary.with_failures == [s for s in sorted(documents) if documents[s]["failures"]]


def test_twenty_thousand_rows_stay_out_of_memory(tmp_path: Path) -> None:
    """What the index keeps, and what it takes while it works, by Python's and Arrow's count."""
    import tracemalloc

    import pyarrow as pa

    labels = LabelSet("voc-sized", tuple(f"class {k}" for k in range(21)))
    matrix = np.random.default_rng(0).integers(0, 10**6, (21, 21))
    made = commit("s", confusion=tuple(map(tuple, matrix.tolist())), class_pixels=(10**9,) * 21)
    entry = Entry.of(made, "tag")
    index, count = CommitIndex(), 20_000
    tracemalloc.start()
    arrow = pa.total_allocated_bytes()
    for n in range(count):
        index.add(replace(entry, shard=f"train/shard-{n:06d}", commit_etag=f"{n:032x}"))
    held = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - arrow
    assert held < 12 * 2**20, held  # 40 bytes a row, and one batch of entries that wait
    summary = write_table(Store(str(tmp_path)), index, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert summary.scores()["confusion"][3][4] == count * matrix[3, 4]
    # Batches of 2048 rows of 4 KB; as Python objects, 20,000 matrices would be 300 MB.
    assert peak < 150 * 2**20, peak
