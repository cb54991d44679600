"""Follow a Ray job to its end, and stop one: its status, its progress in OUTPUT, its log.

Ray reports FAILED for every exit code but 0, and no exit code for a stopped job. Here a job ends
with the exit codes of `fcnseg run`. The log is read over a connection that may break.
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
from pipeline.ray_jobs.job_metadata import parse_metadata
from pipeline.ray_jobs.ray_client import Jobs, UnreachableError, retry_unreachable
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
"""The meaning of each exit code of a driver, as one line for people."""


LOST = "LOST"
"""Status of a job whose driver is gone although Ray reports RUNNING, or that Ray does not know."""


_ENDED = ("SUCCEEDED", "FAILED", "STOPPED", LOST)

# Beginnings of the log lines that give the reason of an end; the most precise one comes first.
_REASONS = ("error: ", "limits exceeded: ", "failed: ")

FOLLOW_STORE_OPTIONS = {
    "attempts": 2,
    "retry_seconds": 4.0,
    "connect_timeout": 3.0,
    "read_timeout": 10.0,
}
"""Options of the output store while a job is followed: a slow store must not delay the log."""


_RETRY_OUTPUT_SECONDS = 60.0
"""Seconds before an output that could not be read is tried again."""


_LOG_END_SECONDS = 15.0
"""Seconds to wait for the last lines of the log when a job has ended."""


MAX_KEPT_LINES = 10_000
"""Most log lines that wait to be taken; older ones are only counted."""


PAUSE_SECONDS = 2.0
"""Seconds before a new connection after the log connection has broken."""


@dataclass(frozen=True)
class PollInterval:
    """How often a job is polled, and when to give up.

    Attributes:
        interval: seconds between two readings.
        most_lines: most log lines of one reading; if there are more, the newest.
        patience: seconds that the cluster may be unreachable.
        lost_seconds: time without a lease and without a new log line after which a job that Ray
            reports as RUNNING is LOST. Only applies once its driver has held the lease.
    """

    interval: float = 2.0
    most_lines: int = 200
    patience: float = 300.0
    lost_seconds: float = 120.0


@dataclass(frozen=True)
class JobReading:
    """The state of a job at one moment.

    Attributes:
        status: Ray's status (PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED), or LOST.
        exit_code: exit code of the driver once the job is over: a key of `MEANINGS`, or another
            exit code of a shell. None before.
        reason: one line about the end once the job is over; empty before.
        run: progress that the driver writes to OUTPUT. None if no driver works on OUTPUT, or if
            OUTPUT cannot be read from this machine.
        lines: log lines since the last reading.
        left_out: number of older log lines since the last reading that are not in `lines`.
        is_reachable: whether the cluster answered. If not, `status` is that of the last reading.
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
        """Whether the job has ended, which makes this its last reading."""
        return self.status in _ENDED


@dataclass(frozen=True)
class StoppedJob:
    """The end of a job after a stop was requested.

    Attributes:
        status: STOPPED, or another final status if the job ended by itself.
        exit_code: exit code as in `JobReading`.
        holder: driver that still holds the lease of OUTPUT; None if there is none or if OUTPUT
            cannot be read from this machine.
    """

    status: str
    exit_code: int
    holder: Holder | None

    @property
    def lease_is_free(self) -> bool:
        """Whether the next run can start at once."""
        return self.holder is None


def follow(
    address: str | None, submission_id: str, poll: PollInterval | None = None
) -> Iterator[JobReading]:
    """Yield readings of a job until it is over; the last reading has the exit code.

    The job continues if the caller stops iterating.

    Args:
        address: address of the cluster, as for `Jobs`.
        submission_id: id of the job.
        poll: times and limits; None: the defaults.

    Raises:
        UnreachableError: the cluster did not answer for `poll.patience` seconds. The job may still
            run.
        ClusterError: as for `Jobs`.
    """
    poll = poll or PollInterval()
    jobs = retry_unreachable(lambda: Jobs(address), poll.patience)
    with LogTail(jobs, submission_id) as log:
        follower = _Follower(jobs, submission_id, poll, log)
        while not (reading := follower.read()).is_over:
            yield reading
            time.sleep(poll.interval)
        yield reading


