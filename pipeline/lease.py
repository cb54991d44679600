"""One writer: a lease object in OUTPUT, renewed while the driver lives.

Without it two drivers would do the same work twice (harmless: equal bytes) and race for commits.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from fcn_core.errors import FcnError
from pipeline.errors import LeaseError, MissingError
from pipeline.store import Store

PATH = "_lease.json"
SECONDS = 30.0
RENEW_SECONDS = 10.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, and until when (seconds since the epoch)."""

    owner: str
    host: str
    boot: str
    pid: int
    started: float
    expires: float
    shards: int = 0

    @classmethod
    def this_process(cls, now: float) -> Holder:
        """This process as a holder from now on."""
        return cls(
            owner=uuid.uuid4().hex,
            host=socket.gethostname(),
            boot=_boot_id(),
            pid=os.getpid(),
            started=_start_time(os.getpid()) or 0.0,
            expires=now + SECONDS,
        )

    def is_known_dead(self) -> bool:
        """True only if it ran on this host, boot and container, and its process is gone."""
        if not self.boot or (self.host, self.boot) != (socket.gethostname(), _boot_id()):
            return False
        return _start_time(self.pid) != self.started

    def is_in_force(self) -> bool:
        """Whether it keeps others out: neither run out nor held by a dead process."""
        return not self.is_known_dead() and self.expires > time.time()

    def describe(self) -> str:
        """For people."""
        until = time.strftime("%H:%M:%S", time.gmtime(self.expires))
        return f"process {self.pid} on {self.host}, until {until} UTC unless renewed"


class Lease:
    """The right to write to an output, as a context manager.

    Raises (on entering):
        LeaseError: somebody else holds it.
    """

    def __init__(self, output: Store) -> None:
        self.output = output
        self.holder = Holder.this_process(time.time())
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    @property
    def is_lost(self) -> bool:
        """Whether another driver took over, or renewing failed until the lease ran out."""
        return self._lost.is_set()

    def check(self) -> None:
        """Refuse to go on without the lease.

        Raises:
            LeaseError: it was lost.
        """
        if self.is_lost:
            raise LeaseError(
                self.output.location(PATH),
                "this driver lost its lease",
                "one driver per output",
                "Nothing was committed since. Run again to resume.",
            )

    def __enter__(self) -> Lease:
        if not self.output.create(PATH, self._data()):
            current = read_lease(self.output)
            # Our own if the answer to the first try of the put was lost.
            if current is None or current.owner != self.holder.owner:
                self._take_over(current)
        self._thread.start()
        return self

    def _take_over(self, current: Holder | None) -> None:
        if current is not None and current.is_in_force():
            raise LeaseError(
                self.output.location(PATH),
                f"held by {current.describe()}",
                "one driver per output",
                "Wait for it, or run again after that time.",
            )
        self.output.delete(PATH)
        if not self.output.create(PATH, self._data()):  # another one was faster
            raise LeaseError(
                self.output.location(PATH),
                "taken by another driver just now",
                "one driver per output",
                "Run again when it is done.",
            )
        self.output.sweep()  # the driver before us may have died in the middle of a put

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        # A store that fails here failed before: that error is to be shown, and the lease expires.
        with contextlib.suppress(FcnError):
            current = read_lease(self.output)
            if current is not None and current.owner == self.holder.owner:
                self.output.delete(PATH)

    def _data(self) -> bytes:
        return json.dumps(asdict(self.holder)).encode()

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            try:
                current = read_lease(self.output)
                if current is None or current.owner != self.holder.owner:
                    self._lost.set()
                    return
                renewed = Holder(**{**asdict(self.holder), "expires": time.time() + SECONDS})
                self.output.write(PATH, json.dumps(asdict(renewed)).encode())
                self.holder = renewed
            except FcnError:  # the store may be back before the lease runs out
                if time.time() > self.holder.expires:
                    self._lost.set()
                    return


def read_lease(output: Store) -> Holder | None:
    """Who holds the lease of an output, if anybody."""
    try:
        return Holder(**json.loads(output.read(PATH)))
    except (MissingError, ValueError, TypeError):
        return None


def _boot_id() -> str:
    """Tells boots apart, and containers of one boot, which number their processes on their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_time(pid: int) -> float | None:
    """When a process started, in clock ticks since boot; None if there is none (or no /proc)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    # A zombie holds nothing any more. Field 3 is the state, field 22 the start time (man 5 proc).
    return None if fields[0] == "Z" else float(fields[19])
