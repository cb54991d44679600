"""Find the images that `fcnseg predict` is asked for, and give their results names.

An argument is a file, a folder, a glob, or a URL of one of these. Local folders and globs are read
with `os` and `glob`; folders and globs of other stores with the listing of the store.
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

log = logging.getLogger("fcnseg.pictures")

_MAGIC = re.compile(r"[*?\[]")
"""Characters that make an argument a glob."""


_STARS = re.compile(r"(^|/)\*\*(?:/\*\*)*(/|$)")
"""`**` as a whole part of a path, or several in a row."""


_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


@dataclass(frozen=True)
class InputImage:
    """One image to predict.

    Attributes:
        address: path or URL.
        name: base name of its results: its path below the folder, or its file name, without the
            extension unless another image would have the same name.
    """

    address: str
    name: str


def find_images(arguments: Sequence[str], output: Store) -> list[InputImage]:
    """Return every requested image once, in the order of the arguments, then of the paths.

    Args:
        arguments: files, folders (all images in them and below), globs (`*` stays in one folder,
            `**` does not), or URLs of these. An http or https URL must be a file.
        output: store of the results; images below it are results of earlier calls and ignored.

    Raises:
        InputError: a folder or glob has no images, or two images would have the same name.
        StoreError: a folder cannot be listed.
    """
    relative_paths: dict[str, str] = {}
    for argument in arguments:
        images = list(_images_of(argument, output))
        if not images:
            raise InputError(
                where=argument,
                found=f"no images except those below --output {output.location('')}"
                if _holds_results(argument, output)
                else "no images",
                expected="a file, or a folder or glob of jpg, jpeg, png or webp files",
                remedy="Check the address. In folders, names that begin with '_' or '.' are "
                "ignored.",
            )
        for address, relative in images:
            relative_paths.setdefault(address, relative)
    names = _names(relative_paths.values())
    _refuse_shared_names(list(relative_paths), names)
    return [InputImage(address, name) for address, name in zip(relative_paths, names, strict=True)]


def images_in_folder(folder: str) -> Iterator[str]:
    """Yield the paths of the images in a local folder and below, in byte order, following links.

    Raises:
        StoreError: a folder cannot be listed.
    """
    root = folder.rstrip("/") or "/"
    below = os.path.join(root, "")
    visible = (path for path in _matches(root, "**") if is_visible(path.removeprefix(below)))
    yield from _regular_images(visible)


def images_matching(pattern: str) -> Iterator[str]:
    """Yield the paths of the local images that a glob matches, in byte order.

    `**` follows links to folders, except a link to a folder that contains the link.

    Raises:
        StoreError: a folder below `**` cannot be listed.
    """
    yield from _regular_images(_matches("", pattern))


def refuse_irregular(path: str) -> None:
    """Refuse an existing path that is not a regular file: a pipe without a writer never ends.

    Pipes of a shell, such as /dev/stdin and /dev/fd/63, have a writer and are allowed.

    Raises:
        InputError: the path is a pipe, a socket, a device or a folder.
    """
    kind = _irregular_kind(path)
    is_of_shell = kind == _KINDS[stat.S_IFIFO] and path.startswith("/dev/")
    if kind is not None and os.path.exists(path) and not is_of_shell:
        raise InputError(
            where=path,
            found=kind,
            expected="an image in a regular file",
            remedy="Save its content as a file, and give the path of that file.",
        )


def address_of(image: str) -> str:
    """Return the address of an image in the spelling of `Store.location`, for comparisons."""
    parent, _, name = image.rpartition("/")
    return Store(parent or ("/" if image.startswith("/") else ".")).location(name)


def _images_of(argument: str, output: Store) -> Iterator[tuple[str, str]]:
    """Yield (address, relative path) of the images of one argument."""
    protocol = get_protocol(argument)
    if protocol in ("http", "https"):
        yield argument, posixpath.basename(urlsplit(argument).path) or "picture"
    elif protocol in ("file", "local"):
        yield from _local_images(argument.removeprefix(f"{protocol}://"), output)
    elif _MAGIC.search(argument):
        folder, pattern = _split_glob(argument)
        matcher = re.compile(glob_translate(pattern))
        yield from (pair for pair in _listed_images(folder, output) if matcher.fullmatch(pair[1]))
    elif argument.lower().endswith(IMAGE_SUFFIXES):
        yield argument, posixpath.basename(argument)
    else:
        yield from _listed_images(argument, output)


def _local_images(path: str, output: Store) -> Iterator[tuple[str, str]]:
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        root, matches = path, images_in_folder(path)
    elif os.path.exists(path) or not _MAGIC.search(path):
        yield path, os.path.basename(path)
        return
    else:
        root, matches = _split_glob(path)[0] or ".", images_matching(path)
    for match in matches:
        if not _is_result(match, output):
            yield match, os.path.relpath(match, root)


def _listed_images(folder: str, output: Store) -> Iterator[tuple[str, str]]:
    root = folder.rstrip("/") or "/"
    for entry in Store(folder).listing():
        if entry.path.lower().endswith(IMAGE_SUFFIXES) and is_visible(entry.path):
            address = posixpath.join(root, entry.path)
            if not _is_result(address, output):
                yield address, entry.path


def _split_glob(pattern: str) -> tuple[str, str]:
    """Return the fixed folder of a glob, and the rest of the glob below that folder."""
    magic = _MAGIC.search(pattern)
    assert magic is not None
    cut = pattern.rfind("/", 0, magic.start()) + 1
    return pattern[:cut], pattern[cut:]


def _is_result(address: str, output: Store) -> bool:
    return address_of(address).startswith(f"{output.location('').rstrip('/')}/")


def _holds_results(folder: str, output: Store) -> bool:
    return not _MAGIC.search(folder) and output.overlaps(Store(folder))


def _names(relative: Iterable[str]) -> list[str]:
    """Return the stem of each path, or the whole path where several paths share a stem."""
    paths = list(relative)
    stems = [posixpath.splitext(path)[0] for path in paths]
    count = Counter(stems)
    return [path if count[stem] > 1 else stem for path, stem in zip(paths, stems, strict=True)]


def _refuse_shared_names(addresses: Sequence[str], names: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for address, name in zip(addresses, names, strict=True):
        other = first.setdefault(name, address)
        if other != address:
            raise InputError(
                where=address,
                found=f"{other} has the same name",
                expected="a different name for each image, because results are named after images",
                remedy="Predict them into two folders, or give the folder that contains both.",
            )


def _regular_images(paths: Iterator[str]) -> Iterator[str]:
    """Yield the regular files with an image suffix; log a warning for pipes, sockets and such."""
    for path in sorted(set(paths), key=os.fsencode):
        if not path.lower().endswith(IMAGE_SUFFIXES):
            continue
        kind = _irregular_kind(path)
        if kind is None:
            yield path
        elif kind != _KINDS[stat.S_IFDIR]:  # `_matches` yields the files of folders as well
            log.warning("ignored %s: %s", path, kind)


def _irregular_kind(path: str) -> str | None:
    """Return what a path is, or None if it is a regular file."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return "a link to nothing" if os.path.islink(path) else "gone"
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "not a regular file")


def _matches(folder: str, pattern: str) -> Iterator[str]:
    """Yield the paths below a folder that a glob matches, some of them more than once.

    `**` is expanded here, because `**` of `glob` does not end where a link leads back.
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
    """Yield a folder and those below, without hidden folders and without links back to `above`."""
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
    except (FileNotFoundError, NotADirectoryError):  # removed since it was listed
        return []
