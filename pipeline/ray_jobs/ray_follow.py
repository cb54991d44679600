"""A Ray job from its start to its end: what Ray says of it, what its driver writes down, its log.

Ray calls every exit code but 0 FAILED, and keeps none of a job that was stopped; here a job ends
with the exit codes of `fcnseg run`.

The log of a Ray job as it grows, over a connection that may break.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from fcn_core.errors import FcnError
from pipeline.errors import ClusterError
from pipeline.monitoring.progress import ProgressReading, Watcher
from pipeline.output.lease import Holder, read_lease
from pipeline.ray_jobs.job_metadata import config_of
from pipeline.ray_jobs.ray_client import Jobs, UnreachableError, patiently
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from ray.job_submission import JobDetails


MEANINGS = {
    0: "all done",
    1: "error",
    2: "wrong usage or configuration",
    3: "done, with quarantined images within the limits",
    4: "limits exceeded, or a shard failed",
    75: "another driver holds the lease of this output",
    130: "interrupted; run again to resume",
    137: "killed; run again to resume",
    143: "terminated; run again to resume",
}
"""What the exit code of a driver means."""


LOST = "LOST"
"""Our status of a job that is over though Ray does not say so."""


_ENDED = ("SUCCEEDED", "FAILED", "STOPPED", LOST)

# What the driver's last words begin with, in the order of what they tell.
_REASONS = ("error: ", "limits exceeded: ", "failed: ")

LOOKING = {"attempts": 2, "retry_seconds": 4.0, "connect_timeout": 3.0, "read_timeout": 10.0}
"""Options of a store that is only looked at: it must not hold up the one who follows."""


_LOOK_AGAIN_SECONDS = 60.0

_LOG_END_SECONDS = 15.0


@dataclass(frozen=True)
class PollInterval:
    """How closely a job is followed.

    Attributes:
        interval: seconds between two looks.
        most_lines: of the log in one look; where there are more, the newest.
        patience: seconds the cluster may be unreachable.
        lost_seconds: after its driver was seen at work, a job that Ray calls RUNNING is lost when
            for so long nobody held the lease and no line was logged.
    """

    interval: float = 2.0
    most_lines: int = 200
    patience: float = 300.0
    lost_seconds: float = 120.0


@dataclass(frozen=True)
class JobReading:
    """A job at one moment.

    Attributes:
        status: PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED as Ray says; LOST as we do.
        exit_code: of the driver, when the job is over: a key of `MEANINGS` or another of a shell.
        reason: one line, when the job is over.
        run: the driver's own account of its run; None where none is at work or OUTPUT cannot be
            read from here.
        lines: of the log, new since the last look.
        left_out: how many more there were.
        is_reachable: whether the cluster answered; if not, status is that of the last look.
    """

    status: str
    exit_code: int | None
    reason: str
    run: ProgressReading | None
    lines: tuple[str, ...]
    left_out: int
    is_reachable: bool = True

    @property
    def is_over(self) -> bool:
        """Whether this is the last look."""
        return self.status in _ENDED


@dataclass(frozen=True)
class Stopped:
    """What became of a job that was told to stop.

    Attributes:
        status: STOPPED, or how it had ended by itself.
        exit_code: as in `JobReading`.
        holder: who holds the lease of its output still; None if nobody does, or it cannot be read.
    """

    status: str
    exit_code: int
    holder: Holder | None

    @property
    def lease_is_free(self) -> bool:
        """Whether the next run may begin at once."""
        return self.holder is None


def follow(
    address: str | None, submission_id: str, pace: PollInterval | None = None
) -> Iterator[JobReading]:
    """Look at a job again and again until it is over; the last look has its exit code.

    The job does not notice: stop iterating, and it goes on.

    Args:
        address: see `Jobs`.
        submission_id: of the job.
        pace: how closely.

    Raises:
        UnreachableError: the cluster did not answer for `pace.patience` seconds. The job may go on.
        ClusterError: see `Jobs`.
    """
    pace = pace or PollInterval()
    jobs = patiently(lambda: Jobs(address), pace.patience)
    with LogTail(jobs, submission_id) as log:
        follower = _Follower(jobs, submission_id, pace, log)
        while not (look := follower.look()).is_over:
            yield look
            time.sleep(pace.interval)
        yield look


def stop(address: str | None, submission_id: str, wait: float = 150.0) -> Stopped:
    """Stop a job, and wait until it is over. One that is over already stays as it is.

    Args:
        address: see `Jobs`.
        submission_id: of the job.
        wait: seconds to wait for its end; more than it has between SIGTERM and SIGKILL.

    Raises:
        ClusterError: there is no such job, or it did not end. See `Jobs`.
    """
    jobs = Jobs(address)
    deadline = time.monotonic() + wait
    asked = False
    while True:
        job = patiently(lambda: jobs.info(submission_id), max(1.0, deadline - time.monotonic()))
        if job is None:
            raise ClusterError(
                where=jobs.page(submission_id),
                found="no such job",
                expected="a job of this cluster",
            )
        if job.status.is_terminal():
            outlook = _Outlook(job)
            outlook.look()
            code, _ = _outcome(job, outlook.holder)
            return Stopped(job.status.value, code, outlook.holder)
        # A job that is still being prepared has nobody yet who could stop it: ask again.
        asked = asked or jobs.stop(submission_id)
        if time.monotonic() > deadline:
            raise ClusterError(
                where=jobs.page(submission_id),
                found=f"still {job.status.value} after {wait:.0f} s",
                expected="the end of a job that was stopped",
                remedy="See its log, and `ray job stop`.",
            )
        time.sleep(0.5)


class _Follower:
    """What `follow` remembers between two looks."""

    def __init__(self, jobs: Jobs, submission_id: str, pace: PollInterval, log: LogTail) -> None:
        self.jobs = jobs
        self.submission_id = submission_id
        self.pace = pace
        self.log = log
        self.outlook: _Outlook | None = None
        self.status = "PENDING"
        self.answered = self.alive = time.monotonic()
        self.was_at_work = False
        self.characters = 0

    def look(self) -> JobReading:
        now = time.monotonic()
        try:
            job = self.jobs.info(self.submission_id)
        except UnreachableError:
            if now - self.answered > self.pace.patience:
                raise
            lines, left_out = self.log.take(self.pace.most_lines)
            run = self.outlook.look() if self.outlook is not None else None
            return JobReading(self.status, None, "", run, lines, left_out, is_reachable=False)
        if now - self.answered > 3 * self.pace.interval + 5:
            self.log.reconnect()
        self.answered = now
        if job is None:
            return self._over(LOST, 1, "the cluster knows no such job: its head was started anew")
        self.status = str(job.status.value)
        self.outlook = self.outlook or _Outlook(job)
        run = self.outlook.look()
        if job.status.is_terminal():
            return self._over(self.status, *_outcome(job, self.outlook.holder))
        if self._is_lost(run, now):
            return self._over(LOST, 1, "Ray calls it RUNNING, but nobody holds its lease any more")
        return JobReading(self.status, None, "", run, *self.log.take(self.pace.most_lines))

    def _is_lost(self, run: ProgressReading | None, now: float) -> bool:
        at_work, characters = run is not None, self.log.characters
        self.was_at_work |= at_work
        if at_work or characters > self.characters:
            self.alive, self.characters = now, characters
        can_tell = self.was_at_work and self.outlook is not None and self.outlook.is_readable
        return can_tell and now - self.alive > self.pace.lost_seconds

    def _over(self, status: str, exit_code: int, reason: str) -> JobReading:
        if status != LOST:
            self.log.finish(_LOG_END_SECONDS)
        return JobReading(status, exit_code, reason, None, *self.log.take(self.pace.most_lines))


class _Outlook:
    """A job's output, as far as it can be seen from here."""

    def __init__(self, job: JobDetails) -> None:
        self.watcher: Watcher | None = None
        self.holder: Holder | None = None
        self.is_readable = False
        self._not_before = 0.0
        config = config_of(job.metadata)
        if config is not None:
            options = config.output.store.model_copy(update=LOOKING)
            self.watcher = Watcher(Store(config.output.url, options))

    def look(self) -> ProgressReading | None:
        """The run, if a driver is at work; `holder` is its, or None."""
        self.holder = None
        if self.watcher is None or time.monotonic() < self._not_before:
            return None
        try:
            holder = read_lease(self.watcher.output)
            self.is_readable = True
            if holder is None or not holder.is_in_force():
                return None
            self.holder = holder
            return self.watcher.look_at(holder)
        except FcnError:  # only the cluster may read it, or it does not answer now
            self.is_readable = False
            self._not_before = time.monotonic() + _LOOK_AGAIN_SECONDS
            return None


