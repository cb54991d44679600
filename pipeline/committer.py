"""Turn receipts into commits: the only code that makes a shard done. Runs in the driver.

A commit waits for the store, and a thousand GPUs finish hundreds of shards a second. So threads
write the commits, each thread one shard at a time. Everything else, the commit index included, is
changed by the driver's own thread only.
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
from pipeline.limits import describe_excess, is_over, suggest_remedy
from pipeline.output.commits import build_commit, with_file, write_commit
from pipeline.output.quarantine import write_quarantine
from pipeline.output.shard_table import Entry
from pipeline.paths import QUARANTINE, quarantine_path
from pipeline.plan import Plan
from pipeline.stages.records import Receipt
from pipeline.stages.spec import RunSpec, ShardFailure

COMMITTERS = 32
"""Threads that write commits: enough for 640 requests a second of 50 ms each."""


MAX_WAITING = 2 * COMMITTERS
"""Most shards that wait for their commit; with more, `add` waits before it takes a receipt."""


MAX_UNREACHABLE = 20
"""Unreadable shards in a row after which the store, not a shard, is reported as the cause."""


@dataclass(frozen=True)
class _Outcome:
    """The outcome of a complete shard: a row for the commit index, or a failure."""

    shard: str
    good: int
    bad: int
    entry: Entry | None = None
    failure: ShardFailure | None = None


@dataclass
class Committer:
    """Gather receipts until a shard is complete, then commit it or list it as failed.

    Use it as a context manager. After an exception it waits for the commits in progress and starts
    no other: nothing is written once the lease is released.

    Attributes:
        plan: plan of the run; its commit index grows with every commit.
        spec: settings of the run.
        failed: failures by shard id, for shards that were not committed.
        empty: ids of committed shards without any sample.
        images, failures, chunks: counts over the finished chunks of this run.
        seconds: seconds by stage, summed over these chunks.
        store_retries: store requests that the workers sent again.
        committed: number of shards that this run committed.
        retried: committed shards that the plan lists in `retry_commits`.
        uncommitted_images, uncommitted_failures: counts over the failed shards.
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
    retried: set[str] = field(default_factory=set)
    uncommitted_images: int = 0
    uncommitted_failures: int = 0
    _receipts: dict[str, dict[int, Receipt]] = field(default_factory=lambda: defaultdict(dict))
    _shards: dict[str, Shard] = field(default_factory=dict)
    _older: Mapping[str, str] = field(default_factory=dict)
    _quarantine_tables: frozenset[str] | None = None
    _unreachable: int = 0
    _pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(COMMITTERS, "commit"), repr=False
    )
    _in_progress: deque[Future[_Outcome]] = field(default_factory=deque)

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
        """Return how many shards of this run are committed or failed."""
        return self.committed + len(self.failed)

    def expect(self, shards: Sequence[Shard]) -> None:
        """Set the shards that an executor works on now; results of other shards are ignored.

        Raises:
            StoreError: the output cannot be listed.
        """
        if self._quarantine_tables is None:
            # Once, before the first commit: these are the tables of earlier runs.
            listed = self.spec.output.listing(QUARANTINE)
            self._quarantine_tables = frozenset(info.path for info in listed)
        self._shards = {shard.id: shard for shard in shards}
        self._older = self.plan.commit_index.commit_tags(self._shards)

    def add(self, item: Receipt | ShardFailure) -> None:
        """Take one result of an executor. The same chunk may arrive twice.

        Waits while too many shards are being committed; in a local output, for every commit.

        Raises:
            StoreError: a commit cannot be written, or many shards in a row cannot be read.
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
            self.images += item.stats.images
            self.failures += item.stats.failures
            self.chunks += 1
            for stage, seconds in item.seconds.items():
                self.seconds[stage] += seconds
            _log_chunk(item)
        received[item.seq] = item
        if len(received) == item.count:
            shard = self._shards.pop(item.shard)
            receipts = list(self._receipts.pop(item.shard).values())
            older = self._older.get(shard.id)
            self._in_progress.append(self._pool.submit(self._commit, shard, receipts, older))
        # A file is written in milliseconds: waiting for it keeps the progress exact.
        most = 0 if self.spec.output.is_local else MAX_WAITING
        while self._in_progress and (self._in_progress[0].done() or len(self._in_progress) > most):
            self._note(self._in_progress.popleft().result())

    def settle(self) -> bool:
        """Wait until every complete shard is committed or listed as failed.

        Returns:
            Whether there was anything to wait for.

        Raises:
            StoreError: a commit cannot be written.
        """
        waited = bool(self._in_progress)
        while self._in_progress:
            self._note(self._in_progress.popleft().result())
        return waited

    def _fail(self, failure: ShardFailure) -> None:
        self._shards.pop(failure.shard, None)
        self._receipts.pop(failure.shard, None)
        self.failed[failure.shard] = failure
        with logs.about(shard=failure.shard):
            logs.event(logging.ERROR, "shard failed: %s", failure.reason)
        self._unreachable = self._unreachable + 1 if failure.error == StoreError.__name__ else 0
        if self._unreachable >= MAX_UNREACHABLE:
            raise StoreError(
                where=self.spec.images.location(""),
                found=f"{self._unreachable} shards in a row could not be read, the last one "
                f"because: {failure.reason}",
                expected="a working store",
                remedy="Run the same command again when it works: nothing committed is lost.",
            )

    def _commit(self, shard: Shard, receipts: Sequence[Receipt], older: str | None) -> _Outcome:
        """Write the commit of a shard. Runs in a thread of the pool and changes no attribute."""
        bad = [failure for receipt in receipts for failure in receipt.failures]
        good = sum(receipt.stats.images for receipt in receipts)
        fraction = self.spec.config.limits.max_bad_fraction_per_shard
        quarantine = None
        if bad or quarantine_path(shard.id) in (self._quarantine_tables or ()):
            # Also without failures: the table of an earlier run may exist and must be deleted.
            quarantine = write_quarantine(self.spec.output, shard.id, bad)
        if is_over(len(bad), len(bad) + good, fraction):
            failure = _over_limit(shard, bad, len(bad) + good, fraction)
            return _Outcome(shard.id, good, len(bad), failure=failure)
        commit = build_commit(self.spec, shard, receipts)
        commit = with_file(commit, quarantine)
        tag = write_commit(self.spec.output, commit, replaces=older)
        return _Outcome(shard.id, good, len(bad), entry=Entry.of(commit, tag))

    def _note(self, outcome: _Outcome) -> None:
        if outcome.failure is not None:
            self.uncommitted_images += outcome.good
            self.uncommitted_failures += outcome.bad
            self._fail(outcome.failure)
        if outcome.entry is None:
            return
        self.committed += 1
        if outcome.shard in self.plan.retry_commits:
            self.retried.add(outcome.shard)
        if outcome.good + outcome.bad == 0:
            self.empty.append(outcome.shard)
        self.plan.commit_index.add(outcome.entry)
        with logs.about(shard=outcome.shard):
            text = "shard committed: %d images, %d quarantined"
            logs.event(logging.INFO, text, outcome.good, outcome.bad)


def _log_chunk(receipt: Receipt) -> None:
    """Log the retries and the quarantined images of a chunk."""
    with logs.about(shard=receipt.shard, chunk=receipt.seq):
        if receipt.store_retries:
            text = "requests to stores were tried again: %d"
            logs.event(logging.WARNING, text, receipt.store_retries)
        for failure in receipt.failures:
            text = "quarantined: %s: %s"
            logs.event(logging.WARNING, text, failure.location, failure.reason)


def _over_limit(shard: Shard, bad: Sequence[Failure], total: int, fraction: float) -> ShardFailure:
    first = min(bad, key=lambda failure: (failure.location, failure.key))
    excess = describe_excess(len(bad), total, fraction, "limits.max_bad_fraction_per_shard")
    reason = (
        f"shard {shard.id}: {excess}. First: {first.location}: {first.reason}. "
        f"Not committed. {suggest_remedy(bad)}; then run again."
    )
    return ShardFailure(shard.id, reason, "LimitsError")
