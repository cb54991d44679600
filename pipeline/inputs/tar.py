"""Samples of a WebDataset tar: members are grouped by key and fetched by their offsets."""

from __future__ import annotations

import io
import posixpath
import sys
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import IO, Any

import numpy as np

from fcn_core.errors import FcnError
from pipeline.errors import SampleError, ShardError
from pipeline.inputs.listing import LABEL_SUFFIXES, split_suffix
from pipeline.inputs.range_reader import RangedObject, WalkedFile, read_ranges
from pipeline.inputs.sample import EncodedSample
from pipeline.inputs.shard import Shard
from pipeline.storage.store import Store

MAX_MEMBER = 2 * 2**30
"""Largest member in bytes, after unfolding of a sparse file: larger ones are not images."""


_BLOCK = 512

_NOWHERE = -1
"""Offset of a link whose target is not in the tar."""

_NONE = -2
"""Offset of the label of a sample without a label."""

_REMEDY = "Copy or pack it again; the run continues with the other shards."

_TAIL = 2**20

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


class TarIndex:
    """Index of the samples of a tar, in the order of their first member.

    A `.png` is the label of its key if the key also has a jpg, jpeg or webp; else it is the image.
    Members of other types (json, txt, cls, …) and the `._…` files of macOS are ignored. A sample
    takes about 200 bytes of memory, whatever its size.

    Args:
        shard: a shard of kind "tar".
        source: INPUT.
        in_memory: fetch the whole tar at once instead of ranges.

    Raises:
        ShardError: not a tar, truncated, or damaged between two members.
        StoreError: the store failed.
    """

    def __init__(self, shard: Shard, source: Store, *, in_memory: bool) -> None:
        self.where = source.location(shard.path)
        self._object = RangedObject(source, shard.path, shard.size)
        self._whole = source.read(shard.path) if in_memory else None
        self._sparse: dict[int, list[tuple[int, int]]] = {}
        self.keys: list[str] = []
        self.sizes = array("q")
        self._suffixes: list[str] = []
        self._places = {part: array("q") for part in ("image", "image size", "label", "label size")}
        self._errors: dict[int, SampleError] = {}
        with ExitStack() as walk:
            handle: IO[bytes] = (
                io.BytesIO(self._whole)
                if self._whole is not None
                else walk.enter_context(WalkedFile(self._object))  # type: ignore[arg-type]
            )
            members = _walk(handle, self.where)
        for key, group in members.by_key():
            self._add(key, group, members)
        self._sparse = members.sparse

    def location(self, number: int) -> str:
        """Return the address of the tar and the name of the member."""
        return f"{self.where}#{self.keys[number]}{self._suffixes[number]}"

    def fetch(self, numbers: Sequence[int]) -> Iterator[EncodedSample | FcnError]:
        """Yield the images and labels of some samples in few requests; see `SampleIndex`."""
        ranges = []
        for number in numbers:
            for part in ("image", "label"):
                ranges.append(self._range(part, number))
        if self._whole is None:
            parts = read_ranges(self._object, ranges)
        else:
            parts = [self._whole[offset : offset + size] for offset, size in ranges]
        parts.reverse()  # popped from the end, so that each part is freed once it is yielded
        for number in numbers:
            image, label = parts.pop(), parts.pop()
            problem = self._problem(number)
            if problem is not None:
                yield problem
                continue
            has_label = self._places["label"][number] != _NONE
            label_bytes = self._unfold("label", number, label) if has_label else None
            yield self._unfold("image", number, image), label_bytes

    def _range(self, part: str, number: int) -> tuple[int, int]:
        offset, size = self._places[part][number], self._places[f"{part} size"][number]
        if self._problem(number) is not None or offset < 0:
            return 0, 0
        if offset in self._sparse:
            size = sum(length for _, length in self._sparse[offset])
        return offset, size

    def _problem(self, number: int) -> SampleError | None:
        if number in self._errors:
            return self._errors[number]
        places = {part: values[number] for part, values in self._places.items()}
        if _NOWHERE in (places["image"], places["label"]):
            found, expected = "a link whose target is not in this tar", "a file"
            return SampleError(
                where=self.location(number),
                found=found,
                expected=expected,
                remedy="Pack the file instead of the link.",
            )
        if max(places["image size"], places["label size"]) > MAX_MEMBER:
            found = f"{max(places['image size'], places['label size'])} bytes"
            expected = f"at most {MAX_MEMBER}"
            return SampleError(
                where=self.location(number),
                found=found,
                expected=expected,
                remedy="Drop the sample.",
            )
        return None

    def _unfold(self, part: str, number: int, data: bytes) -> bytes:
        """Return the bytes of a member; a sparse one is filled with zeros at its holes."""
        pieces = self._sparse.get(self._places[part][number])
        if pieces is None:
            return data
        whole = bytearray(self._places[f"{part} size"][number])
        at = 0
        for offset, size in pieces:
            whole[offset : offset + size] = data[at : at + size]
            at += size
        return bytes(whole)

    def _add(self, key: str, group: Sequence[int], members: _Members) -> None:
        suffixes = [members.suffixes[member] for member in group]
        lower = [suffix.lower() for suffix in suffixes]
        has_photo = any(suffix not in (".png", *LABEL_SUFFIXES) for suffix in lower)
        is_label = [s in LABEL_SUFFIXES or (s == ".png" and has_photo) for s in lower]
        images = [m for m, label in zip(group, is_label, strict=True) if not label]
        labels = [m for m, label in zip(group, is_label, strict=True) if label]
        error = None
        if not images:
            error = ("a label without an image", "an image of the same key")
            remedy = "Add the image or drop the label."
            images, labels = labels[:1], []
        elif len(labels) > 1:
            names = ", ".join(key + members.suffixes[member] for member in labels)
            error = (f"{len(labels)} labels ({names})", "at most one label per image")
            remedy = "Remove all but one."
        for index, image in enumerate(images):
            number = len(self.keys)
            self.keys.append(key)
            self._suffixes.append(members.suffixes[image])
            places = (*members.place(image), *members.place(labels[0] if labels else None))
            for values, value in zip(self._places.values(), places, strict=True):
                values.append(value)
            self.sizes.append(places[1] + places[3])
            if error is not None and index == 0:
                self._errors[number] = SampleError(self.location(number), *error, remedy)


