"""Laws of virtual shards: what is frozen stays, what is new comes behind, nothing shifts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.driver import plan, run
from pipeline.errors import OutputError
from pipeline.inputs.folder import ShardAssignment, assign_shards, write_index
from pipeline.inputs.listing import list_input
from pipeline.inputs.shard import Shard
from pipeline.paths import VIRTUAL_SHARDS
from pipeline.storage.store import Store
from tests.support import world

SIZE = 3


class Folder:
    """A folder of images with an output: change it, pack it, write its index."""

    def __init__(self, root: Path, *keys: str) -> None:
        self.images = Store(str(root / "in"))
        self.labels = Store(str(root / "labels"))
        self.output = Store(str(root / "out"))
        self.versions = 0
        self.put(*keys)

    def put(self, *keys: str) -> None:
        """Write images anew: their sizes, and so their tags, differ from all earlier ones."""
        for key in keys:
            self.versions += 1
            self.images.write(f"{key}.jpg", b"x" * self.versions)

    def drop(self, *keys: str) -> None:
        for key in keys:
            self.images.delete(f"{key}.jpg")

    def pack(self, size: int = SIZE) -> ShardAssignment:
        labels = self.labels if self.labels.objects() else None
        return assign_shards(list_input(self.images, labels), self.output, size)

    def write_index(self, size: int = SIZE) -> dict[str, Shard]:
        packing = self.pack(size)
        write_index(packing, self.output)
        return {shard.id: shard for shard in packing.shards}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path, *"abcdefgh")


def keys(shards: dict[str, Shard]) -> list[str]:
    return ["".join(m.key for m in shards[shard].members) for shard in sorted(shards)]


def tags(shards: dict[str, Shard]) -> list[str]:
    return [shards[shard].etag for shard in sorted(shards)]


def test_images_are_packed_by_sorted_key(folder: Folder) -> None:
    shards = folder.write_index()
    assert list(shards) == ["images-000000", "images-000001", "images-000002"]
    assert keys(shards) == ["abc", "def", "gh"]
    assert [shards[s].size for s in shards] == [1 + 2 + 3, 4 + 5 + 6, 7 + 8]
    assert {(s.kind, s.path) for s in shards.values()} == {("folder", "")}


def test_packing_writes_nothing(folder: Folder) -> None:
    assert folder.pack() == folder.pack()
    assert folder.output.objects() == []


def test_freezing_twice_is_freezing_once(folder: Folder) -> None:
    first = folder.write_index()
    written = folder.output.objects()
    assert [info.path for info in written] == [f"{VIRTUAL_SHARDS}/000000.parquet"]
    again = folder.pack()
    assert (again.changes, again.vanished) == ((), ())
    assert folder.write_index() == first
    assert folder.output.objects() == written


def test_freezing_the_same_packing_again_changes_nothing(folder: Folder) -> None:
    packing = folder.pack()
    for _ in range(2):
        write_index(packing, folder.output)
        assert folder.pack().shards == packing.shards
    assert len(folder.output.objects()) == 1


def test_new_images_make_new_shards(folder: Folder) -> None:
    before = folder.write_index()
    folder.put("0", "bb", "z", "zz")
    after = folder.write_index()
    assert keys(after) == ["abc", "def", "gh", "0bbz", "zz"]
    assert tags(after)[:3] == tags(before)


def test_a_changed_image_changes_its_shard_and_no_other(folder: Folder) -> None:
    before = folder.write_index()
    folder.put("e")
    after = folder.write_index()
    assert keys(after) == keys(before)
    assert [a == b for a, b in zip(tags(after), tags(before), strict=True)] == [True, False, True]
    assert after["images-000001"].size == before["images-000001"].size - 5 + 9
    assert folder.write_index() == after


def test_a_vanished_image_keeps_its_place_and_its_shard_stays_done(folder: Folder) -> None:
    before = folder.write_index()
    folder.drop("a", "e")
    assert folder.pack().vanished == ("a.jpg", "e.jpg")
    assert folder.write_index() == before
    folder.put("i")  # does not move into a free place
    assert keys(folder.write_index()) == ["abc", "def", "gh", "i"]


def test_a_vanished_image_that_comes_back_goes_to_its_old_place(folder: Folder) -> None:
    before = folder.write_index()
    folder.drop("e")
    folder.write_index()
    folder.put("e")
    after = folder.write_index()
    assert keys(after) == keys(before) and folder.pack().vanished == ()
    assert tags(after)[1] != tags(before)[1]


def test_another_shard_size_holds_for_new_images_only(folder: Folder) -> None:
    before = folder.write_index()
    folder.put(*"ijkl")
    after = folder.write_index(size=2)
    assert keys(after) == ["abc", "def", "gh", "ij", "kl"]
    assert tags(after)[:3] == tags(before)


def test_a_label_added_changed_or_removed_changes_its_shard(folder: Folder) -> None:
    folder.labels.write("a.png", b"0")
    seen = [tags(folder.write_index())]
    changes = (
        lambda: folder.labels.write("e.png", b"1"),
        lambda: folder.labels.write("e.png", b"22"),
        lambda: folder.labels.delete("e.png"),
    )
    for change in changes:
        change()
        seen.append(tags(folder.write_index()))
        assert [a == b for a, b in zip(seen[-1], seen[-2], strict=True)] == [True, False, True]
    assert seen[-1] == seen[0]


def test_labels_are_found_by_key(folder: Folder) -> None:
    folder.labels.write("b.PNG", b"12345")
    folder.labels.write("unknown.png", b"1")
    first = folder.write_index()["images-000000"]
    assert [m.label for m in first.members] == [None, "b.PNG", None]
    assert first.size == 1 + 2 + 5 + 3


def test_keys_of_images_beside_labels_are_without_the_folder(tmp_path: Path) -> None:
    source = Store(str(tmp_path / "in"))
    for name in ("images/x/a.jpg", "images/b.png", "labels/x/a.png"):
        source.write(name, b"1")
    (shard,) = assign_shards(list_input(source, None), Store(str(tmp_path / "out")), SIZE).shards
    assert [(m.key, m.image, m.label) for m in shard.members] == [
        ("b", "images/b.png", None), ("x/a", "images/x/a.jpg", "labels/x/a.png"),
    ]  # fmt: skip


def test_images_of_one_key_are_both_in_the_index(tmp_path: Path) -> None:
    source = Store(str(tmp_path / "in"))
    for name in ("a.png", "a.jpg"):
        source.write(name, b"1")
    (shard,) = assign_shards(list_input(source, None), Store(str(tmp_path / "out")), SIZE).shards
    assert [m.image for m in shard.members] == ["a.jpg", "a.png"]


@pytest.mark.parametrize("data", [b"", b"<html>", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_damaged_index_is_refused(folder: Folder, data: bytes) -> None:
    folder.write_index()
    folder.output.write(f"{VIRTUAL_SHARDS}/000000.parquet", data)
    with pytest.raises(OutputError, match=r"_index/000000.parquet: unreadable .* a new OUTPUT"):
        folder.pack()


STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "drop"]), st.sets(st.sampled_from("abcdefgh"), max_size=4)),
    max_size=6,
)


@given(STEPS, st.integers(1, 4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_image_ever_moves(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, set[str]]], size: int
) -> None:
    folder = Folder(tmp_path_factory.mktemp("steps"), "first")
    home: dict[str, str] = {}
    last: dict[str, Shard] = {}
    for verb, changed in steps:
        getattr(folder, verb)(*sorted(changed))
        shards = folder.write_index(size)
        found = {m.image: shard.id for shard in shards.values() for m in shard.members}
        assert home.items() <= found.items()
        assert all(len(shard.members) <= size for shard in shards.values())
        touched = {f"{key}.jpg" for key in changed}
        for shard_id, shard in last.items():
            if not touched & {m.image for m in shard.members}:
                assert shards[shard_id] == shard
        home, last = found, shards


def image_folder(root: Path, count: int = 6, labeled: tuple[int, ...] = ()) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for n in range(count):
        (root / f"images/{n}.jpg").write_bytes(world.jpeg(world.image(n)))
    for n in labeled:
        (root / f"labels/{n}.png").write_bytes(world.png(world.label(n)))
    return root


def test_only_what_is_new_or_changed_is_done_again(weights: Path, tmp_path: Path) -> None:
    source = image_folder(tmp_path / "in")
    config = world.config(source, tmp_path / "out", weights, input__shard_size=2)
    assert run(config).done_now == 3
    before = world.tree(tmp_path / "out")
    (source / "images/00.jpg").write_bytes(world.jpeg(world.image(50)))
    (source / "images/5.jpg").unlink()
    assert [shard.id for shard in plan(config).pending] == ["images-000003"]
    assert run(config).done_now == 1
    after = world.tree(tmp_path / "out")
    assert all(after[name] == before[name] for name in before if not name.startswith("stats/"))


def test_a_label_added_later_makes_its_shard_pending(weights: Path, tmp_path: Path) -> None:
    source = image_folder(tmp_path / "in", labeled=(0,))
    config = world.config(source, tmp_path / "out", weights, input__shard_size=2)
    assert run(config).scores["labeled_images"] == 1
    (source / "labels/3.png").write_bytes(world.png(world.label(3)))
    assert [shard.id for shard in plan(config).pending] == ["images-000001"]
    result = run(config)
    assert (result.done_now, result.scores["labeled_images"]) == (1, 2)


def test_a_crash_between_freezing_and_working_is_harmless(weights: Path, tmp_path: Path) -> None:
    source = image_folder(tmp_path / "in")
    calm = world.config(source, tmp_path / "calm", weights, input__shard_size=2)
    config = world.config(source, tmp_path / "out", weights, input__shard_size=2)
    run(calm)
    todo = plan(config)
    assert todo.packing is not None
    write_index(todo.packing, Store(str(tmp_path / "out")))
    assert [shard.id for shard in plan(config).pending] == [shard.id for shard in todo.pending]
    run(config)
    assert world.tree(tmp_path / "out") == world.tree(tmp_path / "calm")
