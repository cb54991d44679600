"""`fcnseg shard`: images and labels into WebDataset tars, the same bytes every time."""

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
            where=images.url,
            found=f"{listing.kind} shards already",
            expected="a folder of loose images",
            remedy="Use it as it is.",
        )
    chosen, left_out = _samples(listing)
    label_store = labels or images
    samples = [_tar_sample(triple, images, label_store) for triple in chosen]
    return replace(write_tars(samples, output, shard_size), left_out=tuple(left_out))


@dataclass(frozen=True)
class TarSample:
    """A sample that is to go into a tar, and is read only then.

    Attributes:
        key: of the sample.
        suffix: of the image, lower case, with its dot.
        image: reads the image's bytes.
        label: reads the label's bytes, a PNG; None for a sample without one.
    """

    key: str
    suffix: str
    image: Callable[[], bytes]
    label: Callable[[], bytes] | None


def write_tars(samples: Sequence[TarSample], output: Store, shard_size: int) -> Packed:
    """Write `shard-000000.tar`, … with `shard_size` samples each, in their order.

    Raises:
        OutputError: the output already holds other objects.
    """
    names = [f"shard-{i:06d}.tar" for i in range((len(samples) + shard_size - 1) // shard_size)]
    there = {info.path for info in output.objects()}
    others = sorted(there - set(names))
    if others:
        raise OutputError(
            where=output.url,
            found=f"{others[0]} and {len(others) - 1} other objects",
            expected="an empty place",
            remedy="Choose another OUTPUT: old and new shards would mix.",
        )
    for index, name in enumerate(names):
        data = encode_tar(_members(samples[index * shard_size : (index + 1) * shard_size]))
        if name in there and output.read(name) != data:
            raise OutputError(
                where=output.url,
                found=f"another {name}",
                expected="an empty place, or the same data packed before",
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
        problem = check_key(key) if key else "a name without a key"
        if key in samples:
            problem = f"the key {key!r} is taken by {samples[key][1].path}"
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
    # Beside a PNG image, `key.png` would be a second image; after the key `a.seg`, it would be the
    # label of `a`.
    plain = suffix != ".png" and split_suffix(f"{key}.png") == (key, ".png")
    return f"{key}.png" if plain else f"{key}.seg.png"
