"""Listing of an input: its kind and its shards, or the images of a folder.

An input has one of three kinds, which its objects determine: WebDataset tars, Parquet files, or
single images. `pipeline.inputs.folder` groups single images into virtual shards.
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
"""Longest part of a key in bytes: file systems allow 255, and masks add an extension."""


MAX_KEY = 800
"""Longest key in bytes: S3 allows 1024 for an object name, which starts with OUTPUT and shard."""


@dataclass(frozen=True)
class Listing:
    """Contents of an input.

    Attributes:
        kind: kind of all shards.
        where: URL of the input.
        shards: shards of an input of tars or Parquet files, sorted by id.
        images: images of a folder, sorted by path.
        labels: labels of a folder by key; None without labels.
        image_root: "images/" for a folder with `images/` and `labels/`; else "", or the folder of
            the images of a dataset.
        passed_over: numbers of ignored objects: "3 .tif", most frequent first, then objects with
            hidden names: "2 named _…".
        split: description of the split of a dataset; "" for all images.
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
        """Kind, image folder and split as one string, for the manifest of an output."""
        return f"{self.kind} {self.image_root} {self.split}".strip()


def list_input(source: Store, labels: Store | None) -> Listing:
    """List an input and determine its kind.

    Args:
        source: INPUT.
        labels: folder of labels for a folder of images; None if not given.

    Raises:
        InputError: no images, several kinds in one place, or colliding shard ids.
        StoreError: the input cannot be listed.
    """
    objects, hidden = _ObjectsByKind(), Counter[str]()
    for info in _visible(source, hidden):
        objects.add(info)
    kind = _only_kind(source.url, objects.kinds(), objects.suffixes)
    taken = IMAGE_SUFFIXES if kind == "folder" else (f".{kind}",)
    passed_over = tuple(
        f"{count} {suffix or 'without extension'}"
        for suffix, count in objects.suffixes.most_common()
        if suffix not in taken
    ) + tuple(f"{count} named {first}…" for first, count in hidden.most_common())
    if kind == "folder":
        return replace(_folder(source, labels, objects.images), passed_over=passed_over)
    if labels is not None:
        raise InputError(
            where=labels.url,
            found=f"--labels for an input of {_NOUNS[kind]}",
            expected="--labels only for a folder of images",
            remedy="Pack the labels into the shards (fcnseg shard), or omit --labels.",
        )
    builder = objects.tars if kind == "tar" else objects.tables
    shards = _checked(source.url, builder.build())
    return Listing(builder.kind, source.url, shards, passed_over=passed_over)


@dataclass
class _ObjectsByKind:
    """Objects of a listing by kind. Which kind is used is known only at the end of the listing."""

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
            found=f"{total} objects ({seen})"
            if total
            else "no objects: the folder or prefix is empty or missing",
            expected="a folder or prefix of tars, Parquet files or images (jpg, jpeg, png, webp)",
            remedy="Check the address. Names that begin with '_' or '.' are ignored. For one file, "
            "give its folder and --include.",
        )
    if len(present) > 1:
        counts = " and ".join(f"{kinds[kind]} {_NOUNS[kind]}" for kind in present)
        raise InputError(
            where=where,
            found=counts,
            expected="one kind of input per run",
            remedy="Give the prefix of one of them.",
        )
    return present[0]


_NOUNS = {"tar": "tars", "parquet": "Parquet files", "folder": "loose images"}


def is_visible(path: str) -> bool:
    """Return whether no part of a path begins with `_` or `.`; Ray, Spark and Arrow do the same."""
    return not any(part.startswith(("_", ".")) for part in path.split("/"))


def check_key(key: str) -> str | None:
    """Return why a key cannot be part of an object's path, or None if it can."""
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
        return "the key is not valid UTF-8"
    if any(len(part.encode()) > MAX_PART for part in parts):
        return f"a part of the key is longer than {MAX_PART} bytes"
    if len(key.encode()) > MAX_KEY:
        return f"the key is longer than {MAX_KEY} bytes"
    return None


def check_names(source: Store) -> None:
    """Refuse a local input that has a file name which is not valid UTF-8.

    Raises:
        InputError: the first such name.
        StoreError: the input cannot be listed.
    """
    if source.is_local:  # object stores have only UTF-8 names, and perhaps millions of them
        for _ in _visible(source):
            pass


def is_text(name: str) -> bool:
    """Return whether a name is valid UTF-8, as tables require; names of local files may not be."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def split_suffix(name: str) -> tuple[str, str] | None:
    """Return (key, lower-case suffix) of an image or label file, or None for other files.

    >>> split_suffix("a/b.v2.seg.png")
    ('a/b.v2', '.seg.png')
    """
    lower = name.lower()
    for suffix in (*LABEL_SUFFIXES, *IMAGE_SUFFIXES):
        if lower.endswith(suffix) and posixpath.basename(name)[: -len(suffix)]:
            return name[: -len(suffix)], suffix
    return None


def _visible(source: Store, hidden: Counter[str] | None = None) -> Iterator[ObjectInfo]:
    """Yield the visible objects; count hidden ones by the first character of the hidden part."""
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
                remedy="Rename it, for example with convmv.",
            )
        yield info


def _checked(where: str, shards: ShardList) -> ShardList:
    """Refuse two shards with the same id, and a shard with the name of a chunk of another shard.

    Raises:
        InputError: the two shards.
    """
    last, stems = None, dict[str, str]()
    for shard in shards:  # sorted by id: equal ids are neighbors
        if shard.id == last:
            raise InputError(
                where=where,
                found=f"two shards with the id {shard.id!r}",
                expected="names that differ in more than the case of the extension",
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
                expected=f"other names: {shard.id!r} may be split into chunks with such names",
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
                found="no PNG files",
                expected="label PNGs with the same relative paths as the images",
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
    """Refuse a VOC development kit without a split: its labels would be segmented as images."""
    if all(
        any(folder in f"/{info.path}" for info in images)
        for folder in ("/JPEGImages/", "/SegmentationClass/")
    ):
        raise InputError(
            where=source.url,
            found="JPEGImages and SegmentationClass: a PASCAL VOC development kit",
            expected="a split of the development kit",
            remedy="Add --layout voc --split val (or another split).",
        )


def _labels_by_key(objects: Iterable[ObjectInfo], root: str) -> dict[str, ObjectInfo]:
    return {
        info.path[len(root) : -len(".png")]: info
        for info in objects
        if info.path.startswith(root) and info.path.lower().endswith(".png")
    }
