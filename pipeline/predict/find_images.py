"""Which pictures `fcnseg predict` is asked for: files, folders, globs and URLs; and their names.

Pictures on this machine: what a folder holds, and what a glob matches.
"""

from __future__ import annotations

import glob
import logging
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from fsspec.utils import get_protocol, glob_translate

from pipeline.errors import InputError
from pipeline.inputs.listing import IMAGE_SUFFIXES, is_visible
from pipeline.storage.errors import explained
from pipeline.storage.store import Store

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class InputImage:
    """One picture.

    Attributes:
        address: path or URL.
        name: what its results are called after: its path below the folder, or its file name,
            without the extension where no other picture has the same then.
    """

    address: str
    name: str


def find_images(asked: Sequence[str], output: Store) -> list[InputImage]:
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
                where=one,
                found=f"no pictures but those below --output {output.location('')}"
                if _holds_results(one, output)
                else "no pictures",
                expected="a file, or a folder or glob of jpg, jpeg, png or webp files",
                remedy="Check the address; names beginning with '_' or '.' are not looked at in folders.",
            )
        for address, relative in pictures:
            found.setdefault(address, relative)
    names = _names(found.values())
    _refuse_shared(list(found), names)
    return [InputImage(address, name) for address, name in zip(found, names, strict=True)]


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
        root, found = path, images_in_folder(path)
    elif os.path.exists(path) or not _MAGIC.search(path):
        yield path, os.path.basename(path)
        return
    else:
        root, found = _split(path)[0] or ".", images_matching(path)
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
                where=address,
                found=f"{other} has the same name",
                expected="names that differ, because results are named after them",
                remedy="Predict them into two directories, or name the folder that both are in.",
            )


log = logging.getLogger("fcnseg.pictures")


_STARS = re.compile(r"(^|/)\*\*(?:/\*\*)*(/|$)")

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def images_in_folder(folder: str) -> Iterator[str]:
    """Paths of the pictures in and below a folder, in byte order, links followed.

    Raises:
        StoreError: a folder cannot be listed.
    """
    root = folder.rstrip("/") or "/"
    below = os.path.join(root, "")
    found = (path for path in _matches(root, "**") if is_visible(path.removeprefix(below)))
    yield from _files(found)


def images_matching(pattern: str) -> Iterator[str]:
    """Paths of the pictures that a glob matches, in byte order.

    `**` follows links to folders, but none to a folder that it is in.

    Raises:
        StoreError: a folder below `**` cannot be listed.
    """
    yield from _files(_matches("", pattern))


def refuse_irregular(path: str) -> None:
    """Refuse what is there and is no file: a pipe that nobody writes into is read for ever.

    Those of a shell, /dev/stdin and /dev/fd/63, have a writer.

    Raises:
        InputError: naming what it is.
    """
    kind = _kind(path)
    is_of_shell = kind == _KINDS[stat.S_IFIFO] and path.startswith("/dev/")
    if kind is not None and os.path.exists(path) and not is_of_shell:
        raise InputError(
            where=path,
            found=kind,
            expected="a picture in a regular file",
            remedy="Save what it gives as a file; name that.",
        )


def _files(paths: Iterator[str]) -> Iterator[str]:
    """Those that are regular files called like pictures; what is none of the former is said."""
    for path in sorted(set(paths), key=os.fsencode):
        if not path.lower().endswith(IMAGE_SUFFIXES):
            continue
        kind = _kind(path)
        if kind is None:
            yield path
        elif kind != _KINDS[stat.S_IFDIR]:  # whose pictures are found by themselves
            log.warning("passed over %s: %s", path, kind)


def _kind(path: str) -> str | None:
    """What it is if it is no regular file."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return "a link to nothing" if os.path.islink(path) else "gone"
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def _matches(folder: str, pattern: str) -> Iterator[str]:
    """Paths below a folder that a glob matches, some of them more than once.

    Not by glob's own `**`, which goes round and round where a link leads back.
    """
    stars = _STARS.search(pattern)
    if stars is None:
        names = glob.iglob(pattern, root_dir=folder or None)
        yield from (os.path.join(folder, name) for name in names)
        return
    head, tail = pattern[: stars.end(1)], pattern[stars.end() :] or "*"
    for start in _matches(folder, head) if head else (folder,):
        for inner in _folders(start, ()):
            yield from _matches(inner, tail)


def _folders(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """A folder and those below it, but hidden ones and links to a folder that they are in."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with explained(folder or "."):
        names = _subfolders(folder or ".")
    yield folder
    for name in names:
        yield from _folders(os.path.join(folder, name), (*above, real))


def _subfolders(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
    except (FileNotFoundError, NotADirectoryError):  # just removed
        return []
