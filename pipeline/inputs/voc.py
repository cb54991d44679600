"""PASCAL VOC development kit as an input: the images of one split, as a folder of images."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.errors import InputError
from pipeline.inputs.listing import IMAGE_SUFFIXES, Listing
from pipeline.inputs.splits import paths_by_id, read_split
from pipeline.storage.store import Store

LISTS = "ImageSets/Segmentation"

IMAGES = "JPEGImages"

LABELS = "SegmentationClass"

_REMEDY = "The list of seg11valid is in data/pascal of shelhamer/fcn.berkeleyvision.org."


def list_devkit(source: Store, split: str | None) -> Listing:
    """Return the images and labels of a split as a listing of kind "folder".

    Args:
        source: `VOC2012`, or a folder that contains one such folder.
        split: name of a list in `ImageSets/Segmentation`, or path or URL of a file of ids.

    Raises:
        ConfigError: the split does not exist.
        InputError: not a development kit, an id without an image, or labels for only some of the
            ids. A split without any labels is allowed, like the test split.
    """
    objects = {info.path: info for info in source.objects()}
    root = find_root(source, objects, rf"{LISTS}/[^/]+\.txt", f"{LISTS}/*.txt")
    ids = read_split(source, f"{root}{LISTS}", split, _REMEDY)
    images = paths_by_id(objects, f"{root}{IMAGES}/", IMAGE_SUFFIXES)
    labels = paths_by_id(objects, f"{root}{LABELS}/", (".png",))
    ids.refuse_missing(
        images,
        f"image {root}{IMAGES}/<id>.jpg",
        "Unpack the development kit with all of these ids.",
    )
    labeled = [name for name in ids.ids if name in labels]
    if labeled:
        ids.refuse_missing(
            labels,
            f"label {root}{LABELS}/<id>.png",
            "Add the labels, or remove the ids from the list.",
        )
    return Listing(
        kind="folder",
        where=source.url,
        images=tuple(objects[images[name]] for name in sorted(ids.ids)),
        labels={name: objects[labels[name]] for name in labeled},
        image_root=f"{root}{IMAGES}/",
        split=ids.description,
    )


def find_root(source: Store, paths: Iterable[str], mark: str, shown: str) -> str:
    """Return the folder of a dataset below a source: "" or a path that ends with `/`.

    Args:
        source: store that should contain the dataset.
        paths: paths of all objects in the store.
        mark: regular expression of a path below the folder that only this dataset has.
        shown: the same path for messages, like "ImageSets/Segmentation/*.txt".

    Raises:
        InputError: no such folder, or several.
    """
    pattern = re.compile(rf"^(.*/)?{mark}$")
    matches = (pattern.match(path) for path in paths)
    roots = sorted({match.group(1) or "" for match in matches if match})
    if len(roots) != 1:
        found = f"{len(roots)} datasets ({', '.join(roots)})" if roots else f"no {shown}"
        raise InputError(
            where=source.location(""),
            found=found,
            expected=f"one folder that contains {shown}",
            remedy="Give the folder of one of them."
            if roots
            else "Check the address and the --layout.",
        )
    return roots[0]
