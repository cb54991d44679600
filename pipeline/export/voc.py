"""The layout of the PASCAL VOC development kit, as torchvision's `VOCSegmentation` reads it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from fcn_core.images import decode_image
from pipeline.export.format import ExportBatch, ExportImage, ExportSubject, SpooledLines
from pipeline.formats import encode_jpeg
from pipeline.inputs.voc import IMAGES, LABELS, LISTS

ROOT = "VOCdevkit/VOC2012"
"""Where torchvision looks, and `--layout voc` of this project finds it as well."""


_QUALITY = 95


class Voc:
    """Images, masks as they are, a list of ids, and what the colours mean."""

    def __init__(self, subject: ExportSubject) -> None:
        self.subject = subject
        self._ids = SpooledLines(subject.files)

    def write(self, batch: ExportBatch) -> list[str]:
        """Image and mask of every image."""
        self.subject.target.put_all(self._objects(batch))
        return [image.name for image in batch.images]

    def add(self, written: list[str]) -> None:
        """Note the ids."""
        self._ids.add(written)

    def finish(self) -> None:
        """The list of ids, and the label map."""
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
    """The image: as it is, if it is a JPEG. Readers of VOC look for ID.jpg and for nothing else."""
    data = image.row.image
    assert data is not None
    if image.file_name.endswith(".jpg"):
        return data
    return encode_jpeg(decode_image(data, image.name), quality=_QUALITY)
