"""Which images a dataset's split names: text files with one id per line."""

from __future__ import annotations

import hashlib
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError, InputError, MissingError
from pipeline.inputs.listing import IMAGE_SUFFIXES, check_key
from pipeline.storage.store import Store, read_url

_NAMED = 3
"""Missing ids that a message names; the rest it counts."""


@dataclass(frozen=True)
class Split:
    """The ids of a split, in the order of their file.

    Attributes:
        name: as it was asked for: "val", or the address of a file.
        where: the file, for people.
        ids: of the images.

    Raises:
        InputError: an id twice.
    """

    name: str
    where: str
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        twice = [name for name, count in Counter(self.ids).items() if count > 1]
        if twice:
            found = f"{len(twice)} ids more than once, the first {twice[0]!r}"
            raise _no_list(self.where, found)

    @property
    def description(self) -> str:
        """Name, number and digest: what tells two splits apart in an output's `_run.json`."""
        digest = hashlib.sha256("\n".join(sorted(self.ids)).encode()).hexdigest()[:12]
        return f"split {posixpath.basename(self.name)} ({len(self.ids)} ids, {digest})"

    def refuse_missing(self, have: Iterable[str], what: str, remedy: str) -> None:
        """Refuse ids that something is missing for.

        Args:
            have: ids for which it is there.
            what: what is missing, with its place: "image JPEGImages/<id>.jpg".
            remedy: what to do.

        Raises:
            InputError: naming the first ids, and how many there are.
        """
        known = set(have)
        missing = [name for name in self.ids if name not in known]
        if missing:
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise InputError(
                where=self.where,
                found=f"{len(missing)} of {len(self.ids)} ids without {what}: "
                f"{', '.join(missing[:_NAMED])}{more}",
                expected="one for every id of the split",
                remedy=remedy,
            )


def is_address(split: str) -> bool:
    """Whether a split is the path or URL of a file of ids, and not the name of one."""
    return "/" in split or split.lower().endswith(".txt")


def read_split(source: Store, folder: str, split: str | None, remedy: str) -> Split:
    """The ids of a split.

    Args:
        source: the dataset.
        folder: where its lists of ids lie, below the source; "" for the source itself.
        split: name of a list there, or path or URL of a file of ids anywhere.
        remedy: where to get the lists, for the error.

    Raises:
        ConfigError: no such split.
        InputError: a file that is no list of ids.
    """
    if split is not None and is_address(split):
        try:
            return parse_split(split, split, read_url(split))
        except MissingError as error:
            raise ConfigError(
                where=f"--split {split}",
                found="no such file",
                expected="a file of ids",
                remedy="Check the path.",
            ) from error
    path = posixpath.join(folder, f"{split}.txt")
    try:
        if split is not None:
            return parse_split(split, source.location(path), source.read(path))
    except MissingError:
        pass
    prefix = f"{folder}/" if folder else ""
    names = [info.path.removeprefix(prefix) for info in source.objects(folder)]
    lists = [name[:-4] for name in names if name.endswith(".txt") and "/" not in name]
    raise unknown_split(source.location(folder), split, lists, remedy)


def unknown_split(where: str, split: str | None, names: Sequence[str], remedy: str) -> ConfigError:
    """The error of a split that is not there, or was not named."""
    return ConfigError(
        where=where,
        found=f"no list of ids {split!r}" if split else "no --split",
        expected=f"here are {', '.join(sorted(names))}" if names else "here are no lists of ids",
        remedy=f"Name one with --split, or the path or URL of a file of ids. {remedy}".rstrip(),
    )


def parse_split(name: str, where: str, data: bytes) -> Split:
    """The ids of a file: the first word of each line, without folders and picture suffix.

    A second word is taken for the path of the label, as SegNet's lists have it, if both are paths.

    Raises:
        InputError: no text, no ids, a line of other words, an id twice.
    """
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise _no_list(where, "bytes that are no UTF-8") from error
    ids = []
    for number, line in enumerate(lines, 1):
        words = line.replace("\\", "/").split()
        if not words:
            continue
        if len(words) > 2 or (len(words) == 2 and not all("/" in word for word in words)):
            raise _no_list(where, f"line {number} is {line.strip()[:60]!r}")
        ids.append(_id(words[0]))
        problem = check_key(ids[-1])
        if problem:
            raise _no_list(where, f"line {number}: {problem}")
    if not ids:
        raise _no_list(where, "no ids")
    return Split(name, where, tuple(ids))


def _id(word: str) -> str:
    name = posixpath.basename(word)
    stem, suffix = posixpath.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def _no_list(where: str, found: str) -> InputError:
    return InputError(
        where=where,
        found=found,
        expected="a text file with one id per line",
        remedy="Correct the list.",
    )


def by_id(paths: Iterable[str], folder: str, suffixes: Sequence[str]) -> Mapping[str, str]:
    """Path by id of the files that lie in a folder (not below it) and have one of the suffixes.

    >>> by_id(["a/1.jpg", "a/b/2.jpg", "c/3.jpg", "a/4.png"], "a/", [".jpg"])
    {'1': 'a/1.jpg'}
    """
    found = {}
    for path in paths:
        stem, suffix = posixpath.splitext(path[len(folder) :])
        if path.startswith(folder) and suffix.lower() in suffixes and "/" not in stem:
            found[stem] = path
    return found
