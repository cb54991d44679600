"""WebDataset tars: image, mask and what is known about both, as `webdataset` reads them."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from typing import Any

from pipeline.export.format import ExportBatch, ExportImage, ExportSubject
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
        self.subject.target.store.write(f"{batch.name}.tar", data)

    def _members(self, batch: ExportBatch) -> Iterator[tuple[str, bytes]]:
        for image in batch.images:
            if image.row.image is not None:
                yield image.file_name, image.row.image
            yield image.name + MASK_SUFFIX, image.row.png
            yield f"{image.name}.json", json.dumps(self._about(image)).encode()

    def add(self, written: None) -> None:
        """Nothing is left to do."""

    def finish(self) -> None:
        """What the values of the masks mean."""
        labels = self.subject.labels
        document = {"classes": labels.classes, "palette": labels.palette, **self.subject.about}
        data = json.dumps(document, indent=1).encode()
        self.subject.target.store.write("classes.json", data)

    def _about(self, image: ExportImage) -> dict[str, Any]:
        height, width = image.mask.shape
        return {
            "key": image.row.key,
            "shard": image.shard,
            "width": width,
            "height": height,
            "mean_confidence": image.row.mean_confidence,
        }


def without_dots(name: str) -> str:
    """A name whose last part has no dots: WebDataset ends a key at the first.

    >>> without_dots("v1.0/a.b.c")
    'v1.0/a_b_c'
    """
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.replace(".", "_"))
