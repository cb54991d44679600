"""Export to COCO: one segment per class and image, as run lengths or as panoptic PNGs.

Source: "Data format" on cocodataset.org, stuff segmentation and panoptic segmentation. A semantic
network does not separate instances, so no class is a "thing" and no segment is a crowd.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_core.errors import MissingPackageError
from fcn_core.images import encode_image
from fcn_core.labels import LabelSet
from pipeline.export.format import ExportBatch, ExportImage, ExportSubject, SpooledLines

_PER_IMAGE = 256
"""An annotation id is 256 x the image id + the category id. Category ids are below 256."""


CocoObject = tuple[list[str], list[str]]
"""(JSON texts of images, JSON texts of their annotations)."""


class _Lists:
    """Collects the lists `images` and `annotations` of one JSON file, in order."""

    def __init__(self, subject: ExportSubject, path: str) -> None:
        self.subject = subject
        self.path = path
        self._images, self._annotations = SpooledLines(subject.files), SpooledLines(subject.files)

    def add(self, written: CocoObject) -> None:
        """Append the images and annotations of a batch."""
        self._images.add(written[0])
        self._annotations.add(written[1])

    def upload(self, categories: Sequence[dict[str, Any]]) -> None:
        """Upload the complete JSON file."""
        start = json.dumps({"info": self._info(), "licenses": [], "categories": categories})
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "annotations.json"
            self._images.write_to(file, (start[:-1] + ',\n"images": [\n', "\n],\n"), ",\n")
            self._annotations.write_to(file, ('"annotations": [\n', "\n]}\n"), ",\n")
            self.subject.target.store.upload(self.path, file)

    def _info(self) -> dict[str, Any]:
        about = self.subject.about
        text = f"Predictions of {about['variant']} on {about['input']}, by fcn-pipeline"
        return {"description": text, "version": about["fingerprint"]}


class Coco:
    """Writes `annotations.json` with the run lengths of pycocotools, and the images."""

    def __init__(self, subject: ExportSubject) -> None:
        """Check that pycocotools is installed.

        Raises:
            MissingPackageError: pycocotools cannot be imported.
        """
        _pycocotools()
        self.subject = subject
        self._lists = _Lists(subject, "annotations.json")
        self._kept = subject.kept_classes()

    def write(self, batch: ExportBatch) -> CocoObject:
        """Write the images of a batch; return their JSON entries."""
        self.subject.target.put_all(_image_files(batch))
        annotations = (one for image in batch.images for one in self._annotations(image))
        return [json.dumps(_image(image)) for image in batch.images], list(annotations)

    def add(self, written: CocoObject) -> None:
        """Append the JSON entries of a batch."""
        self._lists.add(written)

    def finish(self) -> None:
        """Upload `annotations.json`."""
        names = self.subject.labels.classes
        self._lists.upload([_category(k, names[k]) for k in self._kept])

    def _annotations(self, image: ExportImage) -> Iterator[str]:
        tools = _pycocotools()
        for k, pixels in image.classes(self._kept):
            rle = tools.encode(np.asfortranarray(pixels, np.uint8))
            yield json.dumps(
                {
                    "id": image.number * _PER_IMAGE + k + 1,
                    "image_id": image.number,
                    "category_id": k + 1,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "area": int(tools.area(rle)),
                    "bbox": [float(side) for side in tools.toBbox(rle)],
                    "iscrowd": 0,
                }
            )


class Panoptic:
    """Writes `panoptic.json`, one PNG of segment ids per image in `panoptic/`, and the images."""

    def __init__(self, subject: ExportSubject) -> None:
        self.subject = subject
        self._lists = _Lists(subject, "panoptic.json")
        self._kept = subject.kept_classes()
        self._ids = segment_ids(subject.labels)

    def write(self, batch: ExportBatch) -> CocoObject:
        """Write the images of a batch and their PNGs; return their JSON entries."""
        self.subject.target.put_all(_image_files(batch))
        self.subject.target.put_all(
            (f"panoptic/{image.name}.png", self._png(image)) for image in batch.images
        )
        images = [json.dumps(_image(image)) for image in batch.images]
        return images, [json.dumps(self._annotation(image)) for image in batch.images]

    def add(self, written: CocoObject) -> None:
        """Append the JSON entries of a batch."""
        self._lists.add(written)

    def finish(self) -> None:
        """Upload `panoptic.json`."""
        labels = self.subject.labels
        self._lists.upload(
            [
                {
                    **_category(k, labels.classes[k]),
                    "isthing": 0,
                    "color": list(labels.palette[k]),
                }
                for k in self._kept
            ]
        )

    def _png(self, image: ExportImage) -> bytes:
        """Return an RGB PNG of segment ids, R + 256 G + 256 x 256 B; black is no segment."""
        table = np.zeros((256, 3), np.uint8)
        for k in self._kept:
            number = self._ids[k]
            table[k] = number & 255, number >> 8 & 255, number >> 16
        return encode_image(table[image.mask])

    def _annotation(self, image: ExportImage) -> dict[str, Any]:
        segments = [
            {
                "id": self._ids[k],
                "category_id": k + 1,
                "area": int(np.count_nonzero(pixels)),
                "bbox": _box(pixels),
                "iscrowd": 0,
            }
            for k, pixels in image.classes(self._kept)
        ]
        name = f"{image.name}.png"
        return {"image_id": image.number, "file_name": name, "segments_info": segments}


def segment_ids(labels: LabelSet) -> list[int]:
    """Return the segment id of every class: its color as a number, so PNGs show the palette.

    A class gets the smallest free id instead where its color is black (0 means no segment) or
    an earlier class has the same color.

    >>> segment_ids(LabelSet("two", ("a", "b"), palette=((0, 0, 0), (3, 2, 1))))
    [1, 66051]
    """
    ids: list[int] = []
    wanted = [red + 256 * green + 256**2 * blue for red, green, blue in labels.palette]
    for number in wanted:
        if number == 0 or number in ids:
            number = next(n for n in range(1, 256**3) if n not in ids and n not in wanted)
        ids.append(number)
    return ids


def _image_files(batch: ExportBatch) -> Iterator[tuple[str, bytes]]:
    for image in batch.images:
        if image.row.image is not None:
            yield f"images/{image.file_name}", image.row.image


def _image(image: ExportImage) -> dict[str, Any]:
    height, width = image.mask.shape
    return {
        "id": image.number,
        "file_name": image.file_name,
        "width": width,
        "height": height,
    }


def _category(index: int, name: str) -> dict[str, Any]:
    """Return a COCO category. Its id is the class index + 1, because 0 means unlabeled in COCO."""
    return {"id": index + 1, "name": name, "supercategory": name}


def _box(pixels: NDArray[np.bool_]) -> list[int]:
    """Return [x, y, width, height] of the True pixels; at least one pixel must be True."""
    columns, rows = (np.flatnonzero(pixels.any(axis)) for axis in (0, 1))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingPackageError(
            where="--format coco",
            found=f"pycocotools cannot be imported ({error})",
            expected="the package that encodes COCO run lengths",
            remedy="Install fcn-pipeline[coco].",
        ) from error
    return mask
