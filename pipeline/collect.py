"""From receipts to commits: the only code that makes a shard done. Runs in the driver."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline import logs
from pipeline.bookkeeping.shard_table import Entry
from pipeline.commits import (
    Author,
    build_commit,
    with_file,
    write_commit,
    write_quarantine,
)
from pipeline.config import LimitsConfig
from pipeline.errors import StoreError
from pipeline.inputs.shard_list import Shard
from pipeline.job import Job, ShardFailure
from pipeline.plan import Plan
from pipeline.samples import Failure
from pipeline.writers import Receipt

NEVER_FEWER = 3
"""A bad fraction counts from this many images on: one bad image of ten breaks no dataset."""

MOST_UNREACHABLE = 20
"""So many shards in a row that the store does not give: then it is the store, not the shards."""


def is_over(bad: int, total: int, fraction: float) -> bool:
    """Whether `bad` of `total` images are too many.

    >>> is_over(2, 4, 0.05), is_over(3, 40, 0.05), is_over(3, 60, 0.05)
    (False, True, False)
    """
    return bad >= NEVER_FEWER and bad > fraction * total


@dataclass
class Collector:
    """Gathers receipts until a shard is complete, then commits it or lists it as failed.

    Attributes:
        plan: what is being done.
        job: the run's stores and formats.
        author: goes into every commit.
        limits: the per-shard bad fraction.
        failed: shards that were not committed.
        empty: shards that were committed and hold no sample at all.
        images, failures, chunks: of this run's finished chunks.
        seconds: by stage, of these.
        store_retries: of its workers.
        committed: shards that this run committed; the ledger of the plan grows by them.
        redone: of these, the ones that the plan names in `redo`.
        uncommitted_images, uncommitted_failures: of failed shards.
    """

    plan: Plan
    job: Job
    author: Author
    limits: LimitsConfig
    failed: dict[str, ShardFailure] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    images: int = 0
    failures: int = 0
    chunks: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    store_retries: int = 0
    committed: int = 0
    redone: set[str] = field(default_factory=set)
    uncommitted_images: int = 0
    uncommitted_failures: int = 0
    _receipts: dict[str, dict[int, Receipt]] = field(default_factory=lambda: defaultdict(dict))
    _shards: dict[str, Shard] = field(default_factory=dict)
    _older: Mapping[str, str] = field(default_factory=dict)
    _unreachable: int = 0

    @property
    def finished(self) -> int:
        """Shards of this run that are committed or failed."""
        return self.committed + len(self.failed)

    def expect(self, shards: Sequence[Shard]) -> None:
        """What an executor is given now; results of other shards are passed over."""
        self._shards = {shard.id: shard for shard in shards}
        self._older = self.plan.ledger.commit_tags(self._shards)

    def add(self, item: Receipt | ShardFailure) -> None:
        """Take one result of an executor; the same chunk may come twice.

        Raises:
            StoreError: the commit cannot be written, or one shard after the other cannot be read.
        """
        if isinstance(item, ShardFailure):
            self._fail(item)
            return
        self._unreachable = 0
        if item.shard in self.failed or item.shard not in self._shards:
            return
        self.store_retries += item.store_retries
        received = self._receipts[item.shard]
        if item.seq not in received:
            self.images += item.images
            self.failures += len(item.failures)
            self.chunks += 1
            for stage, seconds in item.seconds.items():
                self.seconds[stage] += seconds
            _log_chunk(item)
        received[item.seq] = item
        if len(received) == item.count:
            self._complete(self._shards.pop(item.shard), list(received.values()))
            self._receipts.pop(item.shard, None)

    def _fail(self, failure: ShardFailure) -> None:
        self._shards.pop(failure.shard, None)
        self._receipts.pop(failure.shard, None)
        self.failed[failure.shard] = failure
        with logs.about(shard=failure.shard):
            logs.event(logging.ERROR, "shard failed: %s", failure.reason)
        self._unreachable = self._unreachable + 1 if failure.error == StoreError.__name__ else 0
        if self._unreachable >= MOST_UNREACHABLE:
            raise StoreError(
                self.job.sources.images.location(""),
                f"{self._unreachable} shards in a row could not be read, the last one because: "
                f"{failure.reason}",
                "a working store",
                "Run the same command again when it works: nothing committed is lost.",
            )

    def _complete(self, shard: Shard, receipts: Sequence[Receipt]) -> None:
        bad = [failure for receipt in receipts for failure in receipt.failures]
        good = sum(receipt.images for receipt in receipts)
        fraction = self.limits.max_bad_fraction_per_shard
        quarantine = write_quarantine(self.job.output, shard.id, bad)
        if is_over(len(bad), len(bad) + good, fraction):
            self.uncommitted_images += good
            self.uncommitted_failures += len(bad)
            self._fail(_over_limit(shard, bad, len(bad) + good, fraction))
            return
        location = self.job.sources.images.location(shard.path)
        commit = build_commit(shard, location, receipts, self.author)
        commit = with_file(commit, quarantine)
        tag = write_commit(self.job.output, commit, replaces=self._older.get(shard.id))
        self.committed += 1
        if shard.id in self.plan.redo:
            self.redone.add(shard.id)
        if good + len(bad) == 0:
            self.empty.append(shard.id)
        self.plan.ledger.add(Entry.of(commit, tag))
        with logs.about(shard=shard.id):
            logs.event(logging.INFO, "shard committed: %d images, %d quarantined", good, len(bad))


def _log_chunk(receipt: Receipt) -> None:
    """What happened to a chunk on its way, if it was more than work."""
    with logs.about(shard=receipt.shard, chunk=receipt.seq):
        if receipt.store_retries:
            text = "requests to stores were tried again: %d"
            logs.event(logging.WARNING, text, receipt.store_retries)
        for failure in receipt.failures:
            text = "quarantined: %s: %s"
            logs.event(logging.WARNING, text, failure.location, failure.reason)


def _over_limit(shard: Shard, bad: Sequence[Failure], total: int, fraction: float) -> ShardFailure:
    first = min(bad, key=lambda failure: (failure.location, failure.key))
    reason = (
        f"shard {shard.id}: {len(bad)} of {total} images are bad; at most {fraction:.0%} may be "
        f"(limits.max_bad_fraction_per_shard). First: {first.location}: {first.reason}. "
        "Not committed. Fix or drop them, or raise the limit; then run again."
    )
    return ShardFailure(shard.id, reason, "LimitsError")


def needed_masks(plan: Plan, requested: Sequence[str]) -> tuple[str, ...]:
    """The formats to write: those asked for, and those the replaced commits name.

    A commit names all objects of its shard, so one that is replaced must not lose any.
    """
    return tuple(sorted({*requested, *plan.outdated_masks}))
