"""Turn the end of a run into the final state of its flow run: a name and a message of one line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.artifacts import RunOutcome
from pipeline.text import shorten

_LIMITS = 4

_DONE = (0, 3, _LIMITS)

_FINAL = (*_DONE, 2, 130, 143)
"""Exit codes after which a retry cannot help, or would continue a run that was stopped."""


@dataclass(frozen=True)
class FlowEnding:
    """End of a driver, in this process or on a cluster.

    Attributes:
        exit_code: exit code as of `fcnseg run`.
        reason: one line that explains any code other than 0 and 3.
    """

    exit_code: int
    reason: str = ""

    @property
    def left_results(self) -> bool:
        """Whether the driver finished, so that scores, report and marker are of this run."""
        return self.exit_code in _DONE

    @property
    def may_be_retried(self) -> bool:
        """Whether a retry may help: not after a wrong configuration, a limit, or a stop."""
        return self.exit_code not in _FINAL


def one_line(text: object, most: int = 1_000) -> str:
    r"""Return a text as one line, as the message of a state needs it.

    Args:
        text: text or exception.
        most: longest result, in characters.

    >>> one_line("two\n  lines")
    'two lines'
    """
    line = " ".join(str(text).split())
    return shorten(line, most)


def final_state(ending: FlowEnding, outcome: RunOutcome | None) -> State[Any]:
    """Return the final state of a flow run.

    Args:
        ending: end of the driver.
        outcome: output after the run; None if the run left no results.
    """
    if outcome is None or not ending.left_results:
        return Failed(message=one_line(ending.reason or f"exit code {ending.exit_code}"))
    failures = outcome.status.summary.failures
    if ending.exit_code == _LIMITS:
        more = len(outcome.failed) - 1
        reason = next(iter(outcome.failed.values()), None)
        if reason is None:
            reason = f"{failures} images quarantined: over the limit"
        return Failed(message=one_line(reason) + (f" (and {more} more)" if more > 0 else ""))
    message, name = _done(outcome), "Completed"
    if failures:
        message += f", {failures} images quarantined"
        name = "CompletedWithQuarantine"
    drifted = () if outcome.record is None else outcome.record.drifted
    if drifted:
        others = f" (and {len(drifted) - 1} more)" if len(drifted) > 1 else ""
        message += f"; drift: {drifted[0].reason}{others}"
        name = "CompletedWithDrift"
    return Completed(message=one_line(message), name=name)


def _done(outcome: RunOutcome) -> str:
    done_now = 0 if outcome.record is None else outcome.record.shards
    if done_now:
        return f"{done_now} shards segmented, {outcome.committed} of {outcome.shards} done"
    if outcome.committed < outcome.shards:
        return f"nothing done: {outcome.committed} of {outcome.shards} shards are done"
    return f"nothing pending: all {outcome.shards} shards are done"
