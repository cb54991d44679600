"""Laws of gc: what a commit names stays, and so does what is young; the rest of ours goes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.driver import run
from pipeline.errors import ConfigError, LeaseError, OutputError
from pipeline.inputs.shard import ChunkLimits
from pipeline.manifest import Manifest
from pipeline.monitoring.progress import Progress
from pipeline.output import gc as gc_module
from pipeline.output.commits import Commit
from pipeline.output.gc import collect_garbage, find_garbage, parse_age
from pipeline.output.lease import Holder, Lease
from pipeline.output.quarantine import find_retry_list
from pipeline.output.status import read_status
from pipeline.output.verify import verify
from pipeline.stages.records import record
from pipeline.storage.backend import ObjectInfo
from pipeline.storage.store import Store
from tests.support import world

DAY = 86400.0
PATHS = [
    f"{folder}/{name}"
    for folder, ends in {
        "masks": ("a.parquet", "a/b.parquet", "a-00000-of-00002.parquet", "é x.parquet", "a.txt"),
        "png": ("a/k.png", "a/b/k.png", "a/k.jpg"),
        "tar": ("a.tar", "a/b.tar"),
        "_previews": ("a.parquet", "a/b.parquet"),
        "_quarantine": ("a.parquet", "a/b.parquet", "c.parquet", "d.parquet"),
        "_index": ("000000.parquet",),
        "stats": ("shards.parquet", "scores.json"),
        "mine": ("notes.png", "a.parquet"),
    }.items()
    for name in ends
] + ["report.html", "_SUCCESS.png", "_probe-" + "0" * 32, "_probe-x", "a.parquet"]


def commit(shard: str, files: list[str]) -> Commit:
    return Commit(
        shard, "id", "f", {}, tuple(record(f, b"x") for f in files), (), 1, 0, 0, ((0,),), (1,),
        0.0, {},
    )  # fmt: skip


def make(files: dict[str, float], commits: dict[str, list[str]]) -> Store:
    """An output in memory: objects with their ages in days, commits with the names in them."""
    store = Store("memory://gc")
    for info in store.objects():
        store.delete(info.path)
    identity = Manifest("in", ChunkLimits(1, 1), world.TINY, {})
    store.write("_run.json", identity.to_json())
    for path in files:
        store.write(path, b"x")
    for shard, named in commits.items():
        store.write(f"_commits/{shard}.json", commit(shard, named).to_json())
    return store


def expected(path: str, age: float, commits: dict[str, list[str]], failed: set[str]) -> bool:
    """Whether it goes, in the words of the documentation."""
    ours = {"masks": ".parquet", "png": ".png", "tar": ".tar", "_previews": ".parquet",
            "_quarantine": ".parquet"}  # fmt: skip
    folder, _, rest = path.partition("/")
    if age < 1 or any(path in named for named in commits.values()):
        return False
    if not rest:
        return path == "_probe-" + "0" * 32
    if folder == "_quarantine":
        shard = rest.removesuffix(".parquet")
        return shard in commits and shard not in failed
    return folder in ours and rest.endswith(ours[folder])


@given(
    st.dictionaries(st.sampled_from(PATHS), st.sampled_from([0.0, 0.9, 1.1, 30.0])),
    st.dictionaries(
        st.sampled_from(["a", "a/b", "é x", "c"]),
        st.lists(st.sampled_from(PATHS), max_size=6, unique=True),
    ),
    st.sets(st.sampled_from(["a", "c", "e"])),
)
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
def test_what_goes_and_what_stays(
    files: dict[str, float], commits: dict[str, list[str]], failed: set[str]
) -> None:
    store = make(files, commits)
    store.write("_PARTIAL", json.dumps({"failed_shards": dict.fromkeys(failed, "?")}).encode())
    before = {info.path for info in store.objects()}
    goes = {path for path, age in files.items() if expected(path, age, commits, failed)}
    with pytest.MonkeyPatch.context() as patch:
        now = time.time()
        listing = Store.listing

        def aged(self: Store, prefix: str = "") -> Iterator[ObjectInfo]:
            for info in listing(self, prefix):
                yield replace(info, modified=now - files.get(info.path, 0.0) * DAY)

        patch.setattr(Store, "listing", aged)
        assert {g.path for g in find_garbage(store, DAY)} == goes
        assert {info.path for info in store.objects()} == before  # writes nothing
        removed: list[str] = []
        assert collect_garbage(store, DAY, lambda g: removed.append(g.path)) == len(goes)
        assert set(removed) == goes
        assert {info.path for info in store.objects()} == before - goes
        assert list(find_garbage(store, DAY)) == []


@pytest.fixture
def interrupted(tmp_path: Path, weights: Path) -> tuple[Store, Callable[[], int]]:
    """An output of a run that was stopped, with a commit that was deleted, and how to go on."""
    shards = world.write_shards(tmp_path / "in")
    output = tmp_path / "out"
    small = world.config(shards, output, weights, limits__chunk_images=3)
    count = 0

    def stop(progress: Progress) -> None:
        nonlocal count
        count += 1
        if count > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small, stop)
    min((output / "_commits").iterdir()).unlink()
    (output / "masks/.fcnseg-tmp-0123").write_bytes(b"half")
    return Store(str(output)), lambda: run(small).exit_code


def test_after_gc_an_output_is_whole_and_goes_on(
    interrupted: tuple[Store, Callable[[], int]], tmp_path: Path, weights: Path, fcnseg
) -> None:
    output, resume = interrupted
    (tmp_path / "out/_quarantine").mkdir()
    (tmp_path / "out/_quarantine/s9.parquet").write_bytes(b"why a shard failed")
    before = {info.path for info in output.objects()}
    named = {path for path in before if path[0] == "_" and "_previews" not in path}
    named |= {f.path for c in (tmp_path / "out/_commits").glob("*.json")
              for f in Commit.from_json(c.read_bytes(), "").files}  # fmt: skip
    assert before - named  # there is something to remove
    code, stdout, stderr = fcnseg("gc", output.url, "--older-than", "0")
    assert code == 0 and len(stdout.splitlines()) == len(before - named)
    assert "nothing was deleted: add --delete" in stderr
    assert {info.path for info in output.objects()} == before
    assert fcnseg("gc", output.url)[1] == ""  # everything is young
    code, stdout, _ = fcnseg("gc", output.url, "--older-than", "0s", "--delete", "--json")
    assert {row["path"] for row in json.loads(stdout)["objects"]} == before - named
    assert {info.path for info in output.objects()} == named
    assert verify(output, deep=True).problems == ()
    assert resume() == 0
    output.delete("_quarantine/s9.parquet")
    run(world.config(tmp_path / "in", tmp_path / "all", weights, limits__chunk_images=3))
    assert world.tree(tmp_path / "out") == world.tree(tmp_path / "all")


def test_old_temporaries_go(interrupted: tuple[Store, Callable[[], int]]) -> None:
    output, _ = interrupted
    there = Path(output.url) / "masks/.fcnseg-tmp-0123"
    assert collect_garbage(output, 0) > 0
    assert there.exists()  # it may be a put that is under way
    os.utime(there, (time.time() - 100, time.time() - 100))
    assert [g.path for g in find_garbage(output, 0)] == ["masks/.fcnseg-tmp-0123"]
    assert collect_garbage(output, 0) == 1 and not there.exists()


def test_nothing_is_removed_while_a_driver_works(
    interrupted: tuple[Store, Callable[[], int]], fcnseg
) -> None:
    output, _ = interrupted
    before = output.objects()
    with Lease(output):
        with pytest.raises(LeaseError):
            collect_garbage(output, 0)
        assert fcnseg("gc", output.url, "--older-than", "0", "--delete")[0] == 75
        assert fcnseg("gc", output.url, "--older-than", "0")[0] == 0
    assert output.objects() == before
    output.write("_lease.json", json.dumps(
        asdict(Holder("o", "elsewhere", "", 1, 0.0, time.time() + 30))
    ).encode())  # fmt: skip
    with pytest.raises(LeaseError):
        collect_garbage(output, 0)


def test_an_object_that_is_written_again_stays(
    interrupted: tuple[Store, Callable[[], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, _ = interrupted
    found = list(find_garbage(output, 0))
    output.write(found[0].path, b"anew")
    monkeypatch.setattr(gc_module, "find_garbage", lambda *_: iter(found))
    collect_garbage(output, 0)
    assert output.read(found[0].path) == b"anew"


@pytest.mark.parametrize("data", [b"", b"{}"])
def test_a_commit_that_cannot_be_read_keeps_everything(
    interrupted: tuple[Store, Callable[[], int]], data: bytes
) -> None:
    """What it names is not known."""
    output, _ = interrupted
    output.write("_commits/s2.json", data)
    before = output.objects()
    for find in (lambda: list(find_garbage(output, 0)), lambda: collect_garbage(output, 0)):
        with pytest.raises(OutputError, match="Nothing was removed"):
            find()
    assert output.objects() == before


def test_what_is_no_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/a.parquet").write_bytes(b"somebody else's")
    with pytest.raises(OutputError, match=r"no _run\.json"):
        collect_garbage(Store(str(tmp_path)), 0)
    assert (tmp_path / "masks/a.parquet").exists()


def test_a_retry_in_fewer_chunks_leaves_garbage_and_gc_takes_it(
    tmp_path: Path, weights: Path
) -> None:
    shards = world.write_shards(tmp_path / "in", shards=1)
    config = world.config(shards, tmp_path / "out", weights, limits__chunk_images=2)
    run(config)
    (shards / "s0.tar").write_bytes(world.tar(world.samples(0, 2)))
    run(config)
    output = Store(config.output.url)
    assert find_retry_list(read_status(output)).shards == frozenset()
    assert {g.path for g in find_garbage(output, 0)} == {
        "masks/s0-00000-of-00002.parquet", "masks/s0-00001-of-00002.parquet",
        "_previews/s0-00000-of-00002.parquet", "_previews/s0-00001-of-00002.parquet",
        "tar/s0-00000-of-00002.tar", "tar/s0-00001-of-00002.tar",
        "png/s0/img2.png", "png/s0/img3.png",
    }  # fmt: skip
    assert collect_garbage(output, 0) == 8 and verify(output, deep=True).problems == ()


@pytest.mark.parametrize("text", ["", "24", "h", "-3h", "1y", "nan"])
def test_ages_are_durations(text: str) -> None:
    assert parse_age("1w") == 7 * 86400
    with pytest.raises(ConfigError, match="--older-than"):
        parse_age(text)
