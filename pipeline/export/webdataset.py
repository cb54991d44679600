"""Export to WebDataset tars: one image, mask and JSON record per sample."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from typing import Any

from pipeline.export.format import ExportBatch, ExportImage, ExportSubject
from pipeline.formats import encode_tar

MASK_SUFFIX = ".mask.png"
"""`fcnseg run` and `train` read tar members with this suffix as labels."""


class WebDataset:
    """Writes one tar per chunk with `KEY.jpg`, `KEY.mask.png`, `KEY.json`; and `classes.json`."""

    def __init__(self, subject: ExportSubject) -> None:
        self.subject = subject

    def write(self, batch: ExportBatch) -> None:
        """Write a batch as one tar."""
        data = encode_tar(self._members(batch))
        self.subject.target.store.write(f"{batch.name}.tar", data)

    def _members(self, batch: ExportBatch) -> Iterator[tuple[str, bytes]]:
        for image in batch.images:
            if image.row.image is not None:
                yield image.file_name, image.row.image
            yield image.name + MASK_SUFFIX, image.row.png
            yield f"{image.name}.json", json.dumps(self._about(image)).encode()

    def add(self, written: None) -> None:
        """Do nothing: `write` has written the whole batch."""

    def finish(self) -> None:
        """Write `classes.json`: the meaning of the mask values."""
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
    """Return a name without dots in its last part, because WebDataset ends a key at the first dot.

    >>> without_dots("v1.0/a.b.c")
    'v1.0/a_b_c'
    """
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.replace(".", "_"))