def stop(address: str | None, submission_id: str, wait: float = 150.0) -> StoppedJob:
    """Stop a job and wait until it is over. A job that has ended already is not changed.

    Args:
        address: address of the cluster, as for `Jobs`.
        submission_id: id of the job.
        wait: seconds to wait for the end. Must exceed the time between SIGTERM and SIGKILL.

    Raises:
        ClusterError: there is no such job, or the job did not end in time; otherwise as for `Jobs`.
    """
    jobs = Jobs(address)
    deadline = time.monotonic() + wait
    is_asked = False
    while True:
        job = retry_unreachable(
            lambda: jobs.info(submission_id), max(1.0, deadline - time.monotonic())
        )
        if job is None:
            raise ClusterError(
                where=jobs.page(submission_id),
                found="no such job",
                expected="a job of this cluster",
                remedy="List the jobs with `ray job list`.",
            )
        if job.status.is_terminal():
            output = _OutputReader(job)
            output.read()
            code, _ = describe_end(job, output.holder)
            return StoppedJob(job.status.value, code, output.holder)
        # Ray cannot stop a job that it still prepares: `jobs.stop` returns False, so ask again.
        is_asked = is_asked or jobs.stop(submission_id)
        if time.monotonic() > deadline:
            raise ClusterError(
                where=jobs.page(submission_id),
                found=f"still {job.status.value} after {wait:.0f} s",
                expected="the end of the stopped job",
                remedy="See its log (ray job logs); stop it again, or with `ray job stop`.",
            )
        time.sleep(0.5)


class _Follower:
    """The state of `follow` between two readings."""

    def __init__(self, jobs: Jobs, submission_id: str, poll: PollInterval, log: LogTail) -> None:
        self.jobs = jobs
        self.submission_id = submission_id
        self.poll = poll
        self.log = log
        self.output: _OutputReader | None = None
        self.status = "PENDING"
        self.last_answer = self.last_activity = time.monotonic()
        self.has_had_driver = False
        self.characters = 0

    def read(self) -> JobReading:
        now = time.monotonic()
        try:
            job = self.jobs.info(self.submission_id)
        except UnreachableError:
            if now - self.last_answer > self.poll.patience:
                raise
            lines, left_out = self.log.take(self.poll.most_lines)
            run = self.output.read() if self.output is not None else None
            return JobReading(self.status, None, "", run, lines, left_out, is_reachable=False)
        if now - self.last_answer > 3 * self.poll.interval + 5:
            self.log.reconnect()
        self.last_answer = now
        if job is None:
            return self._end(LOST, 1, "the cluster does not know the job: its head was restarted")
        self.status = str(job.status.value)
        self.output = self.output or _OutputReader(job)
        run = self.output.read()
        if job.status.is_terminal():
            return self._end(self.status, *describe_end(job, self.output.holder))
        if self._is_lost(run, now):
            return self._end(
                LOST, 1, "Ray reports RUNNING, but its driver no longer holds the lease"
            )
        return JobReading(self.status, None, "", run, *self.log.take(self.poll.most_lines))

    def _is_lost(self, run: ProgressReading | None, now: float) -> bool:
        has_driver, characters = run is not None, self.log.characters
        self.has_had_driver |= has_driver
        if has_driver or characters > self.characters:
            self.last_activity, self.characters = now, characters
        # If OUTPUT cannot be read from this machine, a missing lease proves nothing.
        is_readable = self.output is not None and self.output.is_readable
        is_silent = now - self.last_activity > self.poll.lost_seconds
        return self.has_had_driver and is_readable and is_silent

    def _end(self, status: str, exit_code: int, reason: str) -> JobReading:
        if status != LOST:
            self.log.finish(_LOG_END_SECONDS)
        return JobReading(status, exit_code, reason, None, *self.log.take(self.poll.most_lines))


