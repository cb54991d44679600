"""Pictures on this machine: what a folder holds, and what a glob matches."""

from __future__ import annotations

import glob
import logging
import os
import re
import stat
from collections.abc import Iterator

from pipeline.errors import InputError
from pipeline.shards import IMAGE_SUFFIXES, is_visible
from pipeline.stores.errors import explained

log = logging.getLogger("fcnseg.pictures")

_STARS = re.compile(r"(^|/)\*\*(?:/\*\*)*(/|$)")
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def pictures_in(folder: str) -> Iterator[str]:
    """Paths of the pictures in and below a folder, in byte order, links followed.

    Raises:
        StoreError: a folder cannot be listed.
    """
    root = folder.rstrip("/") or "/"
    below = os.path.join(root, "")
    found = (path for path in _matches(root, "**") if is_visible(path.removeprefix(below)))
    yield from _files(found)


def pictures_matching(pattern: str) -> Iterator[str]:
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
            path, kind, "a picture in a regular file", "Save what it gives as a file; name that."
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
