"""What every form of an export is given, and what it has to do.

Many short texts that become one object: kept in a temporary file, not in memory.
"""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn_core.errors import ImageError
from fcn_core.images import IMAGE_FORMATS
from fcn_core.labels import VOID, LabelSet
from pipeline.errors import ConfigError
from pipeline.export.target import ExportTarget
from pipeline.export.source import ExportRow

_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


@dataclass(frozen=True)
class ExportOptions:
    """What a person may choose.

    Attributes:
        form: a name in `pipeline.export.export.FORMATS`.
        images: whether the images go along, byte for byte.
        names: what images are called: by their `key`, by `shard` and key, or `auto`: by key where
            the input is a folder of images, whose keys differ, else by shard and key.
        split: the name of the one split (voc, hf).
        without: classes that are left out; their pixels become unlabelled (coco, coco-panoptic,
            label-studio, cvat).
        image_root: what stands before an image's name in label-studio's tasks.
        image_suffix: of names of images that are not read.
    """

    form: str
    images: bool = True
    names: str = "auto"
    split: str = "train"
    without: tuple[str, ...] = ()
    image_root: str | None = None
    image_suffix: str = ".jpg"


@dataclass(frozen=True)
class ExportSubject:
    """What is exported, and where to.

    Attributes:
        place: DEST.
        labels: the classes.
        options: of the person.
        about: where it comes from: input, fingerprint, weights, for cards and records.
        files: closes what a form opens.
    """

    target: ExportTarget
    labels: LabelSet
    options: ExportOptions
    about: dict[str, Any]
    files: ExitStack

    def kept_classes(self) -> list[int]:
        """Indices of the classes that are exported."""
        return [k for k, name in enumerate(self.labels.classes) if name not in self.options.without]


@dataclass(frozen=True)
class ExportImage:
    """An image of an export.

    Attributes:
        number: from 1, in the order of the export.
        name: what it is called in the export: a relative path without suffix, no name twice.
        shard: where it comes from.
        labelled: its mask and perhaps its bytes.
        suffix: of its file; "" to find it out from the bytes.
    """

    number: int
    name: str
    shard: str
    row: ExportRow
    suffix: str = ""

    @cached_property
    def mask(self) -> NDArray[np.uint8]:
        """(H, W) class indices, 255 = void."""
        return self.row.mask()

    @cached_property
    def _header(self) -> tuple[str, tuple[int, int]]:
        assert self.row.image is not None
        try:
            with Image.open(io.BytesIO(self.row.image), formats=IMAGE_FORMATS) as image:
                return _SUFFIXES[str(image.format)], image.size
        except OSError as error:
            raise ImageError(
                where=self.name,
                found="no image any more",
                expected="the image that was labelled",
                remedy="Restore it, label its shard again, or add --no-images.",
            ) from error

    @property
    def file_name(self) -> str:
        """Name and suffix: .jpg, .png or .webp by its content, whatever it was called."""
        return self.name + (self.suffix or self._header[0])

    def is_turned(self) -> bool:
        """Whether the image is stored in another orientation than it was labelled (EXIF)."""
        height, width = self.mask.shape
        return self.row.image is not None and self._header[1] != (width, height)

    def classes(self, kept: list[int]) -> list[tuple[int, NDArray[np.bool_]]]:
        """(class index, its pixels) of each of these classes that occurs in the mask."""
        counts = np.bincount(self.mask.ravel(), minlength=VOID + 1)
        return [(k, self.mask == k) for k in kept if counts[k]]


@dataclass(frozen=True)
class ExportBatch:
    """The images of one piece.

    Attributes:
        index: its number, from 0, among all pieces.
        name: as the run named the objects of the chunk.
        images: in the order of the chunk.
        shards: how many shards have been begun, this one included.
    """

    index: int
    name: str
    images: tuple[ExportImage, ...]
    shards: int


class ExportFormat(Protocol):
    """A form of exports. One object per export."""

    def write(self, batch: ExportBatch) -> Any:
        """Put what a batch has of its own; called in any thread. Little may be given back."""
        ...

    def add(self, written: Any) -> None:
        """Take what `write` gave back, in the order of the batches."""
        ...

    def finish(self) -> None:
        """Put what is about all of them."""
        ...


class ExportNames:
    """Names of images in an export: relative paths, no name twice.

    Args:
        by: "key", "shard" (and key), or "own": the key, which must differ within its shard only.
        spell: what a form makes of a name that it cannot have as it is.
    """

    def __init__(self, by: str, spell: Callable[[str], str] = str) -> None:
        self.by = by
        self.spell = spell
        self._taken: set[int] = set()
        self._shard = ""

    def name(self, shard: str, key: str) -> str:
        """The name of an image; those of one shard are asked for together.

        Raises:
            ConfigError: another image has it already.
        """
        if self.by == "own" and shard != self._shard:
            self._shard = shard
            self._taken.clear()
        name = self.spell(f"{shard}/{key}" if self.by == "shard" else key)
        digest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
        if digest in self._taken:
            raise ConfigError(
                where=f"image {key} of shard {shard}",
                found=f"another image is called {name!r} too",
                expected="names that differ",
                remedy="Add --names shard."
                if self.by == "key"
                else "Rename one of them in the input and label it again.",
            )
        self._taken.add(digest)
        return name


def flat(name: str) -> str:
    """A name without folders and blanks, as lists of ids have them.

    >>> flat("a/b c")
    'a_b_c'
    """
    return re.sub(r"[/\s]", "_", name)


class SpooledLines:
    """Texts without line breaks, in order.

    Args:
        files: closes the temporary file.
    """

    def __init__(self, files: ExitStack) -> None:
        file = tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n")
        self._file = files.enter_context(file)

    def add(self, texts: Iterable[str]) -> None:
        """Some more."""
        self._file.writelines(f"{text}\n" for text in texts)

    def __iter__(self) -> Iterator[str]:
        self._file.seek(0)
        for line in self._file:
            yield line[:-1]

    def write_to(self, path: Path, around: tuple[str, str], between: str) -> None:
        """All of them into a file, with something before, behind and between them."""
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(around[0])
            for index, text in enumerate(self):
                file.write(f"{between}{text}" if index else text)
            file.write(around[1])
