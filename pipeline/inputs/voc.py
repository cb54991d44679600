"""A PASCAL VOC development kit as INPUT: the images of one split, in virtual shards."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.errors import InputError
from pipeline.inputs.listing import IMAGE_SUFFIXES, Listing
from pipeline.inputs.splits import by_id, read_split
from pipeline.storage.store import Store

LISTS = "ImageSets/Segmentation"

IMAGES = "JPEGImages"

LABELS = "SegmentationClass"

_REMEDY = "Those of seg11valid are in data/pascal of shelhamer/fcn.berkeleyvision.org."


def list_devkit(source: Store, split: str | None) -> Listing:
    """The images and labels of a split, as a folder of images.

    Args:
        source: `VOC2012`, or a folder that holds one such.
        split: name of a list in `ImageSets/Segmentation`, or path or URL of a file of ids.

    Raises:
        ConfigError: no such split.
        InputError: no development kit; an id without its image; some ids without their label. That
            none has one is allowed: it is so of the test split.
    """
    objects = {info.path: info for info in source.objects()}
    root = find_root(source, objects, rf"{LISTS}/[^/]+\.txt", f"{LISTS}/*.txt")
    ids = read_split(source, f"{root}{LISTS}", split, _REMEDY)
    images = by_id(objects, f"{root}{IMAGES}/", IMAGE_SUFFIXES)
    labels = by_id(objects, f"{root}{LABELS}/", (".png",))
    ids.refuse_missing(
        images, f"image {root}{IMAGES}/<id>.jpg", "Unpack the development kit of all these ids."
    )
    labelled = [name for name in ids.ids if name in labels]
    if labelled:
        ids.refuse_missing(
            labels, f"label {root}{LABELS}/<id>.png", "Add the labels, or take the ids out."
        )
    return Listing(
        kind="folder",
        where=source.url,
        images=tuple(objects[images[name]] for name in sorted(ids.ids)),
        labels={name: objects[labels[name]] for name in labelled},
        image_root=f"{root}{IMAGES}/",
        split=ids.description,
    )


def find_root(source: Store, paths: Iterable[str], mark: str, shown: str) -> str:
    """The folder of a dataset below a source: "" or a path with `/` at its end.

    Args:
        source: where the dataset should be; for the error.
        paths: all objects there.
        mark: pattern of a path below the root that only this dataset has.
        shown: the same for people.

    Raises:
        InputError: none, or several.
    """
    pattern = re.compile(rf"^(.*/)?{mark}$")
    matches = (pattern.match(path) for path in paths)
    roots = sorted({match.group(1) or "" for match in matches if match})
    if len(roots) != 1:
        found = f"{len(roots)} datasets ({', '.join(roots)})" if roots else f"no {shown}"
        raise InputError(
            where=source.location(""),
            found=found,
            expected=f"one folder that holds {shown}",
            remedy="Name the folder of one of them."
            if roots
            else "Check the address and the --layout.",
        )
    return roots[0]
