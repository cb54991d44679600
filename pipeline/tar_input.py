"""Samples of a WebDataset tar: members grouped by key, fetched by their offsets."""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

from pipeline.errors import SampleError, ShardError
from pipeline.samples import Entry
from pipeline.shards import LABEL_SUFFIXES, Shard, split_suffix
from pipeline.store import Store

_BLOCK = 512
_NOWHERE = -1
_REMEDY = "Copy or pack it again; the other shards go on."


@dataclass(frozen=True)
class _File:
    """A member of the tar: its name and where its bytes are."""

    name: str
    offset: int
    size: int


def tar_entries(shard: Shard, source: Store, files: ExitStack, *, in_memory: bool) -> list[Entry]:
    """The samples of a tar, in the order of their first member.

    A `.png` is the label of its key when the key has a jpg, jpeg or webp too, else its image.
    Members of other kinds (json, txt, cls, …) are passed over.

    Args:
        shard: of kind "tar".
        source: INPUT.
        files: closes what is opened here, when the last sample is fetched.
        in_memory: fetch the whole tar at once instead of ranges.

    Raises:
        ShardError: not a tar, truncated, or damaged between two members.
    """
    where = source.location(shard.path)
    handle: IO[bytes] = (
        io.BytesIO(source.read(shard.path))
        if in_memory
        else files.enter_context(source.open(shard.path))
    )
    by_key: dict[str, list[_File]] = {}
    for file in _members(handle, where):
        split = split_suffix(file.name)
        if split is not None:
            by_key.setdefault(split[0], []).append(file)
    entries = []
    for key, group in by_key.items():
        entries.extend(_key_entries(key, group, handle, where))
    return entries


def _members(handle: IO[bytes], where: str) -> list[_File]:
    try:
        with tarfile.open(fileobj=handle, mode="r:") as tar:
            members = _files(list(tar))
            end = tar.offset
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise ShardError(
            where, f"not a whole tar ({error})", "an uncompressed tar", _REMEDY
        ) from error
    # tarfile ends silently at whatever is no header: only the end-of-archive marker, a block of
    # zeros, tells a whole tar from one cut between two members.
    handle.seek(end)
    block = handle.read(_BLOCK)
    if block != bytes(_BLOCK):
        found = "the file ends" if not block else "bytes that are no member"
        raise ShardError(
            where,
            f"{found} at {end} after {len(members)} members",
            "an end-of-archive marker",
            "It is truncated or damaged. " + _REMEDY,
        )
    return members


def _files(members: list[tarfile.TarInfo]) -> list[_File]:
    """Regular files, and links to them: packing hard-linked files makes such."""
    files = {_name(m): _File(_name(m), m.offset_data, m.size) for m in members if m.isfile()}
    found = []
    for member in members:
        name = _name(member)
        if member.isfile():
            found.append(_File(name, member.offset_data, member.size))
        elif member.islnk() or member.issym():
            base = posixpath.dirname(name) if member.issym() else ""
            target = posixpath.normpath(posixpath.join(base, member.linkname))
            there = files.get(target, _File(name, _NOWHERE, 0))
            found.append(_File(name, there.offset, there.size))
    return found


def _name(member: tarfile.TarInfo) -> str:
    """The name below the tar's root; what is no UTF-8 in it with backslashes, as no key has."""
    name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return name.removeprefix("./")


def _key_entries(key: str, group: list[_File], handle: IO[bytes], where: str) -> list[Entry]:
    images: list[_File] = []
    labels: list[_File] = []
    suffixes = [(split_suffix(file.name) or ("", ""))[1] for file in group]
    has_photo = any(suffix not in (".png", *LABEL_SUFFIXES) for suffix in suffixes)
    for file, suffix in zip(group, suffixes, strict=True):
        is_label = suffix in LABEL_SUFFIXES or (suffix == ".png" and has_photo)
        (labels if is_label else images).append(file)
    if not images:
        error = SampleError(
            f"{where}#{labels[0].name}",
            "a label without an image",
            "an image of the same key",
            "Add the image or drop the label.",
        )
        return [Entry(key, labels[0].size, f"{where}#{labels[0].name}", _raiser(error))]
    label = labels[0] if labels else None
    entries = []
    for index, image in enumerate(images):
        location = f"{where}#{image.name}"
        if len(labels) > 1 and index == 0:
            error = SampleError(
                location,
                f"{len(labels)} labels ({', '.join(f.name for f in labels)})",
                "at most one label per image",
                "Remove all but one.",
            )
            entries.append(Entry(key, image.size, location, _raiser(error)))
            continue
        size = image.size + (label.size if label else 0)
        entries.append(Entry(key, size, location, _loader(handle, image, label)))
    return entries


def _loader(
    handle: IO[bytes], image: _File, label: _File | None
) -> Callable[[], tuple[bytes, bytes | None]]:
    return lambda: (_read(handle, image), _read(handle, label) if label is not None else None)


def _read(handle: IO[bytes], file: _File) -> bytes:
    if file.offset == _NOWHERE:
        raise SampleError(
            file.name, "a link to nothing in this tar", "a file", "Pack the file itself."
        )
    handle.seek(file.offset)
    return handle.read(file.size)


def _raiser(error: SampleError) -> Callable[[], tuple[bytes, bytes | None]]:
    def load() -> tuple[bytes, bytes | None]:
        raise error

    return load
