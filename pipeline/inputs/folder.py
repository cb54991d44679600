"""Virtual shards: which loose image belongs to which shard, frozen in `_index/` of the output.

New images make new shards, a changed image changes its shard's tag, nothing shifts: the shards of
an earlier run stay done. A vanished image keeps its place and its last known tag, so that its shard
stays done as well.
"""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.formats import read_parquet
from pipeline.inputs.listing import Listing, split_suffix
from pipeline.inputs.selection import Selection
from pipeline.inputs.shard import Member, Shard
from pipeline.paths import VIRTUAL_SHARDS, virtual_shards_path
from pipeline.storage.backend import ObjectInfo
from pipeline.storage.store import Store

_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("shard", "key", "image", "label", "image_etag", "label_etag")]
    + [("size", pa.int64())]
)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One row of the index: an image and the shard it was given to."""

    shard: str
    key: str
    image: str
    label: str | None
    image_etag: str
    label_etag: str | None
    size: int


@dataclass(frozen=True)
class Packing:
    """The virtual shards of a folder, and what is new about them.

    Attributes:
        shards: all of them, frozen and new, by id.
        changes: rows that `freeze` has to write; empty when the index is up to date.
        generation: number of the index object they go to.
        vanished: images of the index that the folder no longer holds, sorted.
        unpacked: how many images are in no shard, because they are left out.
        selected: shards that hold an image that is not left out.
    """

    shards: tuple[Shard, ...]
    changes: tuple[_Entry, ...]
    generation: int
    vanished: tuple[str, ...]
    unpacked: int
    selected: frozenset[str]


def pack(
    listing: Listing, output: Store, shard_size: int, without: frozenset[str] = frozenset()
) -> Packing:
    """Give every image of a folder its shard, honouring the frozen index. Writes nothing.

    What is left out stays as it is: in its shard with its last known tag if it is frozen, in no
    shard if it is new.

    Args:
        listing: of kind "folder".
        output: whose `_index/` is honoured.
        shard_size: images per new shard.
        without: images that this run leaves out; see `left_out`.

    Raises:
        OutputError: the index is damaged.
    """
    frozen, generations = _read_index(output)
    current = _current(listing)
    others = {image for image in without if image in current}
    for image in others:
        del current[image]
    changes = []
    for image, entry in current.items():
        known = frozen.get(image)
        if known is not None and replace(known, shard="") != entry:
            changes.append(replace(entry, shard=known.shard))
    # By (key, path): an order that does not depend on the store's listing.
    new = sorted((e for i, e in current.items() if i not in frozen), key=lambda e: (e.key, e.image))
    first = len({entry.shard for entry in frozen.values()})
    changes.extend(
        replace(entry, shard=f"images-{first + index // shard_size:06d}")
        for index, entry in enumerate(new)
    )
    entries = {**frozen, **{entry.image: entry for entry in changes}}
    return Packing(
        shards=_shards(entries.values()),
        changes=tuple(changes),
        generation=generations,
        vanished=tuple(sorted(frozen.keys() - current.keys() - others)),
        unpacked=len(others - frozen.keys()),
        selected=frozenset(entries[image].shard for image in current),
    )


def freeze(packing: Packing, output: Store) -> None:
    """Write what is new to the index. Only the holder of the lease may call this."""
    if not packing.changes:
        return
    rows = [asdict(entry) for entry in packing.changes]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), buffer)
    output.write(virtual_shards_path(packing.generation), buffer.getvalue())


def _read_index(output: Store) -> tuple[dict[str, _Entry], int]:
    """(entry of each image, number of index objects): later objects override earlier ones."""
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
                remedy="Restore it, or use a new OUTPUT: only it knows which image is in which shard.",
            ) from error
    return entries, len(infos)


def left_out(listing: Listing, selection: Selection) -> frozenset[str]:
    """The images of a folder that a selection does not mean, by path or key, or by their age.

    Raises:
        InputError: no image matches.
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


def _current(listing: Listing) -> dict[str, _Entry]:
    labels = listing.labels or {}
    entries = {}
    for info in listing.images:
        split = split_suffix(info.path[len(listing.image_root) :])
        if split is None:  # ".jpg" alone: a name without a key
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
    """When a sample was last changed; None if that is unknown of either."""
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
