"""How far a run is, for those who watch it from elsewhere: `_progress.json`, and `status --watch`.

The driver writes it down every few seconds, so that watching costs two small reads each time,
however many shards there are. It is only told, never believed: commits say what is done.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from fcn_core.errors import FcnError
from pipeline.concurrency import Throttle
from pipeline.errors import MissingError
from pipeline.output.lease import Holder, read_lease
from pipeline.paths import PROGRESS
from pipeline.storage.store import Store

if TYPE_CHECKING:
    pass


SECONDS = 5.0
"""Between two writes."""


_WINDOW = 12
"""Looks that the present speed is taken from."""


class ProgressRecord:
    """Writes down the progress of a run; itself a listener to it.

    Args:
        output: of the run.
        owner: of the lease, so that a dead driver's record is not taken for a living one's.
        then: another listener.
    """

    def __init__(
        self, output: Store, owner: str, then: Callable[[Progress], None] | None = None
    ) -> None:
        self.output = output
        self.owner = owner
        self.then = then
        self._is_due = Throttle(SECONDS)

    def __call__(self, progress: Progress) -> None:
        """Write, if it is time, and tell the other one."""
        if self._is_due():
            document = {"owner": self.owner, **asdict(progress)}
            # Who cannot write this will not be able to commit either, and that is told.
            with contextlib.suppress(FcnError):
                self.output.write(PROGRESS, json.dumps(document).encode())
        if self.then is not None:
            self.then(progress)

    def __enter__(self) -> ProgressRecord:
        return self

    def __exit__(self, *_: object) -> None:
        """The run is over, however it ended."""
        with contextlib.suppress(FcnError):  # a driver without its lease may not, and need not
            self.output.delete(PROGRESS)


@dataclass(frozen=True)
class ProgressReading:
    """A run that is on, at this moment.

    Attributes:
        holder: the driver.
        progress: None before it began to label.
        images_per_second: lately; of the whole run at the first look.
        seconds_left: at the pace at which shards were finished lately; None while none was.
    """

    holder: Holder
    progress: Progress | None
    images_per_second: float
    seconds_left: float | None


class Watcher:
    """Looks at a run again and again; the pace is that of the latest looks. Writes nothing."""

    def __init__(self, output: Store) -> None:
        self.output = output
        self._seen: deque[Progress] = deque(maxlen=_WINDOW)

    def look(self) -> ProgressReading | None:
        """The run at this moment; None if no driver is at work.

        Raises:
            StoreError: the output cannot be read.
        """
        holder = read_lease(self.output)
        return self.look_at(holder) if holder is not None and holder.is_in_force() else None

    def look_at(self, holder: Holder) -> ProgressReading:
        """The run of a driver whose lease was read already.

        Raises:
            StoreError: the output cannot be read.
        """
        progress = _read(self.output, holder.owner)
        if progress is not None and (not self._seen or progress.seconds > self._seen[-1].seconds):
            self._seen.append(progress)
        return _look(holder, self._seen)


def watch(output: Store, interval: float) -> Iterator[ProgressReading]:
    """Look at a run every few seconds, until no driver is at work. Writes nothing.

    Args:
        output: of the run.
        interval: seconds between two looks.

    Raises:
        StoreError: it cannot be read.
    """
    watcher = Watcher(output)
    while (look := watcher.look()) is not None:
        yield look
        time.sleep(interval)


def _look(holder: Holder, seen: deque[Progress]) -> ProgressReading:
    if not seen:
        return ProgressReading(holder, None, 0.0, None)
    last = seen[-1]
    first = seen[0] if len(seen) > 1 else Progress(0, 0, 0, 0, 0.0)
    seconds = max(last.seconds - first.seconds, 1e-9)
    shards = last.shards_done - first.shards_done
    left = (last.shards_pending - last.shards_done) * seconds / shards if shards else None
    return ProgressReading(holder, last, (last.images - first.images) / seconds, left)


def _read(output: Store, owner: str) -> Progress | None:
    try:
        document = json.loads(output.read(PROGRESS))
        return Progress(**document) if document.pop("owner") == owner else None
    except (MissingError, ValueError, TypeError, KeyError):
        return None


@dataclass(frozen=True)
class Progress:
    """How far this run is with what was pending when it began."""

    shards_done: int
    shards_pending: int
    images: int
    failures: int
    seconds: float
