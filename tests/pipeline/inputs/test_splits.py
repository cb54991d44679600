"""Lists of ids: every line counts, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, InputError
from pipeline.inputs.splits import parse_split, paths_by_id, read_split
from pipeline.storage.store import Store

IDS = st.lists(st.from_regex(r"[A-Za-z0-9_]{1,12}", fullmatch=True), min_size=1, unique=True)
FORM = st.sampled_from(
    ["{}", " {} ", "{}.jpg", "dir/{}.png", "dir\\{}.jpg", "/a/b/{}.png /a/bannot/{}.png"]
)


@given(IDS, FORM, st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans())
def test_ids_are_read_in_every_form_of_list(
    ids: list[str], form: str, end: str, marked: bool
) -> None:
    text = end.join(form.replace("{}", name) for name in ids) + end
    data = text.encode("utf-8-sig" if marked else "utf-8")
    assert parse_split("val", "val.txt", data).ids == tuple(ids)


def test_a_dot_that_begins_no_image_suffix_is_part_of_the_id() -> None:
    assert parse_split("v", "v", b"a.v2\nb.v2.jpg\n").ids == ("a.v2", "b.v2")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "no ids"),
        (b"\n \n", "no ids"),
        (b"a\nb\na\na\nb\n", "2 ids more than once, the first is 'a'"),
        (b"2007_000032 -1\n", "line 1 is '2007_000032 -1'"),
        (b"a\n/x/b.png /y/b.png /z/b.png\n", "line 2 is"),
        (b"a\n..\n", r"line 2: the key contains '\.\.'"),
        (b"\xff\xfe\n", "bytes that are not valid UTF-8"),
    ],
)
def test_what_is_no_list_is_refused(data: bytes, found: str) -> None:
    with pytest.raises(InputError, match=rf"^lists/v\.txt: {found}"):
        parse_split("v", "lists/v.txt", data)


def test_a_name_is_looked_up_and_an_address_is_read(tmp_path: Path) -> None:
    source = Store(str(tmp_path / "d"))
    source.write("lists/val.txt", b"a\nb\n")
    source.write("lists/deeper/x.txt", b"a\n")
    (tmp_path / "mine.txt").write_bytes(b"c\n")
    Store("memory://splits").write("far.txt", b"d\n")
    assert read_split(source, "lists", "val", "").ids == ("a", "b")
    assert read_split(source, "lists", str(tmp_path / "mine.txt"), "").ids == ("c",)
    assert read_split(source, "lists", "memory://splits/far.txt", "").ids == ("d",)
    with pytest.raises(ConfigError, match=r"no list of ids 'train'; one of val\. .* Ask\."):
        read_split(source, "lists", "train", "Ask.")
    with pytest.raises(ConfigError, match="no --split; one of val"):
        read_split(source, "lists", None, "")
    with pytest.raises(ConfigError, match="no --split; a list of ids; there are none"):
        read_split(source, "elsewhere", None, "")
    with pytest.raises(ConfigError, match=r"gone\.txt: no such file"):
        read_split(source, "lists", str(tmp_path / "gone.txt"), "")


@given(IDS)
def test_a_description_tells_splits_apart_and_not_their_order(ids: list[str]) -> None:
    def described(*names: str) -> str:
        return parse_split("x/val.txt", "w", "\n".join(names).encode()).description

    assert described(*ids) == described(*reversed(ids))
    assert described(*ids).startswith(f"split val.txt ({len(ids)} ids, ")
    assert described(*ids) != described(*ids[:-1], ids[-1] + "x")


def test_files_below_a_folder_are_not_in_it() -> None:
    paths = ["a/1.JPG", "a/b/2.jpg", "ab/3.jpg", "a/4.png", "a/.jpg"]
    assert paths_by_id(paths, "a/", (".jpg",)) == {"1": "a/1.JPG"}
