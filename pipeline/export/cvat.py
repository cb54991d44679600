"""Export to CVAT: `annotations.xml` ("CVAT 1.1") with masks, for a task with the same images."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from pipeline.export.format import ExportBatch, ExportImage, ExportSubject, SpooledLines


class Cvat:
    """Writes the annotations, the labels for the "Raw" editor of a CVAT task, and the images."""

    def __init__(self, subject: ExportSubject) -> None:
        self.subject = subject
        self._kept = subject.kept_classes()
        self._images = SpooledLines(subject.files)
        self._count = 0

    def write(self, batch: ExportBatch) -> list[str]:
        """Write the images of a batch; return their XML elements."""
        self.subject.target.put_all(
            (f"images/{image.file_name}", image.row.image)
            for image in batch.images
            if image.row.image is not None
        )
        return [self._image(image) for image in batch.images]

    def add(self, written: list[str]) -> None:
        """Append the XML elements of a batch."""
        self._images.add(written)
        self._count += len(written)

    def finish(self) -> None:
        """Upload `annotations.xml` and `labels.json`."""
        store = self.subject.target.store
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "annotations.xml"
            self._images.write_to(path, (self._head(), "\n</annotations>\n"), "\n")
            store.upload("annotations.xml", path)
        labels = [{**label, "attributes": []} for label in self._labels()]
        store.write("labels.json", json.dumps(labels, indent=1).encode())

    def _labels(self) -> list[dict[str, Any]]:
        labels = self.subject.labels
        return [
            {
                "name": labels.classes[k],
                "color": f"#{bytes(labels.palette[k]).hex()}",
                "type": "mask",
            }
            for k in self._kept
        ]

    def _head(self) -> str:
        labels = "".join(
            f"<label><name>{escape(label['name'])}</name><color>{label['color']}</color>"
            f"<type>{label['type']}</type><attributes></attributes></label>\n"
            for label in self._labels()
        )
        name = escape(str(self.subject.about["input"]))
        return (
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
            f"<meta><task><name>{name}</name><size>{self._count}</size><mode>annotation</mode>\n"
            f"<labels>\n{labels}</labels></task></meta>\n"
        )

    def _image(self, image: ExportImage) -> str:
        height, width = image.mask.shape
        masks = "".join(
            f"<mask label={quoteattr(self.subject.labels.classes[k])} {mask_attributes(pixels)}"
            ' source="auto" occluded="0" z_order="0"></mask>'
            for k, pixels in image.classes(self._kept)
        )
        name = quoteattr(image.file_name)
        number = image.number - 1
        return f'<image id="{number}" name={name} width="{width}" height="{height}">{masks}</image>'


def mask_attributes(pixels: NDArray[np.bool_]) -> str:
    """Return the XML attributes of a mask: its box, and the run lengths inside the box.

    Runs alternate between unset and set pixels, row by row, and begin with unset pixels.
    """
    columns, rows = (np.flatnonzero(pixels.any(axis)) for axis in (0, 1))
    left, top = int(columns[0]), int(rows[0])
    inside = pixels[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    height, width = inside.shape
    flat = inside.ravel()
    ends = np.flatnonzero(np.append(flat[1:] != flat[:-1], True)) + 1
    runs = np.diff(ends, prepend=0).tolist()
    text = ", ".join(map(str, [0, *runs] if flat[0] else runs))
    return f'rle="{text}" left="{left}" top="{top}" width="{width}" height="{height}"'
