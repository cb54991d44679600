"""Report progress and log lines of a run to Prefect, at a bounded rate.

A failure to reach Prefect never ends the run: while the server is away, reports are lost and the
work continues.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from pipeline.concurrency import Throttle
from pipeline.monitoring.progress import Progress
from pipeline.text import shorten

SECONDS = 10.0
"""Shortest time between two reports of progress, and between two batches of log lines."""


LINES = 50
"""Most log lines of a job per batch; the cluster keeps the whole log."""


_MAX_LINE = 2_000


class PrefectReporter:
    """Reports the progress and the log of one run to Prefect.

    Args:
        key: key of the progress artifact.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.logger = get_run_logger()
        self._artifact: UUID | None = None
        self._progress_throttle = Throttle(SECONDS)
        self._last = ""
        self._lines: deque[str] = deque(maxlen=LINES)
        self._left_out = 0
        self._lines_throttle = Throttle(SECONDS, is_due_at_once=False)
        self._is_silence_due = Throttle(SECONDS)

    def progress(self, progress: Progress) -> None:
        """Report the progress of a run, if it is time or all shards are done."""
        text = (
            f"{progress.shards_done} of {progress.shards_pending} shards, "
            f"{progress.images} images, {progress.failures} quarantined"
        )
        self.step(progress.shards_done, progress.shards_pending, text)

    def step(self, done: int, of: int, text: str, *, at_once: bool = False) -> None:
        """Log a line of progress and move the bar on the page of the flow run, if it is time.

        Args:
            done: finished steps.
            of: steps in total; the last step is always reported.
            text: line that describes the progress; a repeated line is not reported.
            at_once: whether to report even if it is not time.
        """
        is_due = at_once or done == of or self._progress_throttle.is_due()
        if text == self._last or not is_due:
            return
        self._last = text
        self._progress_throttle.restart()
        self.logger.info(text)
        self._bar(100.0 * done / max(1, of), text)

    def done(self) -> None:
        """Move the bar to 100 %: the last progress of a followed job is never seen from outside."""
        self._bar(100.0, "done")

    def _bar(self, percent: float, text: str) -> None:
        if self._artifact is None:
            self._artifact = call_prefect(
                create_progress_artifact, progress=percent, key=self.key, description=text
            )
        else:
            call_prefect(
                update_progress_artifact,
                artifact_id=self._artifact,
                progress=percent,
                description=text,
            )

    def lines(self, lines: Sequence[str], left_out: int) -> None:
        """Add new lines of a job's log, and log the newest `LINES` of them if it is time.

        Args:
            lines: new lines, oldest first.
            left_out: number of lines that the follower already left out before these.
        """
        self._left_out += left_out + max(0, len(self._lines) + len(lines) - LINES)
        self._lines.extend(lines)
        if self._lines_throttle.is_due():
            self.flush()

    def flush(self) -> None:
        """Log the waiting lines now."""
        self._lines_throttle.restart()
        if self._left_out:
            self.logger.info("job: … %d lines left out", self._left_out)
            self._left_out = 0
        while self._lines:
            line = self._lines.popleft()
            self.logger.info("job: %s", shorten(line, _MAX_LINE))

    def warn_unreachable(self) -> None:
        """Log that the cluster does not answer, if it is time."""
        if self._is_silence_due():
            self.logger.warning("the cluster does not answer; asking again")


def call_prefect(create: Callable[..., Any], **values: Any) -> Any:
    """Create or update an artifact and return the result; on failure log a warning, return None.

    Args:
        create: function of `prefect.artifacts`.
        values: its arguments.
    """
    try:
        return create(**values)
    except Exception as error:  # the client raises many types while the server is away
        reason = " ".join(str(error).split())[:300]
        get_run_logger().warning("not reported to Prefect: %s", reason)
        return None
