"""The lease: an object in OUTPUT that lets only one driver write, renewed while the driver runs.

Without it, two drivers would do the same work twice (harmless: equal bytes) and race for commits.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from fcn_core.errors import FcnError
from pipeline.errors import LeaseError, MissingError
from pipeline.paths import LEASE
from pipeline.storage.store import Store

SECONDS = 30.0
"""Duration of a lease without renewal."""

RENEW_SECONDS = 10.0
"""Interval between renewals."""

MARGIN_SECONDS = 5.0
"""A driver stops this long before its lease expires: the clocks of two machines may differ."""


# A renewal must succeed or fail long before the lease expires.
_RENEWAL = {"attempts": 3, "retry_seconds": 4.0, "connect_timeout": 3.0, "read_timeout": 5.0}


@dataclass(frozen=True)
class Holder:
    """The holder of a lease.

    Attributes:
        owner: random id; distinguishes two leases of one process.
        host: name of the host.
        boot: id of the boot and of the container; empty if unknown.
        pid: process id.
        started: start of the process in clock ticks since boot, because process ids are reused.
        expires: end of the lease, seconds since the epoch.
        since: start of the lease, seconds since the epoch.
    """

    owner: str
    host: str
    boot: str
    pid: int
    started: float
    expires: float
    since: float = 0.0

    @classmethod
    def this_process(cls, now: float) -> Holder:
        """Return a holder for this process, from `now` on (seconds since the epoch)."""
        return cls(
            owner=uuid.uuid4().hex,
            host=socket.gethostname(),
            boot=_boot_id(),
            pid=os.getpid(),
            started=process_start_time(os.getpid()) or 0.0,
            expires=now + SECONDS,
            since=now,
        )

    def is_known_dead(self) -> bool:
        """Return whether the process ran on this host, boot and container, and has ended."""
        if not self.boot or (self.host, self.boot) != (socket.gethostname(), _boot_id()):
            return False
        return process_start_time(self.pid) != self.started

    def is_in_force(self) -> bool:
        """Return whether the lease is valid: not expired, and not held by a dead process."""
        return not self.is_known_dead() and self.expires > time.time()

    def describe(self) -> str:
        """Return a description for messages."""
        since, until = (
            time.strftime("%H:%M:%S", time.gmtime(moment)) for moment in (self.since, self.expires)
        )
        return (
            f"process {self.pid} on {self.host} since {since} UTC, until {until} UTC unless renewed"
        )


class Lease:
    """The right to write to an output, as a context manager.

    Raises (on entering):
        LeaseError: another driver holds the lease.
    """

    def __init__(self, output: Store) -> None:
        options = output.options.model_copy(update=_RENEWAL)
        self.output = Store(output.url, options)
        self.holder = Holder.this_process(time.time())
        self._tag = ""
        self._valid_until = 0.0  # in seconds of `lease_clock`
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    @property
    def is_lost(self) -> bool:
        """Return whether another driver took over, or the lease was not renewed in time."""
        return self._lost.is_set() or lease_clock() > self._valid_until

    def check(self) -> None:
        """Refuse to continue without the lease.

        Raises:
            LeaseError: the lease was lost.
        """
        if self.is_lost:
            raise LeaseError(
                where=self.output.location(LEASE),
                found="this driver lost its lease",
                expected="one driver per output",
                remedy="Nothing was committed since. Run again to resume.",
            )

    def __enter__(self) -> Lease:
        asked, now = lease_clock(), time.time()
        self.holder = replace(self.holder, since=now, expires=now + SECONDS)
        tag = self.output.create(LEASE, self._data())
        if tag is None:
            tag = self._take_over()
        self._hold(tag, asked)
        self._thread.start()
        return self

    def _take_over(self) -> str:
        current, tag = _read(self.output)
        # If the response to our request was lost, the existing lease is our own.
        if current is not None and current.owner == self.holder.owner:
            return tag
        if current is not None and current.is_in_force():
            raise LeaseError(
                where=self.output.location(LEASE),
                found=f"held by {current.describe()}",
                expected="one driver per output",
                remedy="Wait for it, or run again after that time.",
            )
        # If several drivers see an expired lease, the store lets only one replace it.
        put = self.output.replace(LEASE, self._data(), tag) if tag else None
        if put is None and not tag:
            put = self.output.create(LEASE, self._data())
        if put is None:
            raise LeaseError(
                where=self.output.location(LEASE),
                found="taken by another driver just now",
                expected="one driver per output",
                remedy="Run again when it is done.",
            )
        self.output.sweep()  # the earlier driver may have been killed during a write
        return put

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        # A store error here must not hide the original one. An undeleted lease expires by itself.
        with contextlib.suppress(FcnError):
            current, tag = _read(self.output)
            if current is not None and current.owner == self.holder.owner:
                self.output.delete(LEASE, tag)

    def _data(self) -> bytes:
        return json.dumps(asdict(self.holder)).encode()

    def _hold(self, tag: str, asked: float) -> None:
        self._tag = tag
        self._valid_until = asked + SECONDS - min(MARGIN_SECONDS, SECONDS / 4)

    def _keep(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            try:
                if not self._renew():
                    self._lost.set()
            except FcnError:  # the store may recover before the lease expires
                pass
            if self.is_lost:
                return

    def _renew(self) -> bool:
        """Renew the lease, and return whether this driver still holds it."""
        asked = lease_clock()
        renewed = replace(self.holder, expires=time.time() + SECONDS)
        data = json.dumps(asdict(renewed)).encode()
        tag = self.output.replace(LEASE, data, self._tag)
        if tag is None:  # an earlier renewal may have succeeded although its response was lost
            current, tag = _read(self.output)
            if current is None or current.owner != self.holder.owner:
                return False
            tag = self.output.replace(LEASE, data, tag)
            if tag is None:
                return False
        self.holder = renewed
        self._hold(tag, asked)
        return True


def read_lease(output: Store) -> Holder | None:
    """Return the holder of the lease of an output; None without a lease."""
    return _read(output)[0]


def _read(output: Store) -> tuple[Holder | None, str]:
    """Return the holder (None if missing or unreadable) and the object's tag ("" if missing)."""
    try:
        data, tag = output.read_tagged(LEASE)
    except MissingError:
        return None, ""
    try:
        return Holder(**json.loads(data)), tag
    except (ValueError, TypeError):
        return None, tag


def lease_clock() -> float:
    """Return monotonic seconds, including the time that the machine sleeps where possible."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _boot_id() -> str:
    """Return an id of this boot and container: process ids are only unique inside them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def process_start_time(pid: int) -> float | None:
    """Return the start of a process in clock ticks since boot; None if it is unknown or gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    # A zombie (state Z) has ended. Field 3 is the state, field 22 the start time (man 5 proc).
    return None if fields[0] == "Z" else float(fields[19])
