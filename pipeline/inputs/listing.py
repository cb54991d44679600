"""Shards: what INPUT holds, cut into the units of commit and of statistics.

Three kinds of input, told apart by what is there: WebDataset tars, Parquet files, or loose images
(packed into virtual shards; `pipeline.inputs.folder` freezes which image is in which).
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.errors import InputError
from pipeline.inputs.shard import Kind as Kind
from pipeline.inputs.shard import Member as Member
from pipeline.inputs.shard import Shard as Shard
from pipeline.inputs.shard import ShardList, ShardListBuilder
from pipeline.storage.backend import ObjectInfo
from pipeline.storage.store import Store

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

LABEL_SUFFIXES = (".seg.png", ".mask.png")


MAX_PART = 240
"""Longest part of a key, bytes: file systems allow 255, and masks add an extension."""


MAX_KEY = 800
"""Longest key, bytes: S3 allows 1024 for a whole object name, and OUTPUT and shard come first."""


@dataclass(frozen=True)
class Listing:
    """What an input turned out to hold.

    Attributes:
        kind: of all its shards.
        where: the input's URL.
        shards: of tar and Parquet inputs, by id.
        images: of a folder of images, by path.
        labels: of a folder of images: label objects by key.
        image_root: "images" for a folder that holds `images/` and `labels/`, else "".
        passed_over: objects that are no part of the input: "3 .tif", most frequent first, then
            those with hidden names: "2 named _…".
        split: which of the images a dataset's split names; "" for all there are.
    """

    kind: Kind
    where: str
    shards: Sequence[Shard] = ()
    images: tuple[ObjectInfo, ...] = ()
    labels: dict[str, ObjectInfo] | None = None
    image_root: str = ""
    passed_over: tuple[str, ...] = ()
    split: str = ""

    @property
    def layout(self) -> str:
        """How the input is laid out, as `Identity` keeps it."""
        return f"{self.kind} {self.image_root} {self.split}".strip()


def list_input(source: Store, labels: Store | None) -> Listing:
    """Look at an input and say what it is.

    Raises:
        InputError: nothing to label, several kinds in one place, or colliding shard ids.
        StoreError: the input cannot be listed.
    """
    found, hidden = _Found(), Counter[str]()
    for info in _visible(source, hidden):
        found.add(info)
    kind = _only_kind(source.url, found.kinds(), found.suffixes)
    taken = IMAGE_SUFFIXES if kind == "folder" else (f".{kind}",)
    passed_over = tuple(
        f"{count} {suffix or 'without extension'}"
        for suffix, count in found.suffixes.most_common()
        if suffix not in taken
    ) + tuple(f"{count} named {first}…" for first, count in hidden.most_common())
    if kind == "folder":
        return replace(_folder(source, labels, found.images), passed_over=passed_over)
    if labels is not None:
        raise InputError(
            where=labels.url,
            found=f"--labels for an input of {_WORDS[kind]}",
            expected="a label folder goes with a folder of images",
            remedy="Put the labels into the shards (fcnseg shard), or leave --labels out.",
        )
    builder = found.tars if kind == "tar" else found.tables
    shards = _checked(source.url, builder.build())
    return Listing(builder.kind, source.url, shards, passed_over=passed_over)


@dataclass
class _Found:
    """What a listing held, by kind. Only one kind will be used; which, only its end tells."""

    suffixes: Counter[str] = field(default_factory=Counter)
    tars: ShardListBuilder = field(default_factory=lambda: ShardListBuilder("tar"))
    tables: ShardListBuilder = field(default_factory=lambda: ShardListBuilder("parquet"))
    images: list[ObjectInfo] = field(default_factory=list)

    def add(self, info: ObjectInfo) -> None:
        suffix = posixpath.splitext(info.path)[1].lower()
        self.suffixes[suffix] += 1
        if suffix == ".tar":
            self.tars.add(info)
        elif suffix == ".parquet":
            self.tables.add(info)
        elif suffix in IMAGE_SUFFIXES:
            self.images.append(info)

    def kinds(self) -> dict[str, int]:
        return {"tar": len(self.tars), "parquet": len(self.tables), "folder": len(self.images)}


def _only_kind(where: str, kinds: Mapping[str, int], suffixes: Counter[str]) -> str:
    total = suffixes.total()
    present = [kind for kind, count in kinds.items() if count]
    if not present:
        seen = ", ".join(f"{n} {s or 'without extension'}" for s, n in suffixes.most_common(4))
        raise InputError(
            where=where,
            found=f"{total} objects ({seen})" if total else "no such prefix, or nothing in it",
            expected="a folder or prefix of tars, Parquet files or images (jpg, jpeg, png, webp)",
            remedy="Check the address; names beginning with '_' or '.' are not looked at. For one file, "
            "name its folder and --include it.",
        )
    if len(present) > 1:
        counts = " and ".join(f"{kinds[kind]} {_WORDS[kind]}" for kind in present)
        raise InputError(
            where=where,
            found=counts,
            expected="one kind of input per run",
            remedy="Name the prefix of one of them.",
        )
    return present[0]


_WORDS = {"tar": "tars", "parquet": "Parquet files", "folder": "loose images"}


def is_visible(path: str) -> bool:
    """Names with a part that begins with `_` or `.` are no data (as in Ray, Spark and Arrow)."""
    return not any(part.startswith(("_", ".")) for part in path.split("/"))


def check_key(key: str) -> str | None:
    """What is wrong with a key that is to become part of an object's path, or None."""
    parts = key.split("/")
    if key.startswith("/"):
        return "the key is an absolute path"
    if ".." in parts:
        return "the key contains '..'"
    if any(part in ("", ".") for part in parts):
        return "the key has an empty part"
    if any(ord(character) < 32 or character == "\\" for character in key):
        return "the key has a control character or a backslash"
    if not is_text(key):
        return "the key is no UTF-8"
    if any(len(part.encode()) > MAX_PART for part in parts):
        return f"a part of the key is longer than {MAX_PART} bytes"
    if len(key.encode()) > MAX_KEY:
        return f"the key is longer than {MAX_KEY} bytes"
    return None


