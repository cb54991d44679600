"""Laws of the input: what is taken for what, and what is refused."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.inputs.listing import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    Listing,
    check_key,
    is_visible,
    list_input,
    split_suffix,
)
from pipeline.storage.store import Store


def folder(root: Path, *names: str) -> Store:
    """A store that holds these objects, whose bytes are their names."""
    store = Store(str(root))
    for name in names:
        store.write(name, name.encode())
    return store


def listed(root: Path, *names: str) -> Listing:
    return list_input(folder(root, *names), None)


def refusal(root: Path, *names: str) -> str:
    with pytest.raises(InputError) as caught:
        listed(root, *names)
    assert caught.value.where == str(root) and caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "kind", "ids"),
    [
        (["b.tar", "a.tar", "x/y/c.v2.tar"], "tar", ["a", "b", "x/y/c.v2"]),
        (["a.parquet", "x/train-00000-of-00002.parquet"], "parquet",
         ["a", "x/train-00000-of-00002"]),
        (["a.TAR", "b.Tar"], "tar", ["a", "b"]),
        (["a.PARQUET"], "parquet", ["a"]),
        (["a.tar", "README.md", "a.json", "LICENSE", "a.tar.md5", "b.tar.gz"], "tar", ["a"]),
        (["a.parquet", "dataset_info.json"], "parquet", ["a"]),
        (["été 1.tar", "a+b%20.tar"], "tar", ["a+b%20", "été 1"]),
    ],
)  # fmt: skip
def test_objects_are_shards_named_by_their_path(
    tmp_path: Path, names: list[str], kind: str, ids: list[str]
) -> None:
    listing = listed(tmp_path, *names)
    assert (listing.kind, [shard.id for shard in listing.shards]) == (kind, ids)
    for shard in listing.shards:
        info = Store(str(tmp_path)).stat(shard.path)
        assert (shard.size, shard.etag, shard.kind) == (info.size, info.etag, kind)
        assert shard.path.lower() == f"{shard.id}.{kind}".lower() and shard.members == ()


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
@pytest.mark.parametrize("change", [str.lower, str.upper])
def test_every_image_suffix_makes_a_folder(tmp_path: Path, suffix: str, change) -> None:
    listing = listed(tmp_path, change(f"x/a{suffix}"), "notes.txt")
    assert (listing.kind, listing.shards, listing.labels) == ("folder", (), None)
    assert [info.path for info in listing.images] == [change(f"x/a{suffix}")]


HIDDEN = ("_SUCCESS.tar", ".a.tar", "_old/a.tar", "x/.git/a.tar", "x/_y/z/a.tar", "_/a.tar")


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_names_are_not_looked_at(tmp_path: Path, name: str) -> None:
    assert not is_visible(name)
    assert [shard.id for shard in listed(tmp_path, name, "a_b/c.d.tar").shards] == ["a_b/c.d"]
    assert "'_' or '.'" in refusal(tmp_path / "only", name)


def test_hidden_objects_of_another_kind_do_not_disturb(tmp_path: Path) -> None:
    listing = listed(tmp_path, "a.tar", "_thumbs/a.jpg", ".cache/a.parquet", "x/._a.jpg")
    assert listing.kind == "tar"


def test_nothing_to_label_is_refused(tmp_path: Path) -> None:
    assert "no objects: the folder or prefix is empty or missing" in refusal(tmp_path / "none")
    message = refusal(tmp_path / "other", "a.txt", "b.txt", "c.tar.gz", "README")
    assert "4 objects (2 .txt, " in message and "1 without extension" in message
    assert "tars, Parquet files or images" in message


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.tar", "b.tar", "c.parquet"], "2 tars and 1 Parquet files"),
        (["a.tar", "b.jpg"], "1 tars and 1 loose images"),
        (["a.parquet", "b.JPG", "c.png"], "1 Parquet files and 2 loose images"),
        (["a.tar", "b.parquet", "c.webp"], "1 tars and 1 Parquet files and 1 loose images"),
    ],
)
def test_mixed_kinds_are_refused_with_counts(tmp_path: Path, names: list[str], found: str) -> None:
    message = refusal(tmp_path, *names)
    assert f"{found}; one kind of input per run. Give the prefix" in message


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_of_one_id_are_refused(tmp_path: Path, kind: str) -> None:
    names = (f"x/a.{kind}", f"x/a.{kind.upper()}", f"b.{kind}")
    assert "two shards with the id 'x/a'" in refusal(tmp_path, *names)


@pytest.mark.parametrize(
    "names", [["a.tar", "A.tar"], ["a.tar", "x/a.tar"], ["a.tar", "a.tar.tar"]]
)
def test_ids_that_differ_are_no_collision(tmp_path: Path, names: list[str]) -> None:
    assert len(listed(tmp_path, *names).shards) == 2


def test_images_beside_labels_are_segmented_as_they_stand(tmp_path: Path) -> None:
    names = ("images/a.jpg", "images/x/b.PNG", "labels/a.png", "labels/x/b.PNG", "labels/c.png")
    listing = listed(tmp_path, *names, "labels/notes.txt", "classes.json")
    assert [info.path for info in listing.images] == ["images/a.jpg", "images/x/b.PNG"]
    assert listing.image_root == "images/"
    assert {key: info.path for key, info in (listing.labels or {}).items()} == {
        "a": "labels/a.png", "x/b": "labels/x/b.PNG", "c": "labels/c.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        ["images/a.jpg", "labels/a.png", "more/b.jpg"],
        ["images/a.jpg", "b.jpg"],
        ["x/images/a.jpg", "x/labels/a.png"],
        ["labels/a.png", "labels/b.png"],
    ],
)
def test_only_images_beside_labels_alone_are_that(tmp_path: Path, names: list[str]) -> None:
    listing = listed(tmp_path, *names)
    assert (len(listing.images), listing.labels, listing.image_root) == (len(names), None, "")


def test_images_without_labels_beside_them_have_none(tmp_path: Path) -> None:
    listing = listed(tmp_path, "images/a.jpg")
    assert (listing.image_root, listing.labels) == ("images/", {})


def test_labels_come_from_the_folder_that_is_named(tmp_path: Path) -> None:
    images = folder(tmp_path / "i", "a.jpg", "x/b.png", "images/c.jpg")
    labels = folder(tmp_path / "l", "a.png", "x/b.PNG", "_old/a.png", "a.json", "images/c.png")
    listing = list_input(images, labels)
    assert (len(listing.images), listing.image_root) == (3, "")
    assert set(listing.labels or {}) == {"a", "x/b", "images/c"}


@pytest.mark.parametrize("names", [[], ["a.jpg"], ["_a.png"]])
def test_a_label_folder_without_labels_is_refused(tmp_path: Path, names: list[str]) -> None:
    labels = folder(tmp_path / "l", *names)
    with pytest.raises(InputError, match=r"/l: no PNG files; .* Check --labels"):
        list_input(folder(tmp_path / "i", "a.jpg"), labels)


@pytest.mark.parametrize("name", ["a.tar", "a.parquet"])
def test_a_label_folder_goes_with_a_folder_of_images_only(tmp_path: Path, name: str) -> None:
    labels = folder(tmp_path / "l", "a.png")
    with pytest.raises(InputError, match="--labels for an input of"):
        list_input(folder(tmp_path / "i", name), labels)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    with open(bytes(tmp_path) + b"/caf\xe9.tar", "wb"):
        pass
    message = refusal(tmp_path)
    assert r"caf\xe9.tar" in message and "UTF-8" in message
    message.encode()


SPLITS = {
    "a.jpg": ("a", ".jpg"),
    "a.JPEG": ("a", ".jpeg"),
    "a.b.png": ("a.b", ".png"),
    "x.y/a.webp": ("x.y/a", ".webp"),
    "a.seg.png": ("a", ".seg.png"),
    "a.Mask.PNG": ("a", ".mask.png"),
    "a.v2.seg.png": ("a.v2", ".seg.png"),
    "x/a.seg.jpg": ("x/a.seg", ".jpg"),
    "2007_000033.jpg": ("2007_000033", ".jpg"),
    "a.jpg.png": ("a.jpg", ".png"),
    ".seg.png": (".seg", ".png"),
    ".jpg": None,
    "x/.jpg": None,
    "jpg": None,
    "a.json": None,
    "a.txt": None,
    "a.jpg.json": None,
    "a": None,
    "": None,
    "a.jpg/": None,
}


@pytest.mark.parametrize("name", SPLITS)
def test_names_are_split_by_the_table(name: str) -> None:
    assert split_suffix(name) == SPLITS[name]


SEGMENT = st.text(string.ascii_letters + "0123456789._- é+%#[☃", min_size=1)
KEYS = st.lists(SEGMENT, min_size=1, max_size=3).map("/".join)


@given(KEYS, st.sampled_from((*IMAGE_SUFFIXES, *LABEL_SUFFIXES)), st.booleans())
def test_splitting_undoes_joining(key: str, suffix: str, upper: bool) -> None:
    split = split_suffix(key + (suffix.upper() if upper else suffix))
    if suffix == ".png" and key.lower().endswith((".seg", ".mask")) and split != (key, ".png"):
        assert split is not None and split[1] in LABEL_SUFFIXES and key.startswith(split[0])
    else:
        assert split == (key, suffix)


@given(st.text())
def test_a_split_loses_nothing(name: str) -> None:
    split = split_suffix(name)
    if split is not None:
        assert name.startswith(split[0]) and name[len(split[0]) :].lower() == split[1]


PROBLEMS = {
    "/a": "absolute",
    "/": "absolute",
    "..": "'..'",
    "../a": "'..'",
    "a/../b": "'..'",
    "a/..": "'..'",
    "": "empty part",
    "a//b": "empty part",
    "a/": "empty part",
    "./a": "empty part",
    "a/./b": "empty part",
    "a\nb": "control character",
    "a\0b": "control character",
    "a\\b": "backslash",
    "caf\udce9": "UTF-8",
    "x/" + "é" * 130: "longer than 240 bytes",
}


@pytest.mark.parametrize("key", PROBLEMS)
def test_keys_that_could_not_be_names_are_refused(key: str) -> None:
    assert PROBLEMS[key] in (check_key(key) or "")


ALLOWED = (
    "a",
    "a/b/c",
    "..a",
    "a..",
    "...",
    "a b",
    ".a",
    "_a",
    "été/☃",
    "a+b%20#?[x]:'\"<",
    "n" * 240,
)


@pytest.mark.parametrize("key", ALLOWED)
def test_all_other_keys_are_allowed(key: str) -> None:
    assert check_key(key) is None


@given(st.text() | KEYS)
def test_an_allowed_key_stays_below_its_folder(key: str) -> None:
    if check_key(key) is None:
        below = Path("/out", key)
        assert below.is_relative_to("/out") and ".." not in below.parts
        assert below.as_posix() == f"/out/{key}"
        key.encode()
