"""Commits: one object per shard that marks it as done. Written last, and only if none exists."""

from __future__ import annotations

import heapq
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from typing import Any

from fcn_core.metrics import ConfusionMatrix
from pipeline.errors import OutputError, StoreError
from pipeline.inputs.shard import Shard
from pipeline.paths import commit_path
from pipeline.stages.histograms import Histograms
from pipeline.stages.records import Candidate, FileRecord, Receipt
from pipeline.stages.shard_stats import ShardStats
from pipeline.stages.spec import RunSpec
from pipeline.storage.store import Store

COMMIT_FORMAT = 2
"""Version of the commit object. Format 1 lacks `run`, `histograms` and `candidates`."""


@dataclass(frozen=True)
class Commit:
    """The record that a shard is done.

    Attributes:
        shard: id of the shard.
        commit_id: random id. After a lost response, it shows whether an existing commit is our own.
        fingerprint: fingerprint of the run that wrote the commit.
        input: location, etag and size of the input shard.
        files: records of all objects of the shard.
        masks: mask formats of the shard.
        images: images that were segmented.
        labeled_images: images that have a label.
        failures: images that were quarantined.
        confusion: K x K pixel counts, true class by predicted class.
        class_pixels: K predicted pixel counts.
        confidence_sum: sum over the images of their mean confidence.
        seconds: seconds by stage, summed over the chunks.
        run: name of the run that wrote the commit; empty in format 1.
        histograms: histograms of the images; None in format 1.
        candidates: the worst images, worst first; empty in format 1.
    """

    shard: str
    commit_id: str
    fingerprint: str
    input: Mapping[str, Any]
    files: tuple[FileRecord, ...]
    masks: tuple[str, ...]
    images: int
    labeled_images: int
    failures: int
    confusion: tuple[tuple[int, ...], ...]
    class_pixels: tuple[int, ...]
    confidence_sum: float
    seconds: Mapping[str, float]
    run: str = ""
    histograms: Histograms | None = None
    candidates: tuple[Candidate, ...] = ()

    @property
    def stats(self) -> ShardStats:
        """Return the counts of the commit, ready to be added to others."""
        return ShardStats(
            images=self.images,
            labeled_images=self.labeled_images,
            failures=self.failures,
            confusion=self.matrix,
            class_pixels=self.class_pixels,
            confidence_sum=self.confidence_sum,
            histograms=self.histograms or Histograms.zero(len(self.class_pixels)),
        )

    @property
    def matrix(self) -> ConfusionMatrix:
        """Return the confusion matrix, ready to be added to others."""
        return ConfusionMatrix(len(self.confusion), self.confusion)

    def to_json(self) -> bytes:
        """Return the bytes of the commit object."""
        # One line per field. `asdict` and `indent` would cost the driver 1.5 ms per commit.
        document = {"format": COMMIT_FORMAT, **vars(self)}
        if self.labeled_images:
            document["scores"] = self.matrix.scores().to_dict()
        lines = (f'"{name}": {json.dumps(value, default=vars)}' for name, value in document.items())
        return ("{\n" + ",\n".join(lines) + "\n}").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Commit:
        """Return the commit from the bytes of `to_json`, of this version or an earlier one.

        Raises:
            OutputError: a later format, or not a commit.
        """
        try:
            document = json.loads(data)
            version = document.pop("format")
            if version not in range(1, COMMIT_FORMAT + 1):
                raise OutputError(
                    where=where,
                    found=f"commit format {version}",
                    expected=f"format {COMMIT_FORMAT} or an earlier one",
                    remedy="Use the version of fcnseg that wrote this output, or a new OUTPUT.",
                )
            document.pop("scores", None)
            document["files"] = tuple(FileRecord(**f) for f in document["files"])
            document["masks"] = tuple(document["masks"])
            document["confusion"] = tuple(tuple(row) for row in document["confusion"])
            document["class_pixels"] = tuple(document["class_pixels"])
            if version > 1:
                document["histograms"] = _histograms(document)
                document["candidates"] = tuple(Candidate(**c) for c in document["candidates"])
                document["run"] = str(document["run"])
            return cls(**document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OutputError(
                where=where,
                found=f"no readable commit ({error})",
                expected="a commit of this project",
                remedy="Delete it: its shard will be segmented again. `fcnseg verify` lists all "
                "unreadable commits.",
            ) from error


def _histograms(document: Mapping[str, Any]) -> Histograms | None:
    if document["histograms"] is None:
        return None
    histograms = Histograms.of(document["histograms"])
    if len(histograms.shares) != len(document["class_pixels"]):
        raise ValueError(f"histograms of {len(histograms.shares)} classes")
    return histograms


def build_commit(spec: RunSpec, shard: Shard, receipts: Sequence[Receipt]) -> Commit:
    """Return the commit of a shard from the receipts of all its chunks, in chunk order."""
    ordered = sorted(receipts, key=lambda receipt: receipt.seq)
    stats = ShardStats.total(receipt.stats for receipt in ordered)
    stages = {name for receipt in ordered for name in receipt.seconds}
    candidates = [candidate for receipt in ordered for candidate in receipt.candidates]
    return Commit(
        shard=shard.id,
        commit_id=uuid.uuid4().hex,
        fingerprint=spec.fingerprint,
        input={
            "location": spec.images.location(shard.path),
            "etag": shard.etag,
            "size": shard.size,
        },
        files=tuple(f for receipt in ordered for f in receipt.files),
        masks=tuple(sorted(spec.masks)),
        images=stats.images,
        labeled_images=stats.labeled_images,
        failures=stats.failures,
        confusion=tuple(tuple(row) for row in stats.confusion.matrix.tolist()),
        class_pixels=stats.class_pixels,
        confidence_sum=stats.confidence_sum,
        seconds={
            stage: round(sum(receipt.seconds.get(stage, 0.0) for receipt in ordered), 4)
            for stage in sorted(stages)
        },
        run=spec.run,
        histograms=stats.histograms,
        candidates=_worst(candidates, spec.config.drift.review_images),
    )


def _worst(candidates: Sequence[Candidate], most: int) -> tuple[Candidate, ...]:
    scored = [candidate for candidate in candidates if candidate.mean_iou is not None]
    others = [candidate for candidate in candidates if candidate.mean_iou is None]
    score = attrgetter("score")
    kept = (heapq.nsmallest(most, kind, key=score) for kind in (scored, others))
    return tuple(sorted(chain.from_iterable(kept), key=score))


def write_commit(output: Store, commit: Commit, *, replaces: str | None) -> str:
    """Write the commit of a shard, which marks it as done, and return the tag of the object.

    Args:
        output: store of OUTPUT.
        commit: commit of the shard.
        replaces: tag of an earlier commit of the shard that is no longer valid; None without one.

    Raises:
        StoreError: another driver committed this shard in the meantime, or the store fails.
    """
    path = commit_path(commit.shard)
    data = commit.to_json()
    put = output.replace(path, data, replaces) if replaces is not None else None
    # Also if the earlier commit is gone: a user may delete it to have the shard segmented again.
    put = put or output.create(path, data)
    if put is not None:
        return put
    # If the response to our request was lost, the existing object is our own.
    existing, tag = output.read_tagged(path)
    if existing == data:
        return tag
    raise StoreError(
        where=output.location(path),
        found="a commit that this driver did not write",
        expected="one driver per output",
        remedy="Find out which other driver runs; then run again.",
    )


def with_file(commit: Commit, file: FileRecord | None) -> Commit:
    """Return the commit with one more file; None adds nothing."""
    return commit if file is None else replace(commit, files=(*commit.files, file))
