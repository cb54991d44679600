"""`RunResult`: the outcome of a run, with its exit code."""

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
    """The outcome of a run.

    Attributes:
        output: URL of OUTPUT.
        labels: label set of the run.
        scores: scores over all commits of the output, as in `stats/scores.json`.
        images: images that were segmented, over all commits.
        failures: images that were quarantined, over all commits.
        shards: number of shards in the input.
        committed: number of shards of the input that are done.
        done_now: number of shards that this run committed.
        failed: shards that this run could not commit, with reasons.
        bad: images that could not be segmented, including those of failed shards.
        seen: all images, including those of failed shards.
        over_limit: whether `bad` of `seen` exceed `limits.max_bad_fraction`.
        vanished: as in `Plan`.
        passed_over: as in `Listing`.
        seconds: wall time of the run.
        empty: ids of shards without any sample that this run committed.
        store_retries: store requests that the driver and its workers sent again.
        vanished_names: as in `Plan`.
        unpacked: as in `Plan`.
        interrupted: whether Ctrl-C left pending shards.
        record: record of this run in the history; None if the run had nothing to do.
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
        """Return the quantities with major drift. Drift does not change the exit code."""
        return () if self.record is None else self.record.drifted

    @property
    def is_complete(self) -> bool:
        """Return whether the whole input is done within the limits: the run wrote `_SUCCESS`."""
        return self.committed == self.shards and not self.unpacked and not self.over_limit

    @property
    def exit_code(self) -> int:
        """Return the exit code of the run.

        0: all done; 3: done, with quarantined images; 4: shards failed, or the limit for bad images
        is exceeded; 130: interrupted.
        """
        if self.interrupted:
            return 130
        if self.failed or self.over_limit:
            return 4
        return 3 if self.failures else 0

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values for programs."""
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
