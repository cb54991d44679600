"""The log of a Ray job as it grows, over a connection that may break."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from types import TracebackType

from pipeline.cluster.ray_client import Jobs

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
