"""What is exported: the masks of every committed shard, beside the images that they were made of.

Chunk by chunk, as the run cut the shards; so little is in memory, however large the output is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fcn_core.images import decode_label
from pipeline.concurrency import map_ordered
from pipeline.errors import InputError, MissingError, OutputError, VerifyError
from pipeline.inputs.folder import assign_shards
from pipeline.inputs.shard import Member, Shard, Sources
from pipeline.manifest import Manifest
from pipeline.output.commit_index import read_commits
from pipeline.output.commits import Commit
from pipeline.paths import chunk_name, commit_path
from pipeline.plan import survey
from pipeline.stages.mask_formats import MASK_FORMATS, StoredMask
from pipeline.stages.read import read_chunks
from pipeline.stages.spec import PlanSpec
from pipeline.storage.store import Store

_READERS = 8

_PNGS = 256
"""Masks of a group, where they are objects of their own and no images say how they were cut."""


_BY_CHUNK, _BY_IMAGE = (
    [kind for kind in MASK_FORMATS.values() if kind.has_classes and kind.is_per_image == per_image]
    for per_image in (False, True)
)
"""Formats with class indices: those with an object for every chunk, and for every image."""


@dataclass(frozen=True)
class ExportRow:
    """An image with its mask.

    Attributes:
        key: within its shard.
        png: the mask as the run wrote it.
        image: the image's bytes as they are in the input; None if they are not wanted.
        mean_confidence: 0-1; None where the output does not tell (it has no Parquet masks).
    """

    key: str
    png: bytes
    image: bytes | None
    mean_confidence: float | None

    def mask(self) -> NDArray[np.uint8]:
        """(H, W) class indices, 255 = void."""
        return decode_label(self.png, f"mask of {self.key}").astype(np.uint8)


@dataclass(frozen=True)
class MaskGroup:
    """Some images of one shard: number `seq` of `count`."""

    shard: str
    seq: int
    count: int
    images: tuple[ExportRow, ...]

    @property
    def name(self) -> str:
        """As the run named the chunk's objects."""
        return chunk_name(self.shard, self.seq, self.count)


@dataclass
class LeftOut:
    """What an export does not hold.

    Attributes:
        pending: shards of the input that are not labelled; None if the input was not looked at.
        changed: shards whose input is another one since they were labelled.
        quarantined: images of exported shards that could not be labelled.
    """

    pending: int | None = None
    changed: int = 0
    quarantined: int = 0


class MaskSource:
    """The masks of an output alone.

    Args:
        output: of a run.
        identity: of that output.
        suffix: what image files are taken to end in, as nobody looks at them.
    """

    def __init__(self, output: Store, identity: Manifest, suffix: str) -> None:
        self.output = output
        self.identity = identity
        self.suffix = suffix
        self.left_out = LeftOut()

    def groups(self) -> Iterator[MaskGroup]:
        """Every committed image, by shard.

        Raises:
            OutputError: a commit that cannot be read.
            VerifyError: a mask that is not what its commit says.
            StoreError: a store fails.
        """
        for commit in read_commits(self.output):
            if commit.fingerprint == self.identity.fingerprint:
                self.left_out.quarantined += commit.failures
                yield from _ShardMasks(self.output, commit).groups()