class _OutputReader:
    """Reads the lease and the progress in a job's OUTPUT, if this machine can read it.

    Attributes:
        watcher: reader of the progress; None if `fcnseg` did not submit the job.
        holder: driver that held the lease at the last reading; None if there was none.
        is_readable: whether the last reading could read OUTPUT.
    """

    def __init__(self, job: JobDetails) -> None:
        self.watcher: Watcher | None = None
        self.holder: Holder | None = None
        self.is_readable = False
        self._not_before = 0.0
        config = parse_metadata(job.metadata)
        if config is not None:
            options = config.output.store.model_copy(update=FOLLOW_STORE_OPTIONS)
            self.watcher = Watcher(Store(config.output.url, options))

    def read(self) -> ProgressReading | None:
        """Return the progress of the run; None if no driver holds the lease."""
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
        except FcnError:  # no access from this machine, or no answer
            self.is_readable = False
            self._not_before = time.monotonic() + _RETRY_OUTPUT_SECONDS
            return None


def describe_end(job: JobDetails, holder: Holder | None) -> tuple[int, str]:
    """Return the exit code and the reason, in one line, of a job that is over."""
    if job.status.value == "STOPPED":
        # Ray keeps no exit code of a stopped job. A driver that ended by SIGTERM has released its
        # lease; one that was killed has not.
        code = 143 if holder is None else 137
        return code, MEANINGS[code]
    status: int | None = job.driver_exit_code
    if status is None:  # the driver never started, or its node died
        return (0 if job.status.value == "SUCCEEDED" else 1), _find_reason(job.message)
    code = 128 - status if status < 0 else status
    if code in (0, 3, 130, 137, 143):
        return code, MEANINGS[code]
    return code, _find_reason(job.message) or MEANINGS.get(code, f"exit code {code}")


def _find_reason(message: str | None) -> str:
    """Return the line of Ray's message that gives the reason; it ends with the last log lines."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    for beginning in _REASONS:
        for line in reversed(lines):
            if line.startswith(beginning):
                return line.removeprefix("error: ")
    return lines[0] if lines else "no reason given"


class LogTail(threading.Thread):
    """A thread that reads the log of a job; a context manager that starts and stops it.

    Ray sends the log from its beginning at each connection. After a break, the part that was read
    before is skipped.

    Attributes:
        characters: number of characters of the log that were read.
    """

    def __init__(self, jobs: Jobs, submission_id: str) -> None:
        super().__init__(name=f"log of {submission_id}", daemon=True)
        self.jobs = jobs
        self.submission_id = submission_id
        self.characters = 0
        self._lines: deque[str] = deque()
        self._left_out = 0
        self._partial = ""
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._reading: asyncio.Task[None] | None = None
        self._stopped = False

    def take(self, most: int) -> tuple[tuple[str, ...], int]:
        """Return at most `most` lines since the last call, the newest, and the number of others."""
        with self._lock:
            lines, self._lines = list(self._lines), deque()
            left_out, self._left_out = self._left_out, 0
        cut = max(0, len(lines) - most)
        return tuple(lines[cut:]), left_out + cut

    def reconnect(self) -> None:
        """Open a new connection: the old one may be broken without an error."""
        self._loop.call_soon_threadsafe(self._cancel)

    def finish(self, seconds: float) -> None:
        """Wait until the log of an ended job is read to its end, at most `seconds`."""
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
        """Read until the log ends or the context manager exits."""
        self._loop.run_until_complete(self._read())

    def _cancel(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> None:
        while not self._stopped:
            self._reading = self._loop.create_task(self._read_once())
            try:
                await self._reading
                break  # the job has ended, so its log is complete
            except asyncio.CancelledError:
                continue
            except Exception:  # a broken connection raises errors of several libraries
                self._reading = self._loop.create_task(asyncio.sleep(PAUSE_SECONDS))
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
        while len(self._lines) > MAX_KEPT_LINES:
            self._lines.popleft()
            self._left_out += 1