class _Members:
    """The members of a tar that belong to samples, as columns of packed arrays.

    Attributes:
        numbers: number of each sample by key, in the order of first members.
        samples: sample number of each member.
        suffixes: suffix of each member, from the first dot after the key.
        offsets: offset of the bytes of each member; `_NOWHERE` for a broken link.
        sizes: bytes of each member; of a sparse member, with its holes.
        sparse: (offset, size) of the stored pieces of a sparse member, by offset of its bytes.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.samples = array("q")
        self.suffixes: list[str] = []
        self.offsets = array("q")
        self.sizes = array("q")
        self.sparse: dict[int, list[tuple[int, int]]] = {}
        self._others: dict[str, tuple[int, int]] = {}
        self._links: list[tuple[int, str]] = []

    def place(self, member: int | None) -> tuple[int, int]:
        return (_NONE, 0) if member is None else (self.offsets[member], self.sizes[member])

    def add(self, member: tarfile.TarInfo) -> None:
        """Add a regular file or a link; tar stores the second name of a file as a link."""
        is_link = member.islnk() or member.issym()
        if not (member.isfile() or is_link):
            return
        name = _name(member)
        split = None if posixpath.basename(name).startswith("._") else split_suffix(name)
        place = (_NOWHERE, 0) if is_link else (member.offset_data, member.size)
        if member.issparse():
            pieces: Any = member.sparse  # (offset, size) each; the annotation in typeshed is wrong
            self.sparse[member.offset_data] = list(pieces)
        if split is None:
            if not is_link:
                self._others[name] = place
            return
        key = split[0]
        if is_link:
            base = posixpath.dirname(name) if member.issym() else ""
            target = posixpath.normpath(posixpath.join(base, member.linkname))
            self._links.append((len(self.suffixes), target))
        self.samples.append(self.numbers.setdefault(key, len(self.numbers)))
        self.suffixes.append(sys.intern(name[len(key) :]))
        self.offsets.append(place[0])
        self.sizes.append(place[1])

    def by_key(self) -> Iterator[tuple[str, list[int]]]:
        """Yield each key with its members, in order; links get the place of their target."""
        if self._links:
            self._follow()
        self._others.clear()
        order = np.argsort(np.frombuffer(self.samples, np.int64), kind="stable")
        counts = np.bincount(np.frombuffer(self.samples, np.int64), minlength=len(self.numbers))
        ends = np.cumsum(counts)
        for key, count, end in zip(self.numbers, counts, ends, strict=True):
            yield key, order[end - count : end].tolist()

    def _follow(self) -> None:
        keys = list(self.numbers)
        files = dict(self._others)
        for member, suffix in enumerate(self.suffixes):
            if self.offsets[member] != _NOWHERE:
                files[keys[self.samples[member]] + suffix] = self.place(member)
        for member, target in self._links:
            self.offsets[member], self.sizes[member] = files.get(target, (_NOWHERE, 0))


def _walk(handle: IO[bytes], where: str) -> _Members:
    """Return the members of a tar by reading all headers."""
    start = handle.read(6)
    for magic, name in _PACKED.items():
        if start.startswith(magic):
            raise ShardError(
                where=where,
                found=f"{name} data",
                expected="an uncompressed tar",
                remedy="Decompress it; the run continues with the other shards.",
            )
    handle.seek(0)
    members, count = _Members(), 0
    try:
        with tarfile.open(fileobj=handle, mode="r:", encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                members.add(member)
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every member in memory
                count += 1
            end = tar.offset
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise ShardError(
            where=where,
            found=f"not a complete tar ({error})",
            expected="an uncompressed tar",
            remedy=_REMEDY,
        ) from error
    _check_end(handle, where, end, count)
    return members


def _check_end(handle: IO[bytes], where: str, end: int, count: int) -> None:
    # tarfile stops silently at any block that is not a header. Only the end-of-archive marker, a
    # block of zeros, distinguishes a complete tar from one cut between two members.
    handle.seek(end)
    block = handle.read(_BLOCK)
    if block != bytes(_BLOCK):
        found = "the file ends" if not block else "bytes that are not a member"
        raise ShardError(
            where=where,
            found=f"{found} at {end} after {count} members",
            expected="an end-of-archive marker",
            remedy="It is truncated or damaged. " + _REMEDY,
        )
    # Readers ignore what follows: padding, or data that a program appended. But the samples of b in
    # `cat a.tar b.tar` must not be lost silently.
    rest = handle.read(_TAIL)
    for start in range(0, len(rest) - _BLOCK + 1, _BLOCK):
        block = rest[start : start + _BLOCK]
        if block != bytes(_BLOCK):
            if _is_header(block):
                raise ShardError(
                    where=where,
                    found=f"another archive at {end + _BLOCK + start}, after the end of the first",
                    expected="one archive per object",
                    remedy="Join tars with `tar --concatenate`, not with cat. "
                    "The run continues with the other shards.",
                )
            return


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _name(member: tarfile.TarInfo) -> str:
    r"""Return the name of a member below the root; bytes that are not UTF-8 become \xNN.

    Keys with a backslash are refused later, so such a member becomes a failed sample.
    """
    name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return name.removeprefix("./")
