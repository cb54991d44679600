"""Write and read the progress of a run: the file `_progress.json`, shown by `status --watch`.

The driver writes the file every few seconds. A look at a run costs two small reads, whatever the
number of shards. The file is for display only: commits decide which shards are done.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from fcn_core.errors import FcnError
from pipeline.concurrency import Throttle
from pipeline.errors import MissingError
from pipeline.output.lease import Holder, read_lease
from pipeline.paths import PROGRESS
from pipeline.storage.store import Store

SECONDS = 5.0
"""Shortest time between two writes of the file."""

_WINDOW = 12
"""Number of latest readings that the current speed is computed from."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run through the shards that were pending at its start.

    Attributes:
        shards_done: shards that were committed or given up.
        shards_pending: shards that were pending at the start.
        images: segmented images.
        failures: quarantined images.
        seconds: time since the start.
    """

    shards_done: int
    shards_pending: int
    images: int
    failures: int
    seconds: float


class ProgressRecord:
    """Listener that writes the progress of a run to OUTPUT, and deletes the file at the end.

    Args:
        output: OUTPUT of the run.
        owner: owner of the lease; readers ignore a file of another owner, such as a dead driver.
        then: another listener, called at every report.
    """

    def __init__(
        self, output: Store, owner: str, then: Callable[[Progress], None] | None = None
    ) -> None:
        self.output = output
        self.owner = owner
        self.then = then
        self._is_due = Throttle(SECONDS)

    def __call__(self, progress: Progress) -> None:
        """Write the file, if it is time, and call the other listener."""
        if self._is_due():
            document = {"owner": self.owner, **asdict(progress)}
            # If OUTPUT cannot be written, the next commit fails too, and reports the error.
            with contextlib.suppress(FcnError):
                self.output.write(PROGRESS, json.dumps(document).encode())
        if self.then is not None:
            self.then(progress)

    def __enter__(self) -> ProgressRecord:
        return self

    def __exit__(self, *_: object) -> None:
        """Delete the file, whether the run succeeded or failed."""
        with contextlib.suppress(FcnError):  # a driver that lost its lease may not delete it
            self.output.delete(PROGRESS)


@dataclass(frozen=True)
class ProgressReading:
    """State of a running run at one moment.

    Attributes:
        holder: driver that holds the lease.
        progress: latest written progress; None before segmentation began.
        images_per_second: recent speed; at the first reading, the average since the start.
        seconds_left: estimate from the recent speed in shards; None if no shard was finished.
    """

    holder: Holder
    progress: Progress | None
    images_per_second: float
    seconds_left: float | None


class Watcher:
    """Reads the progress of a run repeatedly and computes its recent speed. Writes nothing.

    Args:
        output: OUTPUT of the run.
    """

    def __init__(self, output: Store) -> None:
        self.output = output
        self._seen: deque[Progress] = deque(maxlen=_WINDOW)

    def look(self) -> ProgressReading | None:
        """Return the current state of the run; None if no driver is working.

        Raises:
            StoreError: OUTPUT cannot be read.
        """
        holder = read_lease(self.output)
        return self.look_at(holder) if holder is not None and holder.is_in_force() else None

    def look_at(self, holder: Holder) -> ProgressReading:
        """Return the current state of the run of a given driver.

        Args:
            holder: lease of the driver, already read.

        Raises:
            StoreError: OUTPUT cannot be read.
        """
        progress = _read(self.output, holder.owner)
        if progress is not None and (not self._seen or progress.seconds > self._seen[-1].seconds):
            self._seen.append(progress)
        return _reading(holder, self._seen)


def watch(output: Store, interval: float) -> Iterator[ProgressReading]:
    """Yield the state of a run every few seconds, until no driver is working. Writes nothing.

    Args:
        output: OUTPUT of the run.
        interval: seconds between two readings.

    Raises:
        StoreError: OUTPUT cannot be read.
    """
    watcher = Watcher(output)
    while (reading := watcher.look()) is not None:
        yield reading
        time.sleep(interval)


def _reading(holder: Holder, seen: deque[Progress]) -> ProgressReading:
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
