"""Read the masks of every committed shard, and their images from the input, for an export.

Masks and images are read chunk by chunk, as the run cut the shards, so memory stays small for any
size of output.
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
"""Masks per group if each mask is one object and the images are not read."""


_BY_CHUNK, _BY_IMAGE = (
    [kind for kind in MASK_FORMATS.values() if kind.has_classes and kind.is_per_image == per_image]
    for per_image in (False, True)
)
"""Formats with class indices: with one object per chunk, and with one object per image."""


@dataclass(frozen=True)
class ExportRow:
    """An image with its mask.

    Attributes:
        key: key of the image within its shard.
        png: mask as a PNG, as the run wrote it.
        image: encoded image as it is in the input; None if images are not exported.
        mean_confidence: mean softmax probability of the chosen classes, 0-1; None without
            Parquet masks.
    """

    key: str
    png: bytes
    image: bytes | None
    mean_confidence: float | None

    def mask(self) -> NDArray[np.uint8]:
        """Return the mask: (H, W) uint8 class indices, 255 = void."""
        return decode_label(self.png, f"mask of {self.key}").astype(np.uint8)


@dataclass(frozen=True)
class MaskGroup:
    """A group of images of one shard: group `seq` of `count`, usually one chunk."""

    shard: str
    seq: int
    count: int
    images: tuple[ExportRow, ...]

    @property
    def name(self) -> str:
        """Name of the objects of the chunk in the output."""
        return chunk_name(self.shard, self.seq, self.count)


@dataclass
class LeftOut:
    """Counts of what an export does not contain.

    Attributes:
        pending: shards of the input that are not segmented; None if the input was not listed.
        changed: shards whose input changed since they were segmented.
        quarantined: images of exported shards that could not be segmented.
    """

    pending: int | None = None
    changed: int = 0
    quarantined: int = 0


class MaskSource:
    """Source of the masks of an output, without the images.

    Args:
        output: output of a run.
        identity: manifest of the output.
        suffix: suffix of the names of image files, which are not read.
    """

    def __init__(self, output: Store, identity: Manifest, suffix: str) -> None:
        self.output = output
        self.identity = identity
        self.suffix = suffix
        self.left_out = LeftOut()

    def groups(self) -> Iterator[MaskGroup]:
        """Yield every committed image, shard by shard.

        Raises:
            OutputError: a commit cannot be read.
            VerifyError: the checksum of a mask differs from its commit.
            StoreError: a store fails.
        """
        for commit in read_commits(self.output):
            if commit.fingerprint == self.identity.fingerprint:
                self.left_out.quarantined += commit.failures
                yield from _ShardMasks(self.output, commit).groups()


class ImageSource(MaskSource):
    """Source of the masks of an output together with the images of its input."""

    def __init__(self, output: Store, identity: Manifest, plan: PlanSpec) -> None:
        """List the input.

        Raises:
            InputError: the input is not valid, or its layout differs from the run.
            StoreError: the input cannot be listed.
        """
        super().__init__(output, identity, suffix="")
        self.left_out.pending = 0
        self.plan = plan
        listing = survey(plan).listing
        if identity.layout not in (None, listing.layout):
            raise InputError(
                where=plan.images.url,
                found=f"the layout {listing.layout}",
                expected=f"the layout {identity.layout}, as when it was segmented",
                remedy="Restore the input, or add --no-images.",
            )
        self.shards: Sequence[Shard] = listing.shards
        if listing.kind == "folder":
            self.shards = assign_shards(listing, output, plan.config.input.shard_size).shards

    def groups(self) -> Iterator[MaskGroup]:
        """Yield every committed image, shard by shard, without shards that changed since the run.

        Raises:
            OutputError, VerifyError, StoreError: as in `MaskSource.groups`.
            InputError: an image of an unchanged shard is missing.
            ShardError: a shard of the input can no longer be read.
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
        # Labels are not exported, so labels in separate files are not read.
        members = tuple(Member(member.key, member.image, None) for member in shard.members)
        sources = Sources(images, images)
        for chunk in read_chunks(
            replace(shard, members=members), sources, self.identity.chunk_limits
        ):
            encoded = {sample.key: sample.image for sample in chunk.samples}
            mask_rows = masks.of_chunk(chunk.seq, chunk.count, list(encoded))
            rows = tuple(
                replace(row, image=encoded[row.key]) for row in mask_rows if row.key in encoded
            )
            if len(rows) != len(mask_rows):
                lost = next(row.key for row in mask_rows if row.key not in encoded)
                raise InputError(
                    where=images.location(shard.path),
                    found=f"no image {lost!r}, but the ETag of the shard is unchanged",
                    expected="the input as it was segmented",
                    remedy="Restore it, segment the shard again, or add --no-images.",
                )
            yield MaskGroup(shard.id, chunk.seq, chunk.count, rows)


class _ShardMasks:
    """Reads the masks of one shard in the mask format that its commit lists."""

    def __init__(self, output: Store, commit: Commit) -> None:
        self.output = output
        self.commit = commit
        self.files = {file.path: file for file in commit.files}

    def groups(self) -> Iterator[MaskGroup]:
        """Yield all masks of the shard."""
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
        """Return the masks of a chunk, in order.

        Args:
            seq: number of the chunk, from 0.
            count: number of chunks of the shard.
            keys: keys of the samples of the chunk, for formats with one object per mask.

        Raises:
            OutputError: the commit lists no masks of this chunk.
            VerifyError: the checksum of a mask differs from its commit.
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
            expected="the masks of every chunk, with the chunk size of _run.json",
            remedy="Run `fcnseg verify`. To segment the shard again, delete this commit "
            "and run again.",
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
                found="a checksum that differs from its commit",
                expected="the masks as the run wrote them",
                remedy="Run `fcnseg verify` and follow its advice.",
            )
        return data


def _row(stored: StoredMask) -> ExportRow:
    confidence = None if stored.row is None else stored.row["mean_confidence"]
    return ExportRow(stored.key, stored.png, None, confidence)
