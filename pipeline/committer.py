"""From receipts to commits: the only code that makes a shard done. Runs in the driver.

A commit waits for the store, a thousand GPUs finish hundreds of shards a second: threads commit,
each one shard at a time. Everything else is for the driver's own thread, the ledger too.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

from pipeline import logs
from pipeline.errors import StoreError
from pipeline.inputs.sample import Failure
from pipeline.inputs.shard import Shard
from pipeline.limits import is_over, what_to_do
from pipeline.output.commits import (
    QUARANTINE,
    build_commit,
    quarantine_path,
    with_file,
    write_commit,
    write_quarantine,
)
from pipeline.output.shard_table import Entry
from pipeline.plan import Plan
from pipeline.stages.records import Receipt
from pipeline.stages.spec import RunSpec, ShardFailure

COMMITTERS = 32
"""Threads that commit: enough for 640 requests a second that take 50 ms each."""


MOST_WAITING = 2 * COMMITTERS
"""Shards that wait for their commit: when there are more, no receipt is taken."""


MOST_UNREACHABLE = 20
"""So many shards in a row that the store does not give: then it is the store, not the shards."""


@dataclass(frozen=True)
class _Settled:
    """What became of a complete shard: an entry for the ledger, or a failure."""

    shard: str
    good: int
    bad: int
    entry: Entry | None = None
    failure: ShardFailure | None = None


@dataclass
class Committer:
    """Gathers receipts until a shard is complete, then commits it or lists it as failed.

    A context manager. Leaving it by an exception waits for the commits under way and begins no
    other: nothing is written once the lease is given back.

    Attributes:
        plan: what is being done.
        spec: the run's stores and formats.
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
    spec: RunSpec
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
    _tables: frozenset[str] | None = None
    _unreachable: int = 0
    _pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(COMMITTERS, "commit"), repr=False
    )
    _begun: deque[Future[_Settled]] = field(default_factory=deque)

    def __enter__(self) -> Committer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def finished(self) -> int:
        """Shards of this run that are committed or failed."""
        return self.committed + len(self.failed)

    def expect(self, shards: Sequence[Shard]) -> None:
        """What an executor is given now; results of other shards are passed over.

        Raises:
            StoreError: the output cannot be listed.
        """
        if self._tables is None:  # before the first commit: nobody else adds any afterwards
            listed = self.spec.output.listing(QUARANTINE)
            self._tables = frozenset(info.path for info in listed)
        self._shards = {shard.id: shard for shard in shards}
        self._older = self.plan.ledger.commit_tags(self._shards)

    def add(self, item: Receipt | ShardFailure) -> None:
        """Take one result of an executor; the same chunk may come twice.

        Waits while too many shards are being committed; in a local output, for each.

        Raises:
            StoreError: a commit cannot be written, or one shard after the other cannot be read.
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
            shard = self._shards.pop(item.shard)
            receipts = list(self._receipts.pop(item.shard).values())
            older = self._older.get(shard.id)
            self._begun.append(self._pool.submit(self._commit, shard, receipts, older))
        # A file is there in milliseconds: then progress tells of it at once.
        most = 0 if self.spec.output.is_local else MOST_WAITING
        while self._begun and (self._begun[0].done() or len(self._begun) > most):
            self._note(self._begun.popleft().result())

    def settle(self) -> bool:
        """Wait until every complete shard is committed, or listed as failed; whether one was not.

        Raises:
            StoreError: a commit cannot be written.
        """
        waited = bool(self._begun)
        while self._begun:
            self._note(self._begun.popleft().result())
        return waited

    def _fail(self, failure: ShardFailure) -> None:
        self._shards.pop(failure.shard, None)
        self._receipts.pop(failure.shard, None)
        self.failed[failure.shard] = failure
        with logs.about(shard=failure.shard):
            logs.event(logging.ERROR, "shard failed: %s", failure.reason)
        self._unreachable = self._unreachable + 1 if failure.error == StoreError.__name__ else 0
        if self._unreachable >= MOST_UNREACHABLE:
            raise StoreError(
                where=self.spec.images.location(""),
                found=f"{self._unreachable} shards in a row could not be read, the last one because: "
                f"{failure.reason}",
                expected="a working store",
                remedy="Run the same command again when it works: nothing committed is lost.",
            )

    def _commit(self, shard: Shard, receipts: Sequence[Receipt], older: str | None) -> _Settled:
        """In a thread of the pool: changes nothing here."""
        bad = [failure for receipt in receipts for failure in receipt.failures]
        good = sum(receipt.images for receipt in receipts)
        fraction = self.spec.config.limits.max_bad_fraction_per_shard
        quarantine = None
        if bad or quarantine_path(shard.id) in (self._tables or ()):
            # Also without any: the table of an earlier run may be there, and is to go.
            quarantine = write_quarantine(self.spec.output, shard.id, bad)
        if is_over(len(bad), len(bad) + good, fraction):
            failure = _over_limit(shard, bad, len(bad) + good, fraction)
            return _Settled(shard.id, good, len(bad), failure=failure)
        commit = build_commit(self.spec, shard, receipts)
        commit = with_file(commit, quarantine)
        tag = write_commit(self.spec.output, commit, replaces=older)
        return _Settled(shard.id, good, len(bad), entry=Entry.of(commit, tag))

    def _note(self, settled: _Settled) -> None:
        if settled.failure is not None:
            self.uncommitted_images += settled.good
            self.uncommitted_failures += settled.bad
            self._fail(settled.failure)
        if settled.entry is None:
            return
        self.committed += 1
        if settled.shard in self.plan.redo:
            self.redone.add(settled.shard)
        if settled.good + settled.bad == 0:
            self.empty.append(settled.shard)
        self.plan.ledger.add(settled.entry)
        with logs.about(shard=settled.shard):
            text = "shard committed: %d images, %d quarantined"
            logs.event(logging.INFO, text, settled.good, settled.bad)


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
        f"Not committed. {what_to_do(bad)}; then run again."
    )
    return ShardFailure(shard.id, reason, "LimitsError")