def _outcome(job: JobDetails, holder: Holder | None) -> tuple[int, str]:
    """(exit code, reason in one line) of a job that is over."""
    if job.status.value == "STOPPED":
        # Ray keeps no exit code of it. A driver that had the time gave its lease back.
        code = 143 if holder is None else 137
        return code, MEANINGS[code]
    ended: int | None = job.driver_exit_code
    if ended is None:  # it never began, or its node died
        return (0 if job.status.value == "SUCCEEDED" else 1), _said(job.message)
    code = 128 - ended if ended < 0 else ended
    if code in (0, 3, 130, 137, 143):
        return code, MEANINGS[code]
    return code, _said(job.message) or MEANINGS.get(code, f"exit code {code}")


def _said(message: str | None) -> str:
    """The line that tells most of Ray's message, which ends with the last lines of the log."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    for beginning in _REASONS:
        for line in reversed(lines):
            if line.startswith(beginning):
                return line.removeprefix("error: ")
    return lines[0] if lines else "no reason given"


MOST_KEPT = 10_000
"""Lines that wait to be taken; older ones are only counted."""


_PAUSE_SECONDS = 2.0


class LogTail(threading.Thread):
    """Reads the log of a job in a thread of its own, as a context manager.

    Ray sends a log from its beginning each time: after a break, what was seen is passed over.
    """

    def __init__(self, jobs: Jobs, submission_id: str) -> None:
        super().__init__(name=f"log of {submission_id}", daemon=True)
        self.jobs = jobs
        self.submission_id = submission_id
        self.characters = 0
        """How long the log is, as far as it was read."""
        self._lines: deque[str] = deque()
        self._left_out = 0
        self._partial = ""
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._reading: asyncio.Task[None] | None = None
        self._stopped = False

    def take(self, most: int) -> tuple[tuple[str, ...], int]:
        """(the newest lines since the last call, at most so many; how many more there were)."""
        with self._lock:
            lines, self._lines = list(self._lines), deque()
            left_out, self._left_out = self._left_out, 0
        cut = max(0, len(lines) - most)
        return tuple(lines[cut:]), left_out + cut

    def reconnect(self) -> None:
        """Read over a new connection: the old one may be dead without knowing it."""
        self._loop.call_soon_threadsafe(self._cancel)

    def finish(self, seconds: float) -> None:
        """Wait until the log of an ended job was read to its end, but no longer than that."""
        self.join(seconds)

    def __enter__(self) -> LogTail:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped = True
        if self.is_alive():
            self.reconnect()
            self.join()
        self._loop.close()

    def run(self) -> None:
        """Until the log ends or nobody wants it any more."""
        self._loop.run_until_complete(self._read())

    def _cancel(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> None:
        while not self._stopped:
            self._reading = self._loop.create_task(self._read_once())
            try:
                await self._reading
                break  # the job has ended, and so has its log
            except asyncio.CancelledError:
                continue
            except Exception:  # whatever a broken connection looks like
                self._reading = self._loop.create_task(asyncio.sleep(_PAUSE_SECONDS))
                try:
                    await self._reading
                except asyncio.CancelledError:
                    continue
        with self._lock:
            if self._partial:
                self._keep([self._partial])
                self._partial = ""

    async def _read_once(self) -> None:
        position = 0
        async for text in self.jobs.tail(self.submission_id):
            new = text[max(0, self.characters - position) :]
            position += len(text)
            if new:
                self._add(new)

    def _add(self, text: str) -> None:
        with self._lock:
            self.characters += len(text)
            *lines, self._partial = (self._partial + text).split("\n")
            self._keep(lines)

    def _keep(self, lines: list[str]) -> None:
        self._lines += lines
        while len(self._lines) > MOST_KEPT:
            self._lines.popleft()
            self._left_out += 1
