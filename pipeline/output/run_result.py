"""What a run says of itself: its progress, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fcn_core.labels import LabelSet
from pipeline.stages.spec import ShardFailure

if TYPE_CHECKING:
    from pipeline.output.drift import Drift
    from pipeline.output.history import RunRecord


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind, for people and for exit codes.

    Attributes:
        output: its URL.
        labels: the label set.
        scores: merged over all commits of the output, as `stats/scores.json` has them.
        images, failures: over all commits.
        shards: of the input.
        committed: shards of the input that are done.
        done_now: shards committed by this run.
        failed: shards that this run could not finish, with reasons.
        bad, seen: images that could not be labelled, of all; those of failed shards included.
        over_limit: whether `bad` of `seen` exceed the run's bad-fraction limit.
        vanished, vanished_names, unpacked: see `Plan`.
        passed_over: see `Listing`.
        empty: shards committed by this run that hold no sample.
        seconds: wall time.
        store_retries: requests to stores that were tried again, by the driver and its workers.
        interrupted: whether Ctrl-C left some of what was pending.
        record: what the history keeps of this run; None if it had nothing to do.
    """

    output: str
    labels: LabelSet
    scores: Mapping[str, Any]
    images: int
    failures: int
    shards: int
    committed: int
    done_now: int
    failed: tuple[ShardFailure, ...]
    bad: int
    seen: int
    over_limit: bool
    vanished: int
    passed_over: tuple[str, ...]
    seconds: float
    empty: tuple[str, ...] = ()
    store_retries: int = 0
    vanished_names: tuple[str, ...] = ()
    unpacked: int = 0
    interrupted: bool = False
    record: RunRecord | None = None

    @property
    def drifted(self) -> tuple[Drift, ...]:
        """What this run labelled otherwise than was labelled before; it changes no exit code."""
        return () if self.record is None else self.record.drifted

    @property
    def is_complete(self) -> bool:
        """Whether all of the input is done, within the limits: what `_SUCCESS` says."""
        return self.committed == self.shards and not self.unpacked and not self.over_limit

    @property
    def exit_code(self) -> int:
        """0 all done, 3 done with quarantined images, 4 limits exceeded, 130 interrupted."""
        if self.interrupted:
            return 130
        if self.failed or self.over_limit:
            return 4
        return 3 if self.failures else 0

    def to_dict(self) -> dict[str, Any]:
        """For machines: the scores, and what became of the shards."""
        return {
            **self.scores,
            "output": self.output,
            "exit_code": self.exit_code,
            "shards_in_input": self.shards,
            "shards_committed": self.committed,
            "shards_done_now": self.done_now,
            "failed_shards": {failure.shard: failure.reason for failure in self.failed},
            "over_limit": self.over_limit,
            "vanished": self.vanished,
            "vanished_names": list(self.vanished_names),
            "unpacked": self.unpacked,
            "passed_over": list(self.passed_over),
            "empty_shards": list(self.empty),
            "seconds": round(self.seconds, 3),
            "store_retries": self.store_retries,
            "drifted": [drift.reason for drift in self.drifted],
            "run": None if self.record is None else self.record.to_dict(),
        }
