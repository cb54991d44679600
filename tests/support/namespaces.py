"""Network namespaces: machines of their own, as far as the network goes, on this one.

A bridge and every machine lie in namespaces, so that this machine's own network is left alone.
Namespaces bear the pid of the process that made them: those that a killed process left are
removed by the next `Network`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_NEWNET = 0x40000000


def namespace(name: str) -> str:
    """The namespace of a machine of this process."""
    return f"fcn{os.getpid()}-{name}"


def ip(*words: str) -> str:
    """Run iproute2."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


@cache
def is_possible() -> bool:
    """Whether this process may make network namespaces."""
    name = namespace("try")
    if os.geteuid() or not shutil.which("ip"):
        return False
    with suppress(RuntimeError):
        ip("netns", "add", name)
        ip("netns", "del", name)
        return True
    return False


def inside(name: str, action: Callable[[], T]) -> T:
    """What an action gives in a namespace. Sockets that it opens stay there."""

    def entered() -> T:
        descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, _NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter {name}")
        finally:
            os.close(descriptor)
        return action()

    with ThreadPoolExecutor(1) as thread:  # a namespace belongs to a thread; this one ends with it
        return thread.submit(entered).result()


class Network:
    """A bridge and what hangs on it, as a context manager."""

    def __init__(self) -> None:
        self._hub = namespace("hub")
        self.namespaces: list[str] = []

    def __enter__(self) -> Network:
        _sweep()
        self._add(self._hub)
        ip("-n", self._hub, "link", "add", "bridge", "type", "bridge")
        ip("-n", self._hub, "link", "set", "bridge", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(self.namespaces):
            _remove(name)

    def attach(self, name: str, address: str) -> str:
        """A new namespace with an address, reachable from all others; its name."""
        mine = namespace(name)
        self._add(mine)
        ip("link", "add", "eth0", "netns", mine, "type", "veth",
           "peer", "name", name, "netns", self._hub)  # fmt: skip
        ip("-n", self._hub, "link", "set", name, "master", "bridge", "up")
        ip("-n", mine, "address", "add", f"{address}/24", "dev", "eth0")
        ip("-n", mine, "link", "set", "eth0", "up")
        return mine

    def _add(self, name: str) -> None:
        ip("netns", "add", name)
        self.namespaces.append(name)
        ip("-n", name, "link", "set", "lo", "up")


def pids(name: str) -> list[int]:
    """All processes of a namespace."""
    return [int(word) for word in ip("netns", "pids", name).split()]


def kill_all(name: str) -> None:
    """SIGKILL to every process of a namespace, until there is none."""
    while found := pids(name):
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _remove(name: str) -> None:
    kill_all(name)
    ip("netns", "del", name)


def _sweep() -> None:
    """Remove the namespaces of test processes that are gone."""
    for line in ip("netns", "list").splitlines():
        name = line.split()[0]
        owner = name.removeprefix("fcn").partition("-")[0]
        if name.startswith("fcn") and owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _remove(name)
