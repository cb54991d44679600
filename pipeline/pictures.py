"""Which pictures `fcnseg predict` is asked for: files, folders, globs and URLs; and their names."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from fsspec.utils import get_protocol, glob_translate

from pipeline.errors import InputError
from pipeline.pictures_here import pictures_in, pictures_matching
from pipeline.shards import IMAGE_SUFFIXES, is_visible
from pipeline.store import Store

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        address: path or URL.
        name: what its results are called after: its path below the folder, or its file name,
            without the extension where no other picture has the same then.
    """

    address: str
    name: str


def find_pictures(asked: Sequence[str], output: Store) -> list[Picture]:
    """Every picture that is meant, once, in the order of the arguments, then of the paths.

    Args:
        asked: files, folders (all pictures in and below them), globs (`*` stays in a folder, `**`
            does not), URLs of each; of web pages, files only.
        output: where the results go; pictures below it are results of an earlier call.

    Raises:
        InputError: a folder or glob without pictures, or two pictures of one name.
        StoreError: a folder cannot be listed.
    """
    found: dict[str, str] = {}
    for one in asked:
        pictures = list(_pictures(one, output))
        if not pictures:
            raise InputError(
                one,
                f"no pictures but those below --output {output.location('')}"
                if _holds_results(one, output)
                else "no pictures",
                "a file, or a folder or glob of jpg, jpeg, png or webp files",
                "Check the address; names beginning with '_' or '.' are not looked at in folders.",
            )
        for address, relative in pictures:
            found.setdefault(address, relative)
    names = _names(found.values())
    _refuse_shared(list(found), names)
    return [Picture(address, name) for address, name in zip(found, names, strict=True)]


def _pictures(one: str, output: Store) -> Iterator[tuple[str, str]]:
    """(address, relative path) of the pictures of one argument."""
    protocol = get_protocol(one)
    if protocol in ("http", "https"):
        yield one, posixpath.basename(urlsplit(one).path) or "picture"
    elif protocol in ("file", "local"):
        yield from _of_this_machine(one.removeprefix(f"{protocol}://"), output)
    elif _MAGIC.search(one):
        fixed, pattern = _split(one)
        meant = re.compile(glob_translate(pattern))
        yield from (pair for pair in _listed(fixed, output) if meant.fullmatch(pair[1]))
    elif one.lower().endswith(IMAGE_SUFFIXES):
        yield one, posixpath.basename(one)
    else:
        yield from _listed(one, output)


def _of_this_machine(path: str, output: Store) -> Iterator[tuple[str, str]]:
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        root, found = path, pictures_in(path)
    elif os.path.exists(path) or not _MAGIC.search(path):
        yield path, os.path.basename(path)
        return
    else:
        root, found = _split(path)[0] or ".", pictures_matching(path)
    for match in found:
        if _is_no_result(match, output):
            yield match, os.path.relpath(match, root)


def _listed(folder: str, output: Store) -> Iterator[tuple[str, str]]:
    root = folder.rstrip("/") or "/"
    for info in Store(folder).listing():
        if info.path.lower().endswith(IMAGE_SUFFIXES) and is_visible(info.path):
            address = posixpath.join(root, info.path)
            if _is_no_result(address, output):
                yield address, info.path


def _split(pattern: str) -> tuple[str, str]:
    """The folder that a glob looks into, and what it looks for there."""
    magic = _MAGIC.search(pattern)
    assert magic is not None
    cut = pattern.rfind("/", 0, magic.start()) + 1
    return pattern[:cut], pattern[cut:]


def _is_no_result(address: str, output: Store) -> bool:
    return not address_of(address).startswith(f"{output.location('').rstrip('/')}/")


def _holds_results(folder: str, output: Store) -> bool:
    return not _MAGIC.search(folder) and output.overlaps(Store(folder))


def address_of(picture: str) -> str:
    """A picture as `Store.location` names it."""
    parent, _, name = picture.rpartition("/")
    return Store(parent or ("/" if picture.startswith("/") else ".")).location(name)


def _names(relative: Iterable[str]) -> list[str]:
    """Stems; whole names of those that share one."""
    paths = list(relative)
    stems = [posixpath.splitext(path)[0] for path in paths]
    count = Counter(stems)
    return [path if count[stem] > 1 else stem for path, stem in zip(paths, stems, strict=True)]


def _refuse_shared(addresses: Sequence[str], names: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for address, name in zip(addresses, names, strict=True):
        other = first.setdefault(name, address)
        if other != address:
            raise InputError(
                address,
                f"{other} has the same name",
                "names that differ, because results are named after them",
                "Predict them into two directories, or name the folder that both are in.",
            )
