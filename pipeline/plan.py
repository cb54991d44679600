"""The plan: what INPUT holds, what OUTPUT has, and so what is pending. Touches no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pipeline.chunks import Sources, count_images
from pipeline.devkit import list_devkit
from pipeline.errors import InputError, MissingError, ShardError
from pipeline.ledger import Entry, read_ledger
from pipeline.parquet_input import labels_passed_over
from pipeline.redo import read_redo
from pipeline.shards import Listing, Shard, list_input
from pipeline.store import Store
from pipeline.virtual import Packing, pack


@dataclass(frozen=True)
class Plan:
    """What there is to do.

    Attributes:
        shards: all shards of the input.
        pending: those to be labelled now, in order.
        outdated: of the pending ones, those whose earlier commit no longer holds.
        redo: see `PlanRequest`; as the output has it written down.
        ledger: all commits of the output, by shard.
        vanished: committed shards, and images of virtual shards, that the input no longer holds.
        packing: of a folder of images; its new rows are to be frozen before work starts.
        passed_over: see `Listing`.
        layout: of the input, as `Identity` keeps it.
        sources: where the shards' bytes come from.
    """

    shards: tuple[Shard, ...]
    pending: tuple[Shard, ...]
    outdated: tuple[str, ...]
    redo: Mapping[str, str]
    ledger: Mapping[str, Entry]
    vanished: int
    packing: Packing | None
    passed_over: tuple[str, ...]
    layout: str
    sources: Sources

    def count_images(self) -> tuple[int, dict[str, str]]:
        """(samples of readable shards, reason by unreadable shard): reads indexes, or commits."""
        total, unreadable = 0, {}
        for shard in self.shards:
            entry = self.ledger.get(shard.id)
            if entry is not None and entry.input_etag == shard.etag:
                total += entry.images + entry.failures
                continue
            try:
                total += count_images(shard, self.sources)
            except (ShardError, MissingError) as error:
                unreadable[shard.id] = str(error)
        return total, unreadable

    @property
    def bytes(self) -> int:
        """Encoded bytes of the whole input."""
        return sum(shard.size for shard in self.shards)

    @property
    def pending_bytes(self) -> int:
        """Encoded bytes still to be read."""
        return sum(shard.size for shard in self.pending)


@dataclass(frozen=True)
class PlanRequest:
    """What to plan.

    Attributes:
        images: INPUT.
        labels: parallel label folder, if any.
        output: OUTPUT.
        fingerprint: of this run; None to accept any.
        masks: formats that a commit must have.
        shard_size: images per virtual shard.
        limit_shards: at most this many pending shards.
        voc_split: INPUT is a PASCAL VOC development kit, and this split of it is meant.
        redo: tag of a commit that is to be replaced although it holds, by shard.
        only: ids of the shards that may be pending; None for all.
    """

    images: Store
    labels: Store | None
    output: Store
    fingerprint: str | None
    masks: tuple[str, ...]
    shard_size: int
    limit_shards: int | None = None
    voc_split: str | None = None
    redo: Mapping[str, str] = field(default_factory=dict)
    only: frozenset[str] | None = None


def make_plan(request: PlanRequest) -> Plan:
    """List the input, read the commits, subtract. Writes nothing.

    Raises:
        InputError: nothing to label, or colliding ids.
        StoreError: a store cannot be listed.
    """
    listing = _list(request)
    packing = None
    shards = listing.shards
    if listing.kind == "folder":
        packing = pack(listing, request.output, request.shard_size)
        shards = packing.shards
    if "png" in request.masks:
        _refuse_nested(request.images.url, shards)
    ledger = read_ledger(request.output)
    request = replace(request, redo=read_redo(request.output))
    pending = [shard for shard in shards if not is_done(shard, ledger.get(shard.id), request)]
    if request.only is not None:
        pending = [shard for shard in pending if shard.id in request.only]
    if request.limit_shards is not None:
        pending = pending[: request.limit_shards]
    gone = ledger.keys() - {shard.id for shard in shards}
    return Plan(
        shards=shards,
        pending=tuple(pending),
        outdated=tuple(shard.id for shard in pending if shard.id in ledger),
        redo=request.redo,
        ledger=ledger,
        vanished=len(gone) + (packing.vanished if packing else 0),
        packing=packing,
        passed_over=(*listing.passed_over, *_columns_passed_over(listing, request.images)),
        layout=listing.layout,
        sources=Sources(request.images, request.labels or request.images),
    )


def _columns_passed_over(listing: Listing, images: Store) -> list[str]:
    """Of the first file, for all."""
    if listing.kind != "parquet":
        return []
    return labels_passed_over(listing.shards[0], images)


def _list(request: PlanRequest) -> Listing:
    if request.voc_split is not None:
        return list_devkit(request.images, request.voc_split)
    return list_input(request.images, request.labels)


def is_done(shard: Shard, entry: Entry | None, request: PlanRequest) -> bool:
    """Whether a commit holds: for this content, this fingerprint, and every format asked for."""
    return (
        entry is not None
        and request.redo.get(shard.id) != entry.commit_etag
        and entry.input_etag == shard.etag
        and request.fingerprint in (None, entry.fingerprint)
        and set(request.masks) <= set(entry.masks)
    )


def _refuse_nested(where: str, shards: tuple[Shard, ...]) -> None:
    """PNG paths are <shard>/<key>.png: shard `a`, key `b/c` would meet shard `a/b`, key `c`."""
    ids = {shard.id for shard in shards}
    for shard in shards:
        parts = shard.id.split("/")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in ids:
                raise InputError(
                    where,
                    f"shards {'/'.join(parts[:depth])!r} and {shard.id!r}",
                    "with PNG output no shard may be the folder of another",
                    "Rename one of them, or leave png out of --masks.",
                )
