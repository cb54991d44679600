"""WebDataset tars: image, mask and what is known about both, as `webdataset` reads them."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from typing import Any

from pipeline.export.form import ExportBatch, ExportImage, ExportSubject
from pipeline.formats import encode_tar

MASK_SUFFIX = ".mask.png"
"""`fcnseg run` takes such a member for a label: masks can be learned from."""


class WebDataset:
    """A tar per chunk of the run: `KEY.jpg`, `KEY.mask.png`, `KEY.json`; and `classes.json`."""

    def __init__(self, subject: ExportSubject) -> None:
        self.subject = subject

    def write(self, batch: ExportBatch) -> None:
        """The tar."""
        data = encode_tar(self._members(batch))
        self.subject.place.store.write(f"{batch.name}.tar", data)

    def _members(self, batch: ExportBatch) -> Iterator[tuple[str, bytes]]:
        for picture in batch.pictures:
            if picture.labelled.image is not None:
                yield picture.file_name, picture.labelled.image
            yield picture.name + MASK_SUFFIX, picture.labelled.png
            yield f"{picture.name}.json", json.dumps(self._about(picture)).encode()

    def add(self, written: None) -> None:
        """Nothing is left to do."""

    def finish(self) -> None:
        """What the values of the masks mean."""
        labels = self.subject.labels
        document = {"classes": labels.classes, "palette": labels.palette, **self.subject.about}
        data = json.dumps(document, indent=1).encode()
        self.subject.place.store.write("classes.json", data)

    def _about(self, picture: ExportImage) -> dict[str, Any]:
        height, width = picture.mask.shape
        return {
            "key": picture.labelled.key,
            "shard": picture.shard,
            "width": width,
            "height": height,
            "mean_confidence": picture.labelled.mean_confidence,
        }


def without_dots(name: str) -> str:
    """A name whose last part has no dots: WebDataset ends a key at the first.

    >>> without_dots("v1.0/a.b.c")
    'v1.0/a_b_c'
    """
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.replace(".", "_"))
