"""Export to Label Studio: tasks with brush masks as predictions, which annotators correct."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.export.format import ExportBatch, ExportImage, ExportSubject

LOCAL_FILES = "/data/local-files/?d=images/"
"""Address of the images if DEST is the LOCAL_FILES_DOCUMENT_ROOT of Label Studio."""


_SIZES = (3, 4, 8, 16)
"""Possible bit widths of a run length; each run stores the index of its width."""


class LabelStudio:
    """Writes `tasks/<chunk>.json`, the labeling interface, and the images."""

    def __init__(self, subject: ExportSubject) -> None:
        self.subject = subject
        self._kept = subject.kept_classes()
        options = subject.options
        if options.image_root is None and not options.images:
            raise ConfigError(
                where="--no-images",
                found="no images and no --image-root",
                expected="an address where Label Studio finds the images",
                remedy="Add --image-root, for example s3://bucket/photos.",
            )
        self._root = LOCAL_FILES if options.image_root is None else f"{options.image_root}/"

    def write(self, batch: ExportBatch) -> None:
        """Write the images and tasks of a batch. One task file per batch keeps files small."""
        target = self.subject.target
        target.put_all(
            (f"images/{image.file_name}", image.row.image)
            for image in batch.images
            if image.row.image is not None
        )
        tasks = json.dumps([self._task(image) for image in batch.images])
        target.store.write(f"tasks/{batch.name}.json", tasks.encode())

    def add(self, written: None) -> None:
        """Do nothing: `write` has written the whole batch."""

    def finish(self) -> None:
        """Write the labeling interface, with the classes and their colors."""
        labels = self.subject.labels
        lines = [
            f'    <Label value={quoteattr(labels.classes[k])} background="#{colour}"/>'
            for k in self._kept
            for colour in [bytes(labels.palette[k]).hex()]
        ]
        text = "\n".join(
            [
                "<View>",
                '  <Image name="image" value="$image" zoom="true"/>',
                '  <BrushLabels name="mask" toName="image">',
                *lines,
                "  </BrushLabels>",
                "</View>",
                "",
            ]
        )
        self.subject.target.store.write("label_config.xml", text.encode())

    def _task(self, image: ExportImage) -> dict[str, Any]:
        name = image.file_name
        # Names are percent-encoded in web addresses, but not in storage addresses.
        is_storage = not self._root.startswith(("http://", "https://", "/"))
        prediction: dict[str, Any] = {
            "model_version": f"{self.subject.about['variant']} {self.subject.about['fingerprint']}",
            "result": [self._brush(image, k, m) for k, m in image.classes(self._kept)],
        }
        if image.row.mean_confidence is not None:
            prediction["score"] = image.row.mean_confidence
        address = self._root + (name if is_storage else quote(name))
        about = {"key": image.row.key, "shard": image.shard}
        return {"data": {"image": address, **about}, "predictions": [prediction]}

    def _brush(self, image: ExportImage, index: int, pixels: NDArray[np.bool_]) -> dict[str, Any]:
        height, width = pixels.shape
        name = self.subject.labels.classes[index]
        return {
            "id": f"c{index}",
            "type": "brushlabels",
            "from_name": "mask",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": list(brush_rle(pixels)), "brushlabels": [name]},
        }


def brush_rle(pixels: NDArray[np.bool_]) -> bytes:
    """Return the run lengths of Label Studio's brush: RGBA bytes, 255 where a pixel is set.

    Source: @thi.ng/rle-pack, which Label Studio uses. The head has 32 bits for the number of
    bytes, 5 bits for (bits per value - 1), and 4 bits for each of the four (`_SIZES` - 1). Each
    run has one bit 1, 2 bits for the index into `_SIZES`, (length - 1) in that many bits, and
    8 bits for the value. Zeros fill the last byte.

    Args:
        pixels: (H, W) bool, True where the class is.
    """
    flat = pixels.ravel()
    ends = np.flatnonzero(np.append(flat[1:] != flat[:-1], True)) + 1
    lengths = 4 * np.diff(ends, prepend=0)
    bits = [f"{4 * flat.size:032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for end, length in zip(ends.tolist(), lengths.tolist(), strict=True):
        value = "1" * 8 if flat[end - 1] else "0" * 8
        while length > 0:
            run = min(length, 2 ** _SIZES[-1])
            which = next(w for w, size in enumerate(_SIZES) if run <= 2**size)
            bits.append(f"1{which:02b}{run - 1:0{_SIZES[which]}b}{value}")
            length -= run
    text = "".join(bits)
    padded = -(-len(text) // 8)
    return int(text.ljust(8 * padded, "0"), 2).to_bytes(padded, "big")
