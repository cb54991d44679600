"""Packing of images and labels into WebDataset tars (`fcnseg shard`), with repeatable bytes."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import InputError, OutputError
from pipeline.formats import encode_tar
from pipeline.inputs.listing import Listing, check_key, list_input, split_suffix
from pipeline.storage.backend import ObjectInfo
from pipeline.storage.store import Store


@dataclass(frozen=True)
class Packed:
    """Result of packing.

    Attributes:
        shards: number of tars.
        images: number of packed images.
        labeled_images: number of packed images with a label.
        left_out: (path, reason) of every image that was not packed.
    """

    shards: int
    images: int
    labeled_images: int
    left_out: tuple[tuple[str, str], ...]


def pack_folder(images: Store, labels: Store | None, output: Store, shard_size: int) -> Packed:
    """Write the images of a folder as `shard-000000.tar`, …, sorted by key.

    The encoded bytes are copied; nothing is decoded.

    Args:
        images: folder of images.
        labels: folder of label PNGs; None if there are none, or they are in `labels/` of the same
            folder.
        output: folder of the tars.
        shard_size: samples per tar.

    Raises:
        InputError: not a folder of images.
        OutputError: the output already contains other objects.
    """
    listing = list_input(images, labels)
    if listing.kind != "folder":
        raise InputError(
            where=images.url,
            found=f"{listing.kind} shards",
            expected="a folder of loose images",
            remedy="Use these shards as INPUT without packing.",
        )
    chosen, left_out = _samples(listing)
    label_store = labels or images
    samples = [_tar_sample(triple, images, label_store) for triple in chosen]
    return replace(write_tars(samples, output, shard_size), left_out=tuple(left_out))


@dataclass(frozen=True)
class TarSample:
    """A sample for a tar; its bytes are read when the tar is written.

    Attributes:
        key: key of the sample.
        suffix: suffix of the image, in lower case, with its dot.
        image: returns the bytes of the image.
        label: returns the bytes of the label, a PNG; None for a sample without a label.
    """

    key: str
    suffix: str
    image: Callable[[], bytes]
    label: Callable[[], bytes] | None


def write_tars(samples: Sequence[TarSample], output: Store, shard_size: int) -> Packed:
    """Write samples as `shard-000000.tar`, …, `shard_size` samples each, in the given order.

    One tar at a time is in memory.

    Raises:
        OutputError: the output already contains other objects.
    """
    names = [f"shard-{i:06d}.tar" for i in range((len(samples) + shard_size - 1) // shard_size)]
    existing = {info.path for info in output.objects()}
    others = sorted(existing - set(names))
    if others:
        raise OutputError(
            where=output.url,
            found=f"{others[0]} and {len(others) - 1} other objects",
            expected="an empty folder",
            remedy="Choose another OUTPUT, so that old and new shards do not mix.",
        )
    for index, name in enumerate(names):
        data = encode_tar(_members(samples[index * shard_size : (index + 1) * shard_size]))
        if name in existing and output.read(name) != data:
            raise OutputError(
                where=output.url,
                found=f"another {name}",
                expected="an empty folder, or the same data packed before",
                remedy="Nothing was overwritten. Choose another OUTPUT.",
            )
        output.write(name, data)
    labeled = sum(sample.label is not None for sample in samples)
    return Packed(len(names), len(samples), labeled, ())


_Triple = tuple[str, ObjectInfo, ObjectInfo | None]


def _samples(listing: Listing) -> tuple[list[_Triple], list[tuple[str, str]]]:
    labels = listing.labels or {}
    samples: dict[str, _Triple] = {}
    left_out: list[tuple[str, str]] = []
    for info in listing.images:
        split = split_suffix(info.path[len(listing.image_root) :])
        key = split[0] if split else ""
        problem = check_key(key) if key else "the name has no key"
        if key in samples:
            problem = f"{samples[key][1].path} has the same key {key!r}"
        if problem:
            left_out.append((info.path, problem))
        else:
            samples[key] = (key, info, labels.get(key))
    return [samples[key] for key in sorted(samples)], left_out


def _tar_sample(triple: _Triple, images: Store, labels: Store) -> TarSample:
    key, image, label = triple
    return TarSample(
        key,
        posixpath.splitext(image.path)[1].lower(),
        lambda: images.read(image.path),
        None if label is None else lambda: labels.read(label.path),
    )


def _members(samples: Sequence[TarSample]) -> Iterator[tuple[str, bytes]]:
    for sample in samples:
        yield sample.key + sample.suffix, sample.image()
        if sample.label is not None:
            yield _label_name(sample.key, sample.suffix), sample.label()


def _label_name(key: str, suffix: str) -> str:
    # `key.png` would be a second image beside a PNG image, and with the key `a.seg` it would be the
    # label of the key `a`.
    plain = suffix != ".png" and split_suffix(f"{key}.png") == (key, ".png")
    return f"{key}.png" if plain else f"{key}.seg.png"
