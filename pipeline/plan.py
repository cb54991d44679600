"""Plan a run: list INPUT, read the commits of OUTPUT, and return what is pending.

No network is loaded. Finished shards are only counted; the pending shards and the input are kept as
lists that need little memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError, MissingError, ShardError
from pipeline.inputs.folder import ShardAssignment, assign_shards, find_excluded_images
from pipeline.inputs.listing import Listing, list_input
from pipeline.inputs.parquet import list_ignored_columns
from pipeline.inputs.shard import Shard, ShardList, Sources
from pipeline.inputs.voc import list_devkit
from pipeline.output.commit_index import Bools, CommitIndex, hashes, read_commit_index
from pipeline.output.quarantine import read_retry_list
from pipeline.stages.mask_formats import MASK_FORMATS
from pipeline.stages.read import count_images
from pipeline.stages.spec import PlanSpec
from pipeline.storage.store import Store

MAX_OPENED = 64
"""Most shards whose indexes are read to count images. With more, the count is an estimate."""


_MAX_NAMED = 5


@dataclass(frozen=True)
class ImageCount:
    """The number of samples of an input.

    Attributes:
        images: samples in the readable shards.
        is_exact: False if some shards were not opened and `images` is estimated from their bytes.
        unreadable: error message by shard id.
    """

    images: int
    is_exact: bool
    unreadable: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Attributes:
        total: number of shards in the input.
        bytes: encoded bytes of the whole input.
        done: number of finished shards.
        pending: shards to segment now, sorted by id.
        pending_bytes: encoded bytes of the pending shards.
        outdated: number of pending shards with an earlier commit that is no longer valid.
        outdated_masks: mask formats that any of these commits has.
        left: number of shards that are neither done nor pending now: the limit, the globs or the
            date of this run exclude them.
        counted_images: samples of the shards whose commits match their present content.
        uncounted: the other shards.
        retry_commits: commit tags by shard id, for shards whose valid commits are to be replaced.
        commit_index: index of all commits of the output.
        vanished: number of committed shards, and of images in virtual shards, that the input no
            longer has.
        vanished_names: some of their names.
        packing: virtual shards of a folder; new ones must be frozen before work starts.
        passed_over: texts about ignored objects: see `Listing`.
        layout: layout of the input, as in `Manifest`.
        sources: stores that the bytes of the shards come from.
    """

    total: int
    bytes: int
    done: int
    pending: Sequence[Shard]
    pending_bytes: int
    outdated: int
    outdated_masks: frozenset[str]
    left: int
    counted_images: int
    uncounted: Sequence[Shard]
    retry_commits: Mapping[str, str]
    commit_index: CommitIndex
    vanished: int
    vanished_names: tuple[str, ...]
    packing: ShardAssignment | None
    passed_over: tuple[str, ...]
    layout: str
    sources: Sources

    @property
    def unpacked(self) -> int:
        """Return the number of images of a folder that are in no shard: this run excludes them."""
        return self.packing.unpacked if self.packing else 0

    def outdated_ids(self) -> list[str]:
        """Return the ids of pending shards that have an earlier commit."""
        return [shard.id for shard in self.pending if shard.id in self.commit_index]

    def count_images(self, max_opened: int | None = MAX_OPENED) -> ImageCount:
        """Return the number of samples, from commits and, for other shards, from their indexes.

        Args:
            max_opened: most indexes (tar headers, Parquet metadata) to read, evenly spread; the
                samples of the other shards are estimated from their bytes. None reads all.
        """
        shards = self.uncounted
        members = sum(len(shard.members) for shard in shards) if self.packing else None
        if members is not None:
            return ImageCount(self.counted_images + members, True, {})
        count = len(shards) if max_opened is None else min(max_opened, len(shards))
        unreadable: dict[str, str] = {}
        images = read = 0
        for place in range(count):
            shard = shards[(2 * place + 1) * len(shards) // (2 * count)]
            try:
                images += count_images(shard, self.sources)
                read += shard.size
            except (ShardError, MissingError) as error:
                unreadable[shard.id] = str(error)
        if count == len(shards):
            return ImageCount(self.counted_images + images, True, unreadable)
        size = sum(shard.size for shard in shards)
        estimate = round(images * size / read) if read else 0
        return ImageCount(self.counted_images + estimate, False, unreadable)


@dataclass(frozen=True)
class Survey:
    """What INPUT holds, before OUTPUT is read.

    Attributes:
        listing: the listed input.
        selected: for tars and Parquet files, a mask of the selected shards, in order.
        left_out: for a folder, the keys of the images that are not selected.
    """

    listing: Listing
    selected: Bools
    left_out: frozenset[str]


def survey(spec: PlanSpec) -> Survey:
    """List the input, and refuse one that cannot be segmented. Does not read the output.

    Raises:
        InputError: the input holds no images, ids collide, or the globs match nothing.
        ConfigError: `since` on a store without modification times.
        StoreError: the input cannot be listed.
    """
    listing = _list(spec)
    shards, selection = listing.shards, spec.selection
    if any(MASK_FORMATS[name].is_per_image for name in spec.config.output.masks):
        _refuse_nested(listing.where, shards)
    if not isinstance(shards, ShardList):
        return Survey(listing, np.zeros(0, np.bool_), find_excluded_images(listing, selection))
    selected = np.ones(len(shards), np.bool_)
    if not selection.is_all:
        named = np.fromiter((selection.names(s.path, s.id) for s in shards), np.bool_, len(shards))
        selection.refuse_none(listing.where, int(named.sum()), f"{len(shards)} shards")
        recent = (selection.is_recent(moment, listing.where) for moment in shards.modified)
        selected = named & np.fromiter(recent, np.bool_, len(shards))
    return Survey(listing, selected, frozenset())


def make_plan(spec: PlanSpec) -> Plan:
    """Return the plan of a run: `survey` the input, then `subtract` what is done. Writes nothing.

    Raises:
        FcnError: as `survey` and `subtract`.
    """
    return subtract(survey(spec), spec)


def subtract(surveyed: Survey, spec: PlanSpec) -> Plan:
    """Return what is left to do for an input. Reads the commits; writes nothing.

    Raises:
        OutputError: the index of virtual shards is damaged, or a commit has a later format.
        StoreError: the output cannot be read.
    """
    listing, packing = surveyed.listing, None
    shards, selected = listing.shards, surveyed.selected
    if listing.kind == "folder":
        packing = assign_shards(
            listing, spec.output, spec.config.input.shard_size, surveyed.left_out
        )
        shards = packing.shards
        selected = np.array([shard.id in packing.selected for shard in shards], np.bool_)
        if not surveyed.left_out:  # a shard that lost all its images may be pending as well
            selected[:] = True
    index = read_commit_index(spec.output)
    keys, tags, sizes = _columns(shards)
    places = index.find(keys)
    is_known = index.has_input(places, tags)
    is_done = is_known & index.holds(places, spec.fingerprint, spec.config.output.masks)
    retry_commits = _find_retries(spec.output, index)
    is_done &= ~np.isin(keys, hashes(retry_commits, len(retry_commits)))
    is_pending = ~is_done & selected
    if spec.only is not None:
        is_pending &= np.isin(keys, hashes(spec.only, len(spec.only)))
    limit = spec.config.input.limit_shards
    if limit is not None:
        is_pending &= np.cumsum(is_pending) <= limit
    earlier = places[is_pending & (places >= 0)]
    gone = index.others(keys)
    images_gone = packing.vanished if packing else ()
    names = [*index.names(gone[:_MAX_NAMED]), *images_gone]
    return Plan(
        total=len(shards),
        bytes=int(sizes.sum()),
        done=int(is_done.sum()),
        pending=_where(shards, is_pending),
        pending_bytes=int(sizes[is_pending].sum()),
        outdated=len(earlier),
        outdated_masks=index.masks_of(earlier),
        left=int((~is_done & ~is_pending).sum()),
        counted_images=index.samples(places[is_known]),
        uncounted=_where(shards, ~is_known),
        retry_commits={
            shard.id: retry_commits[shard.id] for shard in shards if shard.id in retry_commits
        }
        if retry_commits
        else {},
        commit_index=index,
        vanished=len(gone) + len(images_gone),
        vanished_names=tuple(names[:_MAX_NAMED]),
        packing=packing,
        passed_over=(*listing.passed_over, *_left_columns(listing, spec.images)),
        layout=listing.layout,
        sources=spec.sources,
    )


def _left_columns(listing: Listing, images: Store) -> list[str]:
    """Return the ignored columns of the first file; all files are taken to have the same."""
    if listing.kind != "parquet":
        return []
    return list_ignored_columns(listing.shards[0], images)


def _list(spec: PlanSpec) -> Listing:
    split = spec.config.input.split
    if split is not None:  # a split of a PASCAL VOC development kit: see `resolve_plan`
        return list_devkit(spec.images, split)
    return list_input(spec.images, spec.label_folder)


def _find_retries(output: Store, index: CommitIndex) -> dict[str, str]:
    """Return the shards to segment again, with the tags of their commits.

    A shard of the retry list whose commit has another tag by now is done.
    """
    wanted = read_retry_list(output)
    current = index.commit_tags(wanted)
    return {shard: tag for shard, tag in wanted.items() if current.get(shard) == tag}


def _columns(shards: Sequence[Shard]) -> NDArray[np.int64]:
    """Return three rows: the hash of the id, the hash of the tag, and the size of every shard."""
    rows = ((hash(shard.id), hash(shard.etag), shard.size) for shard in shards)
    kind: Any = np.dtype((np.int64, 3))
    return np.fromiter(rows, kind, len(shards)).T


def _where(shards: Sequence[Shard], mask: Bools) -> Sequence[Shard]:
    if isinstance(shards, ShardList):
        return shards.where(mask)
    return tuple(shard for shard, is_chosen in zip(shards, mask, strict=True) if is_chosen)


def _refuse_nested(where: str, shards: Iterable[Shard]) -> None:
    """Refuse a shard whose id is the folder of another: their PNGs could collide.

    The path of a PNG is `<shard>/<key>.png`: the same for shard `a` and key `b/c` as for shard
    `a/b` and key `c`.
    """
    per_image = " and ".join(name for name, kind in MASK_FORMATS.items() if kind.is_per_image)
    folders: dict[str, str] = {}
    for shard in shards:
        folder = shard.id.rpartition("/")[0]
        # All folders above a known one are known.
        while folder and folder not in folders:
            folders[folder] = shard.id
            folder = folder.rpartition("/")[0]
    for shard in shards if folders else ():
        if shard.id in folders:
            raise InputError(
                where=where,
                found=f"shards {shard.id!r} and {folders[shard.id]!r}",
                expected="with PNGs as output no shard may be the folder of another",
                remedy=f"Rename one of them, or leave {per_image} out of --masks.",
            )
