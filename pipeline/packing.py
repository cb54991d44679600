"""`fcnseg shard`: a folder of images and labels into WebDataset tars, the same bytes every time."""

from __future__ import annotations

import io
import posixpath
import tarfile
from dataclasses import dataclass

from pipeline.errors import InputError, OutputError
from pipeline.shards import Listing, check_key, list_input, split_suffix
from pipeline.store import ObjectInfo, Store
from pipeline.writers import add_to_tar


@dataclass(frozen=True)
class Packed:
    """What was written, and what was left out: (path, reason) each."""

    shards: int
    images: int
    labeled_images: int
    left_out: tuple[tuple[str, str], ...]


def pack_folder(images: Store, labels: Store | None, output: Store, shard_size: int) -> Packed:
    """Write `shard-000000.tar`, … with `shard_size` samples each, by sorted key.

    Bytes are copied as they are: nothing is decoded, so nothing is lost.

    Raises:
        InputError: no folder of images.
        OutputError: the output already holds other objects.
    """
    listing = list_input(images, labels)
    if listing.kind != "folder":
        raise InputError(
            images.url,
            f"{listing.kind} shards already",
            "a folder of loose images",
            "Use it as it is.",
        )
    samples, left_out = _samples(listing)
    names = [f"shard-{i:06d}.tar" for i in range((len(samples) + shard_size - 1) // shard_size)]
    there = {info.path for info in output.objects()}
    others = sorted(there - set(names))
    if others:
        raise OutputError(
            output.url,
            f"{others[0]} and {len(others) - 1} other objects",
            "an empty place",
            "Choose another OUTPUT: old and new shards would mix.",
        )
    label_store = labels or images
    for index, name in enumerate(names):
        part = samples[index * shard_size : (index + 1) * shard_size]
        data = _tar(part, images, label_store)
        if name in there and output.read(name) != data:
            raise OutputError(
                output.url,
                f"another {name}",
                "an empty place, or the same folder packed before",
                "Nothing was overwritten. Choose another OUTPUT.",
            )
        output.write(name, data)
    labeled = sum(label is not None for _, _, label in samples)
    return Packed(len(names), len(samples), labeled, tuple(left_out))


_Triple = tuple[str, ObjectInfo, ObjectInfo | None]


def _samples(listing: Listing) -> tuple[list[_Triple], list[tuple[str, str]]]:
    labels = listing.labels or {}
    samples: dict[str, _Triple] = {}
    left_out: list[tuple[str, str]] = []
    for info in listing.images:
        split = split_suffix(info.path[len(listing.image_root) :])
        key = split[0] if split else ""
        problem = check_key(key) if key else "a name without a key"
        if key in samples:
            problem = f"the key {key!r} is taken by {samples[key][1].path}"
        if problem:
            left_out.append((info.path, problem))
        else:
            samples[key] = (key, info, labels.get(key))
    return [samples[key] for key in sorted(samples)], left_out


def _tar(samples: list[_Triple], images: Store, labels: Store) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for key, image, label in samples:
            suffix = posixpath.splitext(image.path)[1].lower()
            add_to_tar(tar, key + suffix, images.read(image.path))
            if label is not None:
                # Beside a PNG image, `key.png` would be a second image; after the key `a.seg`, it
                # would be the label of `a`.
                plain = suffix != ".png" and split_suffix(f"{key}.png") == (key, ".png")
                name = f"{key}.png" if plain else f"{key}.seg.png"
                add_to_tar(tar, name, labels.read(label.path))
    return buffer.getvalue()
