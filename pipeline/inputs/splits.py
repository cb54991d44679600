"""Splits of datasets: text files with one image id per line."""

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
"""Missing ids that a message names; it counts the others."""


@dataclass(frozen=True)
class Split:
    """The ids of a split, in the order of their file.

    Attributes:
        name: name or address that the user gave: "val", or the path or URL of a file.
        where: address of the file, for messages.
        ids: ids of the images, without folder and suffix.

    Raises:
        InputError: an id occurs twice.
    """

    name: str
    where: str
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        twice = [name for name, count in Counter(self.ids).items() if count > 1]
        if twice:
            found = f"{len(twice)} ids more than once, the first is {twice[0]!r}"
            raise _invalid_list(self.where, found)

    @property
    def description(self) -> str:
        """Name, number of ids, and digest of the ids, for the `_run.json` of an output."""
        digest = hashlib.sha256("\n".join(sorted(self.ids)).encode()).hexdigest()[:12]
        return f"split {posixpath.basename(self.name)} ({len(self.ids)} ids, {digest})"

    def refuse_missing(self, present: Iterable[str], what: str, remedy: str) -> None:
        """Refuse a split with ids that lack an image or a label.

        Args:
            present: ids that have the image or the label.
            what: kind and path of the file, like "image JPEGImages/<id>.jpg".
            remedy: what the user can do.

        Raises:
            InputError: the number of incomplete ids, and the first of them.
        """
        complete = set(present)
        missing = [name for name in self.ids if name not in complete]
        if missing:
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise InputError(
                where=self.where,
                found=f"{len(missing)} of {len(self.ids)} ids without {what}: "
                f"{', '.join(missing[:_NAMED])}{more}",
                expected="a file for every id of the split",
                remedy=remedy,
            )


def is_address(split: str) -> bool:
    """Return whether a split is given as the path or URL of a file, instead of by name."""
    return "/" in split or split.lower().endswith(".txt")


def read_split(source: Store, folder: str, split: str | None, remedy: str) -> Split:
    """Return the ids of a split.

    Args:
        source: the dataset.
        folder: folder of the lists of ids below the source; "" for the source itself.
        split: name of a list in this folder, or path or URL of any file of ids.
        remedy: where the user can get the lists, for the message.

    Raises:
        ConfigError: no split is named, or it does not exist.
        InputError: the file is not a list of ids.
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
    """Return the error for a split that does not exist, or that the user did not name.

    Args:
        where: address of the lists.
        split: the name that the user gave; None without a name.
        names: names of the existing lists.
        remedy: where the user can get other lists; "" if unknown.
    """
    return ConfigError(
        where=where,
        found=f"no list of ids {split!r}" if split else "no --split",
        expected=f"one of {', '.join(sorted(names))}" if names else "a list of ids; there are none",
        remedy=f"Give --split a name, or the path or URL of a file of ids. {remedy}".rstrip(),
    )


def parse_split(name: str, where: str, data: bytes) -> Split:
    """Return the ids of a file: the first word of each line, without folder and image suffix.

    A second word is allowed if both words are paths: in the lists of SegNet, the second word is the
    path of the label.

    Args:
        name: name of the split.
        where: address of the file, for messages.
        data: bytes of the file.

    Raises:
        InputError: not valid UTF-8, no ids, a line with other words, an invalid id, or an id twice.
    """
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise _invalid_list(where, "bytes that are not valid UTF-8") from error
    ids = []
    for number, line in enumerate(lines, 1):
        words = line.replace("\\", "/").split()
        if not words:
            continue
        if len(words) > 2 or (len(words) == 2 and not all("/" in word for word in words)):
            raise _invalid_list(where, f"line {number} is {line.strip()[:60]!r}")
        ids.append(_id(words[0]))
        problem = check_key(ids[-1])
        if problem:
            raise _invalid_list(where, f"line {number}: {problem}")
    if not ids:
        raise _invalid_list(where, "no ids")
    return Split(name, where, tuple(ids))


def _id(word: str) -> str:
    name = posixpath.basename(word)
    stem, suffix = posixpath.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def _invalid_list(where: str, found: str) -> InputError:
    return InputError(
        where=where,
        found=found,
        expected="a text file with one id per line",
        remedy="Correct the list.",
    )


def paths_by_id(paths: Iterable[str], folder: str, suffixes: Sequence[str]) -> Mapping[str, str]:
    """Return path by id for the files directly in a folder that have one of the suffixes.

    >>> paths_by_id(["a/1.jpg", "a/b/2.jpg", "c/3.jpg", "a/4.png"], "a/", [".jpg"])
    {'1': 'a/1.jpg'}
    """
    by_id = {}
    for path in paths:
        stem, suffix = posixpath.splitext(path[len(folder) :])
        if path.startswith(folder) and suffix.lower() in suffixes and "/" not in stem:
            by_id[stem] = path
    return by_id
