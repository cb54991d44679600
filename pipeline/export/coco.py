"""COCO: one segment per class and image, as run lengths or as panoptic PNGs.

Source: "Data format" of cocodataset.org: stuff segmentation and panoptic segmentation. Masks of a
semantic network do not tell instances apart, so no class is a "thing" and no segment a crowd.
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
"""Annotations have ids of their own: 256 x the image's id + the category's, which is below 256."""


CocoObject = tuple[list[str], list[str]]
"""JSON of some images, and of their annotations."""


class _Lists:
    """`images` and `annotations` of one JSON file, in order."""

    def __init__(self, subject: ExportSubject, path: str) -> None:
        self.subject = subject
        self.path = path
        self._images, self._annotations = SpooledLines(subject.files), SpooledLines(subject.files)

    def add(self, written: CocoObject) -> None:
        """Take those of a batch."""
        self._images.add(written[0])
        self._annotations.add(written[1])

    def put(self, categories: Sequence[dict[str, Any]]) -> None:
        """The whole file."""
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
    """`annotations.json` with run lengths as pycocotools writes them, and the images."""

    def __init__(self, subject: ExportSubject) -> None:
        """Raise MissingPackageError where pycocotools is not installed."""
        _pycocotools()
        self.subject = subject
        self._lists = _Lists(subject, "annotations.json")
        self._kept = subject.kept_classes()

    def write(self, batch: ExportBatch) -> CocoObject:
        """The images; what is written of them."""
        self.subject.target.put_all(_image_files(batch))
        annotations = (one for image in batch.images for one in self._annotations(image))
        return [json.dumps(_image(image)) for image in batch.images], list(annotations)

    def add(self, written: CocoObject) -> None:
        """Take it."""
        self._lists.add(written)

    def finish(self) -> None:
        """The one file."""
        names = self.subject.labels.classes
        self._lists.put([_category(k, names[k]) for k in self._kept])

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
    """`panoptic.json`, a PNG of segment ids per image in `panoptic/`, and the images."""

    def __init__(self, subject: ExportSubject) -> None:
        self.subject = subject
        self._lists = _Lists(subject, "panoptic.json")
        self._kept = subject.kept_classes()
        self._ids = segment_ids(subject.labels)

    def write(self, batch: ExportBatch) -> CocoObject:
        """The images and their PNGs; what is written of them."""
        self.subject.target.put_all(_image_files(batch))
        self.subject.target.put_all(
            (f"panoptic/{image.name}.png", self._png(image)) for image in batch.images
        )
        images = [json.dumps(_image(image)) for image in batch.images]
        return images, [json.dumps(self._annotation(image)) for image in batch.images]

    def add(self, written: CocoObject) -> None:
        """Take it."""
        self._lists.add(written)

    def finish(self) -> None:
        """The one file."""
        labels = self.subject.labels
        self._lists.put(
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
        """RGB, with R + 256 G + 256 x 256 B the id of the segment; black is no segment."""
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
    """The id of every class's segment: its colour where that is no other's and not black.

    So the PNGs look like the label set. Ids differ within an image, and 0 is no segment.

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
    """Category ids are class indices + 1: in COCO, 0 means unlabelled."""
    return {"id": index + 1, "name": name, "supercategory": name}


def _box(pixels: NDArray[np.bool_]) -> list[int]:
    """[x, y, width, height] of what is True, of which there is some."""
    columns, rows = (np.flatnonzero(pixels.any(axis)) for axis in (0, 1))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingPackageError(
            where="--format coco",
            found=f"pycocotools is not to be had here ({error})",
            expected="the package that packs COCO's run lengths",
            remedy="Install fcn-pipeline[coco].",
        ) from error
    return mask