class ImageSource(MaskSource):
    """The masks of an output, and the images from its input."""

    def __init__(self, output: Store, identity: Manifest, plan: PlanSpec) -> None:
        """List the input.

        Raises:
            InputError: it cannot be labelled, or is laid out otherwise than when it was.
            StoreError: it cannot be listed.
        """
        super().__init__(output, identity, suffix="")
        self.left_out.pending = 0
        self.plan = plan
        listing = survey(plan).listing
        if identity.layout not in (None, listing.layout):
            raise InputError(
                where=plan.images.url,
                found=f"laid out as {listing.layout}",
                expected=f"the input was laid out as {identity.layout} when it was labelled",
                remedy="Restore it, or add --no-images.",
            )
        self.shards: Sequence[Shard] = listing.shards
        if listing.kind == "folder":
            self.shards = assign_shards(listing, output, plan.config.input.shard_size).shards

    def groups(self) -> Iterator[MaskGroup]:
        """See above; shards that changed since they were labelled are left out.

        Raises:
            ShardError: a shard of the input that cannot be read any more.
        """
        for shard, commit in map_ordered(self._commit, self.shards, _READERS):
            if commit is None or commit.fingerprint != self.identity.fingerprint:
                self.left_out.pending = (self.left_out.pending or 0) + 1
            elif commit.input["etag"] != shard.etag:
                self.left_out.changed += 1
            else:
                self.left_out.quarantined += commit.failures
                yield from self._read(shard, commit)

    def _commit(self, shard: Shard) -> tuple[Shard, Commit | None]:
        path = commit_path(shard.id)
        try:
            return shard, Commit.from_json(self.output.read(path), self.output.location(path))
        except MissingError:
            return shard, None

    def _read(self, shard: Shard, commit: Commit) -> Iterator[MaskGroup]:
        masks = _ShardMasks(self.output, commit)
        images = self.plan.images
        # Labels are not exported: of loose files they need not be read.
        members = tuple(Member(member.key, member.image, None) for member in shard.members)
        sources = Sources(images, images)
        for chunk in read_chunks(
            replace(shard, members=members), sources, self.identity.chunk_limits
        ):
            encoded = {sample.key: sample.image for sample in chunk.samples}
            found = masks.of_chunk(chunk.seq, chunk.count, list(encoded))
            labelled = tuple(
                replace(item, image=encoded[item.key]) for item in found if item.key in encoded
            )
            if len(labelled) != len(found):
                lost = next(item.key for item in found if item.key not in encoded)
                raise InputError(
                    where=images.location(shard.path),
                    found=f"no image {lost!r}, though the shard's tag is that of its commit",
                    expected="the input as it was labelled",
                    remedy="Restore it, label the shard again, or add --no-images.",
                )
            yield MaskGroup(shard.id, chunk.seq, chunk.count, labelled)


class _ShardMasks:
    """The masks of one shard, in whichever form its commit has."""

    def __init__(self, output: Store, commit: Commit) -> None:
        self.output = output
        self.commit = commit
        self.files = {file.path: file for file in commit.files}

    def groups(self) -> Iterator[MaskGroup]:
        """All of them."""
        shard = self.commit.shard
        for mask_format in _BY_CHUNK:
            count = sum(map(mask_format.has_path, self.files))
            for seq in range(count):
                yield MaskGroup(shard, seq, count, tuple(self.of_chunk(seq, count, ())))
            if count:
                return
        keys = [key for kind in _BY_IMAGE for key in kind.keys(shard, list(self.files))]
        count = -(-len(keys) // _PNGS)
        for seq in range(count):
            chosen = keys[seq * _PNGS : (seq + 1) * _PNGS]
            yield MaskGroup(shard, seq, count, tuple(self._of_images(chosen)))

    def of_chunk(self, seq: int, count: int, keys: Sequence[str]) -> list[ExportRow]:
        """The masks of a chunk, in order.

        Args:
            seq: number of the chunk.
            count: of the chunks of the shard.
            keys: of its samples, for masks that are objects of their own.
        """
        shard = self.commit.shard
        for mask_format in _BY_CHUNK:
            path = mask_format.chunk_path(shard, seq, count)
            if path in self.files:
                return [_row(stored) for stored in mask_format.decode(path, self._read(path))]
        if any(mask_format.name in self.commit.masks for mask_format in _BY_IMAGE):
            return self._of_images([key for key in keys if self._image_path(key) in self.files])
        raise OutputError(
            where=self.output.location(commit_path(self.commit.shard)),
            found=f"no masks of {chunk_name(shard, seq, count)} among {len(self.files)} objects",
            expected="those of every chunk, cut as _run.json says",
            remedy="Run `fcnseg verify`; to label the shard again, delete this commit and run again.",
        )

    def _image_path(self, key: str) -> str:
        paths = [kind.image_path(self.commit.shard, key) for kind in _BY_IMAGE]
        return next((path for path in paths if path in self.files), paths[0])

    def _of_images(self, keys: Sequence[str]) -> list[ExportRow]:
        pngs = map_ordered(self._read, map(self._image_path, keys), _READERS)
        return [ExportRow(key, png, None, None) for key, png in zip(keys, pngs, strict=True)]

    def _read(self, path: str) -> bytes:
        data = self.output.read(path)
        if hashlib.sha256(data).hexdigest() != self.files[path].sha256:
            raise VerifyError(
                where=self.output.location(path),
                found="other bytes than its commit names",
                expected="the masks as they were written",
                remedy="Run `fcnseg verify`, and do what it says.",
            )
        return data


def _row(stored: StoredMask) -> ExportRow:
    confidence = None if stored.row is None else stored.row["mean_confidence"]
    return ExportRow(stored.key, stored.png, None, confidence)
