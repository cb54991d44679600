"""Commits: the one truth about which shards are done. Written last, create-only, one per shard."""

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
"""1 lacked `run`, `histograms` and `candidates`."""


@dataclass(frozen=True)
class Commit:
    """The record that a shard is done.

    Attributes:
        shard: its id.
        commit_id: random; tells our own commit from another driver's when an answer was lost.
        fingerprint: of the run that made it.
        input: location, etag and size of the input shard.
        files: every object of the shard.
        masks: the formats it has.
        images, labeled_images, failures: counts of samples.
        confusion: K x K, row = truth.
        class_pixels: predicted pixels by class.
        confidence_sum: sum over images of their mean confidence.
        seconds: by stage, summed over chunks.
        run: name of the run that made it, as the history has it; empty in format 1.
        histograms: of the images; None in format 1.
        candidates: the worst images, the worst first; none in format 1.
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
        """The counts of the commit as an accumulator."""
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
        """The confusion matrix as an accumulator."""
        return ConfusionMatrix(len(self.confusion), self.confusion)

    def to_json(self) -> bytes:
        """The commit object."""
        # A line for each field, and no `asdict`, no `indent`: they would take the driver 1.5 ms.
        document = {"format": COMMIT_FORMAT, **vars(self)}
        if self.labeled_images:
            document["scores"] = self.matrix.scores().to_dict()
        lines = (f'"{name}": {json.dumps(value, default=vars)}' for name, value in document.items())
        return ("{\n" + ",\n".join(lines) + "\n}").encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Commit:
        """What `to_json` gave, of this version or an earlier one.

        Raises:
            OutputError: of a later format version, or not a commit.
        """
        try:
            document = json.loads(data)
            found = document.pop("format")
            if found not in range(1, COMMIT_FORMAT + 1):
                raise OutputError(
                    where=where,
                    found=f"commit format {found}",
                    expected=f"format {COMMIT_FORMAT} or an earlier one",
                    remedy="Use the version of fcnseg that wrote this output, or a new OUTPUT.",
                )
            document.pop("scores", None)
            document["files"] = tuple(FileRecord(**f) for f in document["files"])
            document["masks"] = tuple(document["masks"])
            document["confusion"] = tuple(tuple(row) for row in document["confusion"])
            document["class_pixels"] = tuple(document["class_pixels"])
            if found > 1:
                document["histograms"] = _histograms(document)
                document["candidates"] = tuple(Candidate(**c) for c in document["candidates"])
                document["run"] = str(document["run"])
            return cls(**document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OutputError(
                where=where,
                found=f"no readable commit ({error})",
                expected="a commit of this project",
                remedy="Delete it: its shard will be labelled again. `fcnseg verify` lists all such.",
            ) from error


def _histograms(document: Mapping[str, Any]) -> Histograms | None:
    if document["histograms"] is None:
        return None
    found = Histograms.of(document["histograms"])
    if len(found.shares) != len(document["class_pixels"]):
        raise ValueError(f"histograms of {len(found.shares)} classes")
    return found


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
    """Make a shard done.

    Args:
        output: where.
        commit: of the shard.
        replaces: the tag of an older commit of the shard that no longer holds, if one is known.

    Returns:
        The tag of the commit object.

    Raises:
        StoreError: somebody else committed this shard in the meantime.
    """
    path = commit_path(commit.shard)
    data = commit.to_json()
    put = output.replace(path, data, replaces) if replaces is not None else None
    # Also where the older one is gone: somebody wanted this shard to be done again.
    put = put or output.create(path, data)
    if put is not None:
        return put
    # The answer may have been lost on its way: then the object there is our own.
    there, tag = output.read_tagged(path)
    if there == data:
        return tag
    raise StoreError(
        where=output.location(path),
        found="a commit that this driver did not write",
        expected="one driver per output",
        remedy="Find out which other driver runs; then run again.",
    )


def with_file(commit: Commit, file: FileRecord | None) -> Commit:
    """The commit with one more object named."""
    return commit if file is None else replace(commit, files=(*commit.files, file))
