"""What a run says while it works, passed on to Prefect at a bounded rate.

Prefect's troubles are not the run's: while its server is away, telling fails and work goes on.
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
"""Between two looks at the progress, and between two batches of the log."""


LINES = 50
"""Lines of a job's log that are passed on per batch; the cluster keeps all of them."""


_LONGEST = 2_000


class PrefectReporter:
    """Passes on the progress and the log of one run.

    Args:
        key: of the progress artifact.
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
        """A line in the log and the bar on the flow run's page, if it is time or at the end."""
        told = (
            f"{progress.shards_done} of {progress.shards_pending} shards, "
            f"{progress.images} images, {progress.failures} quarantined"
        )
        self.step(progress.shards_done, progress.shards_pending, told)

    def step(self, done: int, of: int, told: str, *, at_once: bool = False) -> None:
        """The same for any work of so many steps; the end, and what is to be told at once, is."""
        is_due = at_once or done == of or self._progress_throttle.is_due()
        if told == self._last or not is_due:
            return
        self._last = told
        self._progress_throttle.restart()
        self.logger.info(told)
        self._bar(100.0 * done / max(1, of), told)

    def done(self) -> None:
        """The work is done: whoever follows a job from outside never sees the last of it."""
        self._bar(100.0, "done")

    def _bar(self, share: float, told: str) -> None:
        if self._artifact is None:
            self._artifact = quietly(
                create_progress_artifact, progress=share, key=self.key, description=told
            )
        else:
            quietly(
                update_progress_artifact,
                artifact_id=self._artifact,
                progress=share,
                description=told,
            )

    def lines(self, lines: Sequence[str], left_out: int) -> None:
        """New lines of a job's log; of many in one interval the newest are passed on."""
        self._left_out += left_out + max(0, len(self._lines) + len(lines) - LINES)
        self._lines.extend(lines)
        if self._lines_throttle.is_due():
            self.flush()

    def flush(self) -> None:
        """Pass on the lines that wait."""
        self._lines_throttle.restart()
        if self._left_out:
            self.logger.info("job: … %d lines left out", self._left_out)
            self._left_out = 0
        while self._lines:
            line = self._lines.popleft()
            self.logger.info("job: %s", shorten(line, _LONGEST))

    def silence(self) -> None:
        """The cluster does not answer: said once per interval."""
        if self._is_silence_due():
            self.logger.warning("the cluster does not answer; asking again")


def quietly(create: Callable[..., Any], **values: Any) -> Any:
    """Tell Prefect something that nothing depends on; None, and a warning, if that fails."""
    try:
        return create(**values)
    except Exception as error:  # whatever its client raises while the server is away
        get_run_logger().warning("not told to Prefect: %s", " ".join(str(error).split())[:300])
        return None
