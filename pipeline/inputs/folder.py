"""Virtual shards: a fixed assignment of loose images to shards, kept in `_index/` of the output.

Assigned images never move, so that the shards of an earlier run stay committed. New images get new
shards. A changed image changes the tag of its shard. A deleted image keeps its place and its last
known tag, so that its shard stays committed as well.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from pipeline.errors import OutputError
from pipeline.formats import read_parquet
from pipeline.inputs.listing import Listing, split_suffix
from pipeline.inputs.selection import Selection
from pipeline.inputs.shard import Member, Shard
from pipeline.paths import VIRTUAL_SHARDS, virtual_shards_path
from pipeline.storage.backend import ObjectInfo
from pipeline.storage.store import Store

_STRINGS = ("shard", "key", "image", "label", "image_etag", "label_etag")


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row of the index: an image and its shard; the tags are those of image and label."""

    shard: str
    key: str
    image: str
    label: str | None
    image_etag: str
    label_etag: str | None
    size: int


@dataclass(frozen=True)
class ShardAssignment:
    """The virtual shards of a folder, and the changes since the index was written.

    Attributes:
        shards: indexed and new shards, sorted by id.
        changes: rows that `write_index` has to write; empty if the index is up to date.
        generation: number of the index object for the changes.
        vanished: indexed images that the folder no longer contains, sorted.
        unpacked: number of images without a shard, because the run excludes them.
        selected: ids of the shards with at least one image that the run does not exclude.
    """

    shards: tuple[Shard, ...]
    changes: tuple[_Entry, ...]
    generation: int
    vanished: tuple[str, ...]
    unpacked: int
    selected: frozenset[str]


def assign_shards(
    listing: Listing, output: Store, shard_size: int, excluded: frozenset[str] = frozenset()
) -> ShardAssignment:
    """Return which image of a folder is in which shard, honoring the index. Writes nothing.

    An excluded image does not change: if it is indexed, it keeps its shard and its last known tag;
    if it is new, it gets no shard.

    Args:
        listing: listing of kind "folder".
        output: store with the index, in `_index/`.
        shard_size: images per new shard.
        excluded: paths of the images that this run excludes; see `find_excluded_images`.

    Raises:
        OutputError: the index is damaged.
    """
    indexed, generations = _read_index(output)
    current = _entries_of(listing)
    others = {image for image in excluded if image in current}
    for image in others:
        del current[image]
    changes = []
    for image, entry in current.items():
        known = indexed.get(image)
        if known is not None and replace(known, shard="") != entry:
            changes.append(replace(entry, shard=known.shard))
    # By (key, path): an order that does not depend on the store's listing.
    new = sorted(
        (e for i, e in current.items() if i not in indexed), key=lambda e: (e.key, e.image)
    )
    first = len({entry.shard for entry in indexed.values()})
    changes.extend(
        replace(entry, shard=f"images-{first + index // shard_size:06d}")
        for index, entry in enumerate(new)
    )
    entries = {**indexed, **{entry.image: entry for entry in changes}}
    return ShardAssignment(
        shards=_shards(entries.values()),
        changes=tuple(changes),
        generation=generations,
        vanished=tuple(sorted(indexed.keys() - current.keys() - others)),
        unpacked=len(others - indexed.keys()),
        selected=frozenset(entries[image].shard for image in current),
    )


def write_index(assignment: ShardAssignment, output: Store) -> None:
    """Write the changes of an assignment to the index; only the holder of the lease may call it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not assignment.changes:
        return
    rows = [asdict(entry) for entry in assignment.changes]
    schema = pa.schema([*((name, pa.string()) for name in _STRINGS), ("size", pa.int64())])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    output.write(virtual_shards_path(assignment.generation), buffer.getvalue())


def _read_index(output: Store) -> tuple[dict[str, _Entry], int]:
    """Return (entry by image, number of index objects); later objects override earlier ones."""
    import pyarrow as pa

    entries: dict[str, _Entry] = {}
    infos = output.objects(VIRTUAL_SHARDS)
    for info in infos:
        try:
            rows = read_parquet(output.read(info.path)).to_pylist()
            entries.update((row["image"], _Entry(**row)) for row in rows)
        except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
            raise OutputError(
                where=output.location(info.path),
                found=f"unreadable ({str(error).strip()})",
                expected="the index of a folder of images",
                remedy="Restore it, or use a new OUTPUT: only the index assigns images to shards.",
            ) from error
    return entries, len(infos)


def find_excluded_images(listing: Listing, selection: Selection) -> frozenset[str]:
    """Return the paths of the images of a folder that a selection excludes.

    Globs match the path or the key of an image. The modification time of a sample is the later one
    of image and label.

    Raises:
        InputError: the globs select no image.
        ConfigError: see `Selection.is_recent`.
    """
    labels = listing.labels or {}
    others, matching = set(), 0
    for info in listing.images if not selection.is_all else ():
        key, _ = split_suffix(info.path[len(listing.image_root) :]) or (info.path, "")
        is_named = selection.names(info.path, key)
        matching += is_named
        if not is_named or not selection.is_recent(_modified(info, labels.get(key)), info.path):
            others.add(info.path)
    selection.refuse_none(listing.where, matching, f"{len(listing.images)} images")
    return frozenset(others)


def _entries_of(listing: Listing) -> dict[str, _Entry]:
    labels = listing.labels or {}
    entries = {}
    for info in listing.images:
        split = split_suffix(info.path[len(listing.image_root) :])
        if split is None:  # a name without a key, such as ".jpg"
            continue
        label = labels.get(split[0])
        entries[info.path] = _Entry(
            shard="",
            key=split[0],
            image=info.path,
            label=label.path if label else None,
            image_etag=info.etag,
            label_etag=label.etag if label else None,
            size=info.size + (label.size if label else 0),
        )
    return entries


def _modified(image: ObjectInfo, label: ObjectInfo | None) -> float | None:
    """Return the modification time of a sample; None if unknown for image or label."""
    moments = [info.modified for info in (image, label) if info is not None]
    known = [moment for moment in moments if moment is not None]
    return max(known) if len(known) == len(moments) else None


def _shards(entries: Iterable[_Entry]) -> tuple[Shard, ...]:
    by_shard: dict[str, list[_Entry]] = defaultdict(list)
    for entry in entries:
        by_shard[entry.shard].append(entry)
    shards = []
    for shard_id in sorted(by_shard):
        members = sorted(by_shard[shard_id], key=lambda e: (e.key, e.image))
        digest = hashlib.sha256()
        for e in members:
            digest.update("\0".join((e.key, e.image, e.image_etag, e.label_etag or "")).encode())
            digest.update(b"\n")
        shards.append(
            Shard(
                id=shard_id,
                kind="folder",
                path="",
                size=sum(e.size for e in members),
                etag=digest.hexdigest(),
                members=tuple(Member(e.key, e.image, e.label) for e in members),
            )
        )
    return tuple(shards)
