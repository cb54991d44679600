"""Export to the layout of the PASCAL VOC development kit, for torchvision's `VOCSegmentation`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from fcn_core.images import decode_image
from pipeline.export.format import ExportBatch, ExportImage, ExportSubject, SpooledLines
from pipeline.formats import encode_jpeg
from pipeline.inputs.voc import IMAGES, LABELS, LISTS

ROOT = "VOCdevkit/VOC2012"
"""Folder in which torchvision looks. `--layout voc` of this project finds it as well."""


_JPEG_QUALITY = 95


class Voc:
    """Writes images, unchanged masks, a list of ids, and a label map with the colors."""

    def __init__(self, subject: ExportSubject) -> None:
        self.subject = subject
        self._ids = SpooledLines(subject.files)

    def write(self, batch: ExportBatch) -> list[str]:
        """Write the images and masks of a batch; return their ids."""
        self.subject.target.put_all(self._objects(batch))
        return [image.name for image in batch.images]

    def add(self, written: list[str]) -> None:
        """Append the ids of a batch."""
        self._ids.add(written)

    def finish(self) -> None:
        """Upload the list of ids and the label map."""
        options, store = self.subject.options, self.subject.target.store
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ids"
            self._ids.write_to(path, ("", "\n"), "\n")
            store.upload(f"{ROOT}/{LISTS}/{options.split}.txt", path)
        store.write(f"{ROOT}/labelmap.txt", self._labelmap().encode())

    def _objects(self, batch: ExportBatch) -> Iterator[tuple[str, bytes]]:
        for image in batch.images:
            if image.row.image is not None:
                yield f"{ROOT}/{IMAGES}/{image.name}.jpg", _jpeg(image)
            yield f"{ROOT}/{LABELS}/{image.name}.png", image.row.png

    def _labelmap(self) -> str:
        labels = self.subject.labels
        lines = ["# label:color_rgb:parts:actions"]
        for name, colour in zip(labels.classes, labels.palette, strict=True):
            lines.append(f"{name}:{','.join(map(str, colour))}::")
        return "\n".join(lines) + "\n"


def _jpeg(image: ExportImage) -> bytes:
    """Return the image as a JPEG, unchanged if it is one. Readers of VOC look for ID.jpg only."""
    data = image.row.image
    assert data is not None
    if image.file_name.endswith(".jpg"):
        return data
    return encode_jpeg(decode_image(data, image.name), quality=_JPEG_QUALITY)