def check_names(source: Store) -> None:
    """Go through all names of an input; where they are files of this machine they may be no text.

    Raises:
        InputError: naming one that no input may have.
        StoreError: the input cannot be listed.
    """
    if source.is_local:  # other stores have names in UTF-8 alone, and perhaps millions
        for _ in _visible(source):
            pass


def is_text(name: str) -> bool:
    """Whether a name has a UTF-8 form, as tables need it; the name of a file may have none."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def split_suffix(name: str) -> tuple[str, str] | None:
    """(key, lower-case suffix) of a file that belongs to a sample, or None.

    >>> split_suffix("a/b.v2.seg.png")
    ('a/b.v2', '.seg.png')
    """
    lower = name.lower()
    for suffix in (*LABEL_SUFFIXES, *IMAGE_SUFFIXES):
        if lower.endswith(suffix) and posixpath.basename(name)[: -len(suffix)]:
            return name[: -len(suffix)], suffix
    return None


def _visible(source: Store, hidden: Counter[str] | None = None) -> Iterator[ObjectInfo]:
    """Objects that may be data; the others are counted by the character that hides them."""
    for info in source.listing():
        if not is_visible(info.path):
            if hidden is not None:
                parts = info.path.split("/")
                hidden[next(part[0] for part in parts if part.startswith(("_", ".")))] += 1
            continue
        if not is_text(info.path):
            name = info.path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise InputError(
                where=source.url,
                found=f"a file named {name}",
                expected="names in UTF-8",
                remedy="Rename it (convmv does).",
            )
        yield info


def _checked(where: str, shards: ShardList) -> ShardList:
    """Refuse two shards of one id, and a shard that is named like a chunk of another one.

    Raises:
        InputError: naming both.
    """
    last, stems = None, dict[str, str]()
    for shard in shards:  # by id: equal ones are neighbours
        if shard.id == last:
            raise InputError(
                where=where,
                found=f"two shards with the id {shard.id!r}",
                expected="names must differ in more than the extension's case",
                remedy="Rename one of them.",
            )
        last = shard.id
        stem = _CHUNK.sub("", shard.id)
        if stem != shard.id:
            stems.setdefault(stem, shard.id)
    for shard in shards if stems else ():
        if shard.id in stems:
            raise InputError(
                where=where,
                found=f"shards {shard.id!r} and {stems[shard.id]!r}",
                expected=f"{shard.id!r} may be split into chunks of the second name",
                remedy="Rename one of them.",
            )
    return shards


_CHUNK = re.compile(r"-\d{5}-of-\d{5}$")


def _folder(source: Store, labels: Store | None, images: Sequence[ObjectInfo]) -> Listing:
    _refuse_devkit(source, images)
    if labels is not None:
        by_key = _labels_by_key(_visible(labels), "")
        if not by_key:
            raise InputError(
                where=labels.url,
                found="no PNG there",
                expected="label PNGs parallel to the images",
                remedy="Check --labels.",
            )
        return Listing("folder", source.url, images=tuple(images), labels=by_key)
    tops = {info.path.split("/")[0] for info in images}
    if "images" in tops and tops <= {"images", "labels"}:
        return Listing(
            "folder",
            source.url,
            images=tuple(i for i in images if i.path.startswith("images/")),
            labels=_labels_by_key(images, "labels/"),
            image_root="images/",
        )
    return Listing("folder", source.url, images=tuple(images))


def _refuse_devkit(source: Store, images: Sequence[ObjectInfo]) -> None:
    """Without its split, the labels of a development kit would be labelled as images."""
    if all(
        any(folder in f"/{info.path}" for info in images)
        for folder in ("/JPEGImages/", "/SegmentationClass/")
    ):
        raise InputError(
            where=source.url,
            found="JPEGImages and SegmentationClass: a PASCAL VOC development kit",
            expected="the split whose images are meant",
            remedy="Add --layout voc --split val (or another one).",
        )


def _labels_by_key(found: Iterable[ObjectInfo], root: str) -> dict[str, ObjectInfo]:
    return {
        info.path[len(root) : -len(".png")]: info
        for info in found
        if info.path.startswith(root) and info.path.lower().endswith(".png")
    }
