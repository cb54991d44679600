"""Laws of planning: what is pending, what is left out, what vanished; each shard counted once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import committer as collect
from pipeline import driver as run
from pipeline.errors import ConfigError, InputError, StoreError
from pipeline.finish import write_table
from pipeline.inputs import shard as shard_list
from pipeline.inputs.listing import list_input
from pipeline.inputs.selection import EVERYTHING, Selection, parse_since
from pipeline.inputs.shard import Shard, ShardList
from pipeline.monitoring.progress import Progress
from pipeline.output.commit_index import read_commit_index
from pipeline.output.commits import Commit, write_commit
from pipeline.paths import commit_path
from pipeline.plan import Plan, make_plan
from pipeline.resolve import resolve_run
from pipeline.stages.read import read_chunks
from pipeline.stages.spec import PlanSpec
from pipeline.storage.store import Store
from tests.support import oracles, world


def commit(shard: str, etag: str, fingerprint: str, masks: tuple[str, ...]) -> Commit:
    return Commit(
        shard=shard, commit_id="1", fingerprint=fingerprint,
        input={"location": shard, "etag": etag, "size": 1}, files=(), masks=masks, images=3,
        labeled_images=0, failures=1, confusion=((0,) * 3,) * 3, class_pixels=(1, 2, 3),
        confidence_sum=1.5, seconds={},
    )  # fmt: skip


class World:
    """An input of objects of made-up content, and an output of commits of made-up work."""

    def __init__(self, root: Path) -> None:
        self.images = Store(str(root / "in"))
        self.output = Store(str(root / "out"))

    def put(self, name: str, version: int = 1) -> None:
        self.images.write(f"{name}.tar", b"x" * version)

    def done(self, name: str, fingerprint: str = "f", masks: tuple[str, ...] = ("png",)) -> None:
        """As if the present content had been segmented."""
        etag = self.images.stat(f"{name}.tar").etag
        path = commit_path(name)
        older = [i.etag for i in self.output.listing("_commits") if i.path == path]
        made = commit(name, etag, fingerprint, masks)
        write_commit(self.output, made, replaces=older[0] if older else None)

    def plan(
        self,
        *,
        masks: tuple[str, ...] = ("png",),
        shard_size: int = 4,
        limit_shards: int | None = None,
        selection: Selection = EVERYTHING,
    ) -> Plan:
        flags = {"input__shard_size": shard_size, "input__limit_shards": limit_shards}
        config = world.config(self.images.url, self.output.url, None, output__masks=masks, **flags)
        spec = PlanSpec(
            config=config,
            images=self.images,
            label_folder=None,
            output=self.output,
            selection=selection,
            fingerprint="f",
        )
        return make_plan(spec)

    def tags(self) -> dict[str, str]:
        return {info.path[:-4]: info.etag for info in self.images.listing()}


@pytest.fixture
def place(tmp_path: Path) -> World:
    made = World(tmp_path)
    for name in ("a", "a-b", "b/c", "b/d", "z"):
        made.put(name)
    return made


def ids(plan: Plan) -> list[str]:
    return [shard.id for shard in plan.pending]


NAMES = ("a", "a-b", "a.b", "c/1", "c/2", "ü", "% +")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "done", "done", "drop", "forget", "table", "damage"]),
        st.sampled_from(NAMES),
        st.sampled_from(["f", "f", "g"]),
        st.sampled_from([("png",), ("parquet",), ("parquet", "png")]),
        st.integers(1, 4),
    ),
    min_size=3,
    max_size=25,
)


@given(STEPS, st.sampled_from([("png",), ("parquet", "png")]), st.sampled_from([None, 1, 3]))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_plan_is_the_difference_whatever_happened(
    tmp_path_factory: pytest.TempPathFactory, steps, masks: tuple[str, ...], limit: int | None
) -> None:
    place = World(tmp_path_factory.mktemp("plan"))
    place.put("always")
    for step, name, fingerprint, formats, version in steps:
        there = name in place.tags()
        if step == "put":
            place.put(name, version)
        elif step == "done" and there:
            place.done(name, fingerprint, formats)
        elif step == "drop":
            place.images.delete(f"{name}.tar")
        elif step == "forget":
            place.output.delete(commit_path(name))
        elif step == "table":
            write_table(place.output, read_commit_index(place.output), world.TINY)
        elif step == "damage" and "stats" in {i.path[:5] for i in place.output.listing()}:
            place.output.write("stats/shards.parquet", b"PAR1" * version)
    tags, documents = place.tags(), oracles.commits(Path(place.output.url))
    plan = place.plan(masks=masks, limit_shards=limit)
    expected = oracles.pending(tags, documents, "f", masks)
    assert ids(plan) == expected[:limit]
    assert (plan.total, plan.done) == (len(tags), len(tags) - len(expected))
    assert plan.left == len(expected) - len(ids(plan))
    assert [shard.etag for shard in plan.pending] == [tags[name] for name in ids(plan)]
    assert plan.outdated_ids() == [name for name in ids(plan) if name in documents]
    assert plan.outdated == len(plan.outdated_ids())
    assert plan.outdated_masks == {
        mask for name in plan.outdated_ids() for mask in documents[name]["masks"]
    }
    gone = sorted(documents.keys() - tags.keys())
    assert plan.vanished == len(gone) and set(plan.vanished_names) <= set(gone)
    assert len(plan.vanished_names) == min(5, len(gone))
    same = [n for n in tags if n in documents and documents[n]["input"]["etag"] == tags[n]]
    assert plan.counted_images == 4 * len(same)
    assert sorted(shard.id for shard in plan.uncounted) == sorted(tags.keys() - set(same))
    sizes = {info.path[:-4]: info.size for info in place.images.listing()}
    assert plan.bytes == sum(sizes.values())
    assert plan.pending_bytes == sum(sizes[name] for name in ids(plan))


# --- Parts of an input -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), (), ["a", "a-b", "b/c", "b/d", "z"]),
        (("b/*",), (), ["b/c", "b/d"]),
        (("b/*",), ("*d",), ["b/c"]),
        (("a*", "z.tar"), (), ["a", "a-b", "z"]),
        ((), ("*.tar",), None),
        (("B/*",), (), None),
        (("?",), (), ["a", "z"]),
        (("[ab]*",), ("a",), ["a-b", "b/c", "b/d"]),
        (("*c*",), (), ["b/c"]),
    ],
)
def test_globs_choose_by_path_or_id(
    place: World, include: tuple[str, ...], exclude: tuple[str, ...], expected: list[str] | None
) -> None:
    selection = Selection(include, exclude)
    if expected is None:
        with pytest.raises(InputError, match="no match among 5 shards"):
            place.plan(selection=selection)
        return
    plan = place.plan(selection=selection)
    assert ids(plan) == expected and plan.left == 5 - len(expected)


def test_what_is_left_out_has_neither_vanished_nor_been_done(place: World) -> None:
    for name in ("a", "z"):
        place.done(name)
    plan = place.plan(selection=Selection(("b/*",)), limit_shards=1)
    assert (plan.total, plan.done, ids(plan), plan.left) == (5, 2, ["b/c"], 2)
    assert (plan.vanished, plan.counted_images) == (0, 8)


def test_since_is_about_when_a_shard_was_changed(place: World) -> None:
    root = Path(place.images.url)
    for days, name in enumerate(("a", "a-b", "b/c", "b/d", "z")):
        moment = time.time() - days * 86400
        os.utime(root / f"{name}.tar", (moment, moment))
    now = time.time()
    for text, expected in (("36h", ["a", "a-b"]), ("1w", ids(place.plan())), ("10m", ["a"])):
        plan = place.plan(selection=Selection(since=parse_since(text, now)))
        assert ids(plan) == expected
    recent = Selection(since=now + 1)
    assert ids(place.plan(selection=recent)) == []  # nothing new is no error
    both = Selection(("b/*",), since=parse_since("60h", now))
    assert ids(place.plan(selection=both)) == ["b/c"]


def test_a_store_without_times_refuses_since(place: World, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = Store.listing

    def timeless(self: Store, prefix: str = "") -> Iterator[object]:
        from dataclasses import replace

        for info in listing(self, prefix):
            yield replace(info, modified=None)

    monkeypatch.setattr(Store, "listing", timeless)
    assert len(ids(place.plan())) == 5
    with pytest.raises(ConfigError, match=r"--since.*modification times"):
        place.plan(selection=Selection(since=0.0))


@pytest.mark.parametrize(
    "text", ["", "yesterday", "7", "7y", "2026-13-01", "-3h", "1970-01-01T00:01"]
)
def test_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--since"):
        parse_since(text, 0.0)  # of which the last is still to come


def test_times_are_utc_unless_they_say_otherwise() -> None:
    assert parse_since("1970-01-01T01:00", 10.0**4) == 3600
    assert parse_since("1970-01-01T01:00+01:00", 5.0) == 0
    assert [parse_since(f"1{unit}", 10.0**7) for unit in "smhdw"] == [
        10.0**7 - seconds for seconds in (1, 60, 3600, 86400, 604800)
    ]


def folder(root: Path, *keys: str) -> World:
    made = World(root)
    for key in keys:
        made.images.write(f"{key}.jpg", b"x")
    return made


def test_in_a_folder_globs_are_about_images_before_they_are_packed(tmp_path: Path) -> None:
    from pipeline.inputs.folder import write_index

    place = folder(tmp_path, *"abcdef")
    only = Selection(("a.jpg", "b", "c"))
    plan = place.plan(selection=only, shard_size=2)
    assert [[m.key for m in shard.members] for shard in plan.pending] == [["a", "b"], ["c"]]
    assert (plan.unpacked, plan.vanished) == (3, 0)
    assert plan.packing is not None
    write_index(plan.packing, place.output)
    place.images.delete("b.jpg")
    place.images.write("c.jpg", b"changed")
    rest = place.plan(selection=Selection(exclude=("c*", "a*")), shard_size=2)
    # c keeps its place and its old tag, its shard is not looked at; b has vanished, c has not.
    assert [[m.key for m in shard.members] for shard in rest.pending] == [["d", "e"], ["f"]]
    assert (rest.total, rest.left, rest.unpacked, rest.vanished_names) == (4, 2, 0, ("b.jpg",))
    whole = place.plan(shard_size=2)
    assert [[m.key for m in s.members] for s in whole.pending] == [["a", "b"], ["c"], ["d", "e"],
                                                                  ["f"]]  # fmt: skip
    frozen = {shard.id: shard.etag for shard in plan.pending}
    now = {shard.id: shard.etag for shard in whole.pending}
    assert [now[shard] == frozen[shard] for shard in frozen] == [True, False]
    with pytest.raises(InputError, match="among 5 images"):
        place.plan(selection=Selection(("*.png",)))


def test_in_a_folder_since_is_about_images_and_their_labels(tmp_path: Path) -> None:
    place = World(tmp_path)
    for path in ("images/a.jpg", "images/b.jpg", "labels/a.png", "labels/b.png"):
        place.images.write(path, b"x")
        os.utime(Path(place.images.url, path), (1000, 1000))
    recent = Selection(since=5000.0)
    assert (ids(place.plan(selection=recent)), place.plan(selection=recent).unpacked) == ([], 2)
    os.utime(Path(place.images.url, "labels/b.png"), (9000, 9000))
    plan = place.plan(selection=recent)
    assert [m.key for shard in plan.pending for m in shard.members] == ["b"]


def test_a_restricted_run_is_no_success_and_the_next_one_does_the_rest(
    shards: Path, weights: Path, tmp_path: Path, fcnseg
) -> None:
    flags = ("--weights", weights, "--set", "compute.threads_per_worker=1")
    base = (shards, tmp_path / "out", *flags)
    for path in shards.iterdir():
        os.utime(path, (time.time() - 2 * 86400,) * 2)
    code, _, stderr = fcnseg("run", *base, "--include", "s9*")
    assert code == 1 and "no match among" in stderr
    assert not (tmp_path / "out").exists()
    code, stdout, _ = fcnseg("run", *base, "--include", "s[01]*", "--exclude", "s0.tar")
    assert code == 0 and "1 of 3 in all" in stdout
    assert (tmp_path / "out/_PARTIAL").exists()
    code, stdout, _ = fcnseg("run", *base, "--since", "1d")
    assert code == 0 and "1 of 3 shards are done" in stdout
    code, stdout, _ = fcnseg("plan", *base, "--exclude", "s2*", "--json")
    found = json.loads(stdout)
    assert (found["pending"], found["left"], found["images_are_exact"]) == (["s0"], 1, True)
    code, stdout, _ = fcnseg("run", *base)
    assert code == 0 and "3 of 3 in all" in stdout and (tmp_path / "out/_SUCCESS").exists()
    code, stdout, _ = fcnseg("run", *base, "--include", "s0")
    assert "nothing pending: all 3 shards are done" in stdout
    assert (tmp_path / "out/_SUCCESS").exists()  # nothing is left undone


def test_vanished_shards_are_named_and_kept(
    shards: Path, weights: Path, tmp_path: Path, fcnseg
) -> None:
    config = world.config(shards, tmp_path / "out", weights)
    run.run(config)
    before = world.tree(tmp_path / "out")
    (shards / "s1.tar").unlink()
    result = run.run(config)
    assert (result.vanished, result.vanished_names, result.exit_code) == (1, ("s1",), 0)
    assert (result.shards, result.committed, result.images) == (2, 2, 12)
    assert world.tree(tmp_path / "out") == before
    _, _, stderr = fcnseg("plan", shards, tmp_path / "out")
    assert "1 shard or image vanished from the input (s1)" in stderr


# --- Many shards -------------------------------------------------------------------------------


def test_the_input_is_listed_once_and_the_commits_are_listed_once(
    shards: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world.config(shards, tmp_path / "out", weights)
    run.run(config)
    seen: list[str] = []
    listing = Store.listing

    def counting(self: Store, prefix: str = "") -> Iterator[object]:
        seen.append(f"{Path(self.url).name}/{prefix}")
        return listing(self, prefix)

    monkeypatch.setattr(Store, "listing", counting)
    run.run(config)
    # The last has one object for each run that there ever was.
    assert sorted(seen) == ["in/", "out/_commits", "out/_runs"]


def test_waves_change_nothing(
    shards: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.run(world.config(shards, tmp_path / "one", weights))
    monkeypatch.setattr(run, "WAVE", 1)
    told: list[Progress] = []
    run.run(world.config(shards, tmp_path / "waves", weights), told.append)
    assert world.tree(tmp_path / "one") == world.tree(tmp_path / "waves")
    assert {progress.shards_pending for progress in told} == {3}
    assert [progress.shards_done for progress in told] == [0, 1, 2, 3]


def test_images_of_many_shards_are_estimated_unless_they_are_asked_for(
    tmp_path: Path, fcnseg
) -> None:
    for shard in range(12):
        members = {f"{n}.jpg": b"x" * 700 for n in range(1 + shard % 3)}
        Store(str(tmp_path / "in")).write(f"s{shard:02d}.tar", world.tar(members))
    plan = World(tmp_path).plan()
    assert plan.count_images(None).images == 24 and plan.count_images(None).is_exact
    about = plan.count_images(6)
    assert not about.is_exact and about.images == pytest.approx(24, abs=12)
    assert plan.count_images(12).is_exact
    stdout = fcnseg("plan", tmp_path / "in", tmp_path / "out", "--exact")[1]
    assert "12 shards, 24 images" in stdout


def test_a_list_of_shards_is_a_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_list, "ROWS_PER_BATCH", 3)
    names = [f"{n % 3}/s-{n}" for n in range(10)]
    place = World(tmp_path)
    for number, name in enumerate(names):
        place.put(name, number + 1)
    shards = list_input(place.images, None).shards
    assert isinstance(shards, ShardList)
    plain = list(shards)
    assert [shard.id for shard in plain] == sorted(names)
    assert [shards[n] for n in range(-10, 10)] == plain + plain
    assert list(shards[2:7:2]) == plain[2:7:2] and len(shards[2:7:2]) == 3
    mask = np.array([shard.size % 2 == 0 for shard in plain])
    chosen = shards.where(mask)
    assert list(chosen) == [shard for shard in plain if shard.size % 2 == 0]
    assert list(chosen[:2]) == list(chosen)[:2] and chosen[0] in chosen
    assert plain[0] == Shard("0/s-0", "tar", "0/s-0.tar", 1, plain[0].etag)
    assert len(chosen.modified) == 5 and not np.isnan(chosen.modified).any()
    with pytest.raises(IndexError):
        shards[10]


# --- Stores that fail --------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, *shards: str) -> None:
    """The store gives these shards of the input to no reader."""

    def read(shard: Shard, *arguments: object) -> Iterator[object]:
        if shard.id in shards:
            raise StoreError(shard.path, "503 for ever", "a working store", "Wait.")
        yield from read_chunks(shard, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("pipeline.executors.local.read_chunks", read)


def test_a_shard_that_the_store_does_not_give_fails_alone(
    shards: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world.config(shards, tmp_path / "out", weights)
    failing(monkeypatch, "s1")
    result = run.run(config)
    assert (result.exit_code, result.committed, result.done_now) == (4, 2, 2)
    (failure,) = result.failed
    assert (failure.shard, failure.error) == ("s1", "StoreError") and "503" in failure.reason
    assert "s1" in json.loads((tmp_path / "out/_PARTIAL").read_text())["failed_shards"]
    monkeypatch.undo()
    assert run.run(config).exit_code == 0


def test_a_store_that_gives_nothing_ends_the_run(
    shards: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world.config(shards, tmp_path / "out", weights)
    monkeypatch.setattr(collect, "MAX_UNREACHABLE", 3)
    failing(monkeypatch, "s0", "s1", "s2")
    with pytest.raises(StoreError, match=r"3 shards in a row could not be read.*503") as caught:
        run.run(config)
    assert caught.value.exit_code == 1
    assert resolve_run(config)[0].output.stat("_run.json").size > 0  # claimed, nothing committed
    assert not (tmp_path / "out/_commits").exists()
    monkeypatch.undo()
    assert run.run(config).committed == 3
