"""The interface of export formats, and the types that formats receive.

`ExportFormat` is the interface. `ExportNames` gives images their names in the export, and
`SpooledLines` keeps many short texts in a temporary file instead of in memory.
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
from pipeline.export.source import ExportRow
from pipeline.export.target import ExportTarget

_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


@dataclass(frozen=True)
class ExportOptions:
    """Options of `fcnseg export`; their names are keys of `_export.json`.

    Attributes:
        form: format, a name in `pipeline.export.export.FORMATS`.
        images: whether to copy the images too, byte for byte.
        names: how images are named: "key", "shard" (shard and key), or "auto": by key if the input
            is a folder of images, whose keys are unique, else by shard and key.
        split: name of the only split (voc, hf).
        without: names of classes to leave out; their pixels become unlabeled (coco,
            coco-panoptic, label-studio, cvat).
        image_root: URL of the folder of the images, for the tasks of label-studio.
        image_suffix: suffix of image file names if the images are not read.
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
    """Everything that a format needs to know about an export.

    Attributes:
        target: claimed destination.
        labels: label set of the masks.
        options: options of the command.
        about: origin of the masks (input, fingerprint, variant, weights), for cards and records.
        files: closes the files that a format opens.
    """

    target: ExportTarget
    labels: LabelSet
    options: ExportOptions
    about: dict[str, Any]
    files: ExitStack

    def kept_classes(self) -> list[int]:
        """Return the indices of the classes that are not left out."""
        return [k for k, name in enumerate(self.labels.classes) if name not in self.options.without]


@dataclass(frozen=True)
class ExportImage:
    """One image of an export, with its mask.

    Attributes:
        number: position in the export, from 1.
        name: name in the export: a unique relative path without suffix.
        shard: id of its shard.
        row: mask, and image bytes if images are exported.
        suffix: suffix of its file; "" to detect it from the bytes.
    """

    number: int
    name: str
    shard: str
    row: ExportRow
    suffix: str = ""

    @cached_property
    def mask(self) -> NDArray[np.uint8]:
        """Mask: (H, W) uint8 class indices, 255 = void."""
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
                found="bytes that are not an image",
                expected="the image that was segmented",
                remedy="Restore it, segment its shard again, or add --no-images.",
            ) from error

    @property
    def file_name(self) -> str:
        """Name with suffix; .jpg, .png or .webp by the image content, not by its old name."""
        return self.name + (self.suffix or self._header[0])

    def is_turned(self) -> bool:
        """Return whether the EXIF orientation gives the stored image another size than its mask."""
        height, width = self.mask.shape
        return self.row.image is not None and self._header[1] != (width, height)

    def classes(self, kept: list[int]) -> list[tuple[int, NDArray[np.bool_]]]:
        """Return (class index, (H, W) bool pixels) of each kept class that the mask contains."""
        counts = np.bincount(self.mask.ravel(), minlength=VOID + 1)
        return [(k, self.mask == k) for k in kept if counts[k]]


@dataclass(frozen=True)
class ExportBatch:
    """The images of one group of masks.

    Attributes:
        index: position among all batches, from 0.
        name: name of the objects of the chunk in the output.
        images: images in the order of the chunk.
        shards: number of shards up to and including this one.
    """

    index: int
    name: str
    images: tuple[ExportImage, ...]
    shards: int


class ExportFormat(Protocol):
    """Interface of an export format. Each export makes one instance."""

    def write(self, batch: ExportBatch) -> Any:
        """Write the objects of one batch; return a small value for `add`. Called in any thread."""
        ...

    def add(self, written: Any) -> None:
        """Collect what `write` returned for one batch. Called in the order of the batches."""
        ...

    def finish(self) -> None:
        """Write the objects that describe all batches."""
        ...


class ExportNames:
    """Names the images of an export with unique relative paths.

    Args:
        by: "key"; "shard" (shard and key); or "own": the key, unique within its shard only.
        spell: function that makes a name valid in the format.
    """

    def __init__(self, by: str, spell: Callable[[str], str] = str) -> None:
        self.by = by
        self.spell = spell
        self._taken: set[int] = set()
        self._shard = ""

    def name(self, shard: str, key: str) -> str:
        """Return the name of an image. Calls for the images of one shard must be consecutive.

        Raises:
            ConfigError: another image already has this name.
        """
        if self.by == "own" and shard != self._shard:
            self._shard = shard
            self._taken.clear()
        name = self.spell(f"{shard}/{key}" if self.by == "shard" else key)
        digest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
        if digest in self._taken:
            raise ConfigError(
                where=f"image {key} of shard {shard}",
                found=f"another image has the name {name!r} too",
                expected="a different name for every image",
                remedy="Add --names shard."
                if self.by == "key"
                else "Rename one of them in the input and segment it again.",
            )
        self._taken.add(digest)
        return name


def flatten_name(name: str) -> str:
    """Return a name without folders and spaces, for lists of ids.

    >>> flatten_name("a/b c")
    'a_b_c'
    """
    return re.sub(r"[/\s]", "_", name)


class SpooledLines:
    """Texts without line breaks, kept in order in a temporary file.

    Args:
        files: exit stack that closes the temporary file.
    """

    def __init__(self, files: ExitStack) -> None:
        file = tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n")
        self._file = files.enter_context(file)

    def add(self, texts: Iterable[str]) -> None:
        """Append texts."""
        self._file.writelines(f"{text}\n" for text in texts)

    def __iter__(self) -> Iterator[str]:
        self._file.seek(0)
        for line in self._file:
            yield line[:-1]

    def write_to(self, path: Path, around: tuple[str, str], between: str) -> None:
        """Append a head, all texts with a separator between them, and a tail to a file.

        Args:
            path: file to append to.
            around: (head, tail).
            between: separator.
        """
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(around[0])
            for index, text in enumerate(self):
                file.write(f"{between}{text}" if index else text)
            file.write(around[1])
