"""A real `ray start --head` on this machine: dashboard, Jobs API and token, on ports of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

# Ray's own defaults for these would clash with those of another head on this machine.
_PORTS = (
    "port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
    "runtime-env-agent-port", "metrics-export-port", "ray-client-server-port",
    "object-manager-port", "node-manager-port",
)  # fmt: skip


@dataclass(frozen=True)
class RayHead:
    """A cluster of one node.

    Attributes:
        address: of its control service, host:port.
        dashboard: URL of the dashboard, which is that of the Jobs API.
        client: Ray Client address, ray://host:port.
        agent_port: of the process that starts jobs on it.
        token: what its clients must know.
        pid: of `ray start --block`.
        folder: its temporary directory; logs are in `session_latest/logs`.
    """

    address: str
    dashboard: str
    client: str
    agent_port: int
    token: str
    pid: int
    folder: Path

    def environment(self) -> dict[str, str]:
        """This process's environment as that of a client of this head, which knows the token."""
        names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
        own = {name: value for name, value in os.environ.items() if name not in names}
        path = f"{BIN}{os.pathsep}{own.get('PATH', '')}"
        return (
            own | _quiet() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "PATH": path}
        )

    def admit(self, patch: pytest.MonkeyPatch) -> None:
        """Make this process, and those it starts, a client that knows the token."""
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            patch.delenv(name, raising=False)
        for name, value in self.environment().items():
            if name.startswith("RAY_") or name in ("PATH", "PYTHONPATH"):
                patch.setenv(name, value)
        forget_tokens()


def forget_tokens() -> None:
    """Ray reads the mode and the token of authentication once per process: make it look again."""
    if "ray" in sys.modules:
        from ray._private.authentication_test_utils import reset_auth_token_state

        reset_auth_token_state()


@contextmanager
def embedded_ray() -> Iterator[None]:
    """A small Ray within this process, started again where a busy machine was too slow for it."""
    import ray

    for left in reversed(range(4)):
        try:
            ray.init(
                address="local", num_cpus=2, include_dashboard=False,
                object_store_memory=150 * 2**20, log_to_driver=False,
            )  # fmt: skip
            break
        except Exception as error:
            _end_node(error)
            if type(error) is not Exception or not left:
                raise
    try:
        yield
    finally:
        ray.shutdown()


def _end_node(error: Exception) -> None:
    """End what a failed start has begun: it slows the next one, and warns when it is collected."""
    from ray._private.node import Node

    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node):
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


def _quiet() -> dict[str, str]:
    # A busy machine starts a head in minutes, not in the minute that Ray gives it.
    patience = {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180", "RAY_raylet_start_wait_time_s": "180"}
    patience["RAY_agent_register_timeout_ms"] = "180000"
    return {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)} | patience


@contextmanager
def ray_head(
    environment: Mapping[str, str] | None = None, *, cpus: int = 2, attempts: int = 4
) -> Iterator[RayHead]:
    """Start a head with token authentication, wait until it takes jobs, and stop it at the end.

    Args:
        environment: variables of the head and so of every job, beside those of this process.
        cpus: logical CPUs.
        attempts: on a busy machine Ray's node gives up when its own agent is not there in time.
    """
    for number in range(1, attempts + 1):
        with _started(environment or {}, cpus) as (head, process, said):
            _announce_agent(head, process)
            if _takes_jobs(head, process, time.monotonic() + 240):
                yield head
                return
            said.seek(0)
            sys.stderr.write(f"head {number}: {said.read().decode(errors='replace')[-2000:]}")
    raise AssertionError(f"no head after {attempts} attempts")


@contextmanager
def _started(
    environment: Mapping[str, str], cpus: int
) -> Iterator[tuple[RayHead, subprocess.Popen[bytes], IO[bytes]]]:
    folder = Path(f"/tmp/h{uuid.uuid4().hex[:6]}")  # short: sockets lie in it
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    host = "127.0.0.1"
    command = [
        str(BIN / "ray"), "start", "--head", "--block", f"--node-ip-address={host}",
        f"--dashboard-host={host}", "--include-dashboard=true", f"--num-cpus={cpus}",
        "--object-store-memory=200000000", f"--temp-dir={folder}",
        "--min-worker-port=0", "--max-worker-port=0",
        *(f"--{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    client = RayHead(
        f"{host}:{ports['port']}", f"http://{host}:{ports['dashboard-port']}",
        f"ray://{host}:{ports['ray-client-server-port']}",
        ports["dashboard-agent-listen-port"],
        uuid.uuid4().hex, 0, folder,
    )  # fmt: skip
    own = {**client.environment(), **environment}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=own, stdout=said, stderr=subprocess.STDOUT)
        try:
            yield replace(client, pid=process.pid), process, said
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:  # all open at once, so that no two are the same
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _announce_agent(head: RayHead, process: subprocess.Popen[bytes]) -> None:
    """Write down the agent's port, as the agent itself does when it has started.

    The node waits 15 seconds for that and then aborts, whatever it is told; on a busy machine the
    agent needs longer. The port is known here already.
    """
    while process.poll() is None:
        for path in head.folder.glob("session_*/gcs_server_port_*"):
            node = path.name.rpartition("_")[2]
            path.with_name(f"dashboard_agent_listen_port_{node}").write_text(str(head.agent_port))
            return
        time.sleep(0.05)


def _takes_jobs(head: RayHead, process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Whether its node comes to life: then the agent is there, which starts jobs on it."""
    request = urllib.request.Request(f"{head.dashboard}/nodes?view=summary")
    request.add_header("Authorization", f"Bearer {head.token}")
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
            nodes = json.load(answer)["data"]["summary"]
            if any(node["raylet"].get("state") == "ALIVE" for node in nodes):
                return True
        time.sleep(0.2)
    return False


class Relay:
    """A line to a server on this machine that can be cut and mended, as a context manager.

    Attributes:
        url: of this end.
        connections: that went through.
        refused: that came while it was cut.
    """

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self._target = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.connections = self.refused = 0
        self._is_cut = False
        self._open: list[socket.socket] = []

    def cut(self) -> None:
        """End all connections, and every new one at once."""
        self._is_cut = True
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let them through again."""
        self._is_cut = False

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:  # closed
                return
            if self._is_cut:
                self.refused += 1
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._open += [near, far]
            self.connections += 1
            for ends in ((near, far), (far, near)):
                threading.Thread(target=_pass_on, args=ends, daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
