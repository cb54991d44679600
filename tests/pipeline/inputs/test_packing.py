"""Laws of packing: nothing is lost, nothing is guessed, and equal folders are equal tars."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.driver import run
from pipeline.errors import InputError, OutputError
from pipeline.inputs.listing import list_input
from pipeline.inputs.packing import Packed, pack_folder
from pipeline.inputs.shard import ChunkLimits, Sources
from pipeline.stages.read import read_chunks
from pipeline.storage.store import Store
from tests.support import world

SIZE = 2


def store(root: Path, files: dict[str, bytes]) -> Store:
    made = Store(str(root))
    for name, data in files.items():
        made.write(name, data)
    return made


def tars(output: Store) -> dict[str, list[tuple[str, bytes]]]:
    """Members of every tar, in order."""
    found: dict[str, list[tuple[str, bytes]]] = {}
    for info in output.objects():
        with tarfile.open(fileobj=io.BytesIO(output.read(info.path))) as tar:
            found[info.path] = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    return found


def samples(output: Store) -> dict[str, tuple[bytes, bytes | None]]:
    """What a run would read of it; nothing may fail."""
    found = {}
    for shard in list_input(output, None).shards:
        for chunk in read_chunks(shard, Sources(output, output), ChunkLimits(512, 2**26)):
            assert not chunk.failures
            found |= {sample.key: (sample.image, sample.label) for sample in chunk.samples}
    return found


@pytest.fixture
def images(tmp_path: Path) -> Store:
    return store(tmp_path / "in", {"b.JPG": b"B", "x/a.jpeg": b"XA", "a.webp": b"A", "notes": b""})


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


def test_samples_are_packed_by_sorted_key(images: Store, output: Store) -> None:
    assert pack_folder(images, None, output, SIZE) == Packed(2, 3, 0, ())
    assert tars(output) == {
        "shard-000000.tar": [("a.webp", b"A"), ("b.jpg", b"B")],
        "shard-000001.tar": [("x/a.jpeg", b"XA")],
    }


def test_labels_follow_their_images(images: Store, output: Store, tmp_path: Path) -> None:
    labels = store(tmp_path / "l", {"x/a.png": b"la", "b.PNG": b"lb", "unknown.png": b""})
    assert pack_folder(images, labels, output, 10).labeled_images == 2
    assert tars(output) == {
        "shard-000000.tar": [("a.webp", b"A"), ("b.jpg", b"B"), ("b.png", b"lb"),
                             ("x/a.jpeg", b"XA"), ("x/a.png", b"la")]
    }  # fmt: skip


def test_a_png_image_gets_its_label_under_another_name(output: Store, tmp_path: Path) -> None:
    both = store(
        tmp_path / "in", {"images/a.png": b"A", "labels/a.png": b"L", "images/b.PNG": b"B"}
    )
    pack_folder(both, None, output, 10)
    assert tars(output)["shard-000000.tar"] == [
        ("a.png", b"A"), ("a.seg.png", b"L"), ("b.png", b"B"),
    ]  # fmt: skip
    assert samples(output) == {"a": (b"A", b"L"), "b": (b"B", None)}


def test_equal_folders_give_equal_bytes(tmp_path: Path) -> None:
    trees = []
    for n, names in enumerate((["a.jpg", "b.jpg", "c/d.png"], ["c/d.png", "b.jpg", "a.jpg"])):
        source = store(tmp_path / f"in{n}", {name: name.encode() for name in names})
        os.utime(tmp_path / f"in{n}/a.jpg", (n, n))
        output = Store(str(tmp_path / f"out{n}"))
        pack_folder(source, None, output, SIZE)
        trees.append({info.path: output.read(info.path) for info in output.objects()})
    assert trees[0] == trees[1] and len(trees[0]) == 2


def test_packing_again_changes_nothing(images: Store, output: Store) -> None:
    for _ in range(2):
        pack_folder(images, None, output, SIZE)
    assert len(output.objects()) == 2


def test_what_is_left_out_is_said(output: Store, tmp_path: Path) -> None:
    names = (
        "a.jpg",
        "a.png",
        "a.JPG",
        "b.jpg",
        "back\\slash.jpg",
        "new\nline.jpg",
        "n" * 245 + ".jpg",
    )
    packed = pack_folder(store(tmp_path / "in", dict.fromkeys(names, b"1")), None, output, 10)
    assert packed.images == 2
    said = dict(packed.left_out)
    assert set(said) == {*names} - {"a.JPG", "b.jpg"}
    assert said["a.png"] == said["a.jpg"] == "a.JPG has the same key 'a'"
    assert "backslash" in said["back\\slash.jpg"] and "longer" in said["n" * 245 + ".jpg"]
    assert list(samples(output)) == ["a", "b"]


def test_another_output_is_refused_and_stays(images: Store, output: Store) -> None:
    output.write("mine.txt", b"1")
    with pytest.raises(
        OutputError, match=r"mine.txt and 0 other objects; an empty folder"
    ) as caught:
        pack_folder(images, None, output, SIZE)
    assert caught.value.exit_code == 2
    assert [info.path for info in output.objects()] == ["mine.txt"]


def test_leftovers_of_smaller_shards_are_refused(images: Store, output: Store) -> None:
    pack_folder(images, None, output, 1)
    with pytest.raises(OutputError, match=r"shard-000002.tar and 0 other objects"):
        pack_folder(images, None, output, SIZE)


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_shards_are_not_packed_again(output: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="shards; a folder of loose images"):
        pack_folder(store(tmp_path / "in", {name: b""}), None, output, SIZE)


def test_a_run_gives_the_same_masks_before_and_after(weights: Path, tmp_path: Path) -> None:
    files = {f"images/x/{n}.jpg": world.jpeg(world.image(n, world.SIZES[n % 4])) for n in range(3)}
    files["images/é 1.png"] = world.png(world.image(9))
    files |= {f"labels/x/{n}.png": world.png(world.label(n, world.SIZES[n % 4])) for n in range(2)}
    files["labels/é 1.png"] = world.png(world.label(9))
    folder = store(tmp_path / "in", files)
    pack_folder(folder, None, Store(str(tmp_path / "packed")), SIZE)
    masks, scores = [], []
    for name in ("in", "packed"):
        out = tmp_path / f"out-{name}"
        result = run(world.config(tmp_path / name, out, weights, output__masks=("png",)))
        assert (result.exit_code, result.images, result.scores["labeled_images"]) == (0, 4, 3)
        masks.append({p.relative_to(out).as_posix().split("/", 2)[2]: p.read_bytes()
                      for p in out.glob("png/**/*.png")})  # fmt: skip
        scores.append(result.scores["confusion"])
    assert masks[0] == masks[1] and sorted(masks[0]) == ["x/0.png", "x/1.png", "x/2.png", "é 1.png"]
    assert scores[0] == scores[1]


KEY = st.text("ab._ é", min_size=1, max_size=5).filter(lambda key: key[0] not in "._")
NAMED = st.one_of(KEY, KEY.map("{}.seg".format), KEY.map("{}.mask".format), KEY.map("x/{}".format))
SUFFIX = st.sampled_from([".jpg", ".png", ".webp"])


@given(st.dictionaries(NAMED, st.tuples(SUFFIX, st.booleans()), min_size=1), st.integers(1, 4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_packed_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, tuple[str, bool]], size: int
) -> None:
    root = tmp_path_factory.mktemp("pack")
    # A PNG named `a.seg.png` has the key `a`: that is the table of names, not packing.
    files = {
        k: (s, m) for k, (s, m) in files.items() if s != ".png" or not k.endswith((".seg", ".mask"))
    }
    if not files:
        return
    images = store(root / "i", {f"{k}{suffix}": k.encode() for k, (suffix, _) in files.items()})
    labels = store(
        root / "l", {"zz.png": b""} | {f"{k}.png": b"L" for k, (_, m) in files.items() if m}
    )
    output = Store(str(root / "o"))
    packed = pack_folder(images, labels, output, size)
    assert packed.images == len(files) and not packed.left_out
    assert samples(output) == {k: (k.encode(), b"L" if m else None) for k, (_, m) in files.items()}
