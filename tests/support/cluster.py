"""A Ray cluster of several machines, on one: each node in a network namespace of its own.

    with Cluster.started(server) as cluster:       # a head and a store
        cluster.join("w1", gpus=1)                 # `ray start --address`, one logical GPU
        ...

A node is `ray start` and all that it starts, in a namespace that reaches the others through a
bridge; the bridge, too, lies in a namespace, so that this machine's own network is left alone. The
store is a proxy in front of a real S3 server: it listens inside a namespace and asks outside. What
can be done to a node: `die` (its link and all its processes at once, as with a pulled plug),
`part` (the answers of the store no longer reach it), `heal`.

Needs root and iproute2 (`namespaces.is_possible`). On leaving, every process of every namespace is
killed; what a killed test left is removed by the next.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.faulty_proxy import FaultyProxy
from tests.support.namespaces import Network, inside, ip, kill_all, namespace, pids
from tests.support.ray_head import BIN, ROOT
from tests.support.s3_server import S3Server

NETWORK = "10.213.7"
STORE, HEAD = f"{NETWORK}.2", f"{NETWORK}.10"

# A node that is silent is dead after some 20 seconds; Ray's own default is about 30.
_HEALTH = {
    "RAY_health_check_initial_delay_ms": "3000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "4",
}
# Nodes on a busy machine start in minutes, not in the seconds that Ray gives them.
_PATIENCE = {
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",
    "RAY_raylet_start_wait_time_s": "180",
    "RAY_agent_register_timeout_ms": "180000",
}


# Each node has an address of its own, so that all may have the same ports.
_AGENTS = {
    "dashboard_agent_listen_port": ("--dashboard-agent-listen-port", 52365),
    "metrics_agent_port": ("--dashboard-agent-grpc-port", 52366),
    "metrics_export_port": ("--metrics-export-port", 52367),
    "runtime_env_agent_port": ("--runtime-env-agent-port", 52368),
}


def _announce_agents(where: str) -> None:
    """Write down the ports of each node's agents, as the agents do when they have started.

    The node waits 15 seconds for that and then aborts; on a busy machine the agents need longer.
    """
    for pid in pids(where):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
            if words[0].endswith("/raylet"):
                flags = dict(w[2:].split("=", 1) for w in words if w.startswith("--") and "=" in w)
                for name, (_, port) in _AGENTS.items():
                    path = Path(flags["session_dir"], f"{name}_{flags['node_id']}")
                    if not path.exists():
                        path.write_text(str(port))


@dataclass
class Cluster:
    """A head, workers, a store.

    Attributes:
        network: theirs.
        store: the proxy before the S3 server, as the nodes see it.
        folder: Ray's temporary directories and the logs of `ray start`.
        environment: of every node, and so of every job.
        nodes: `ray start` of those that live, by name.
        addresses: of all that ever lived.
    """

    network: Network
    store: FaultyProxy
    folder: Path
    environment: dict[str, str]
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def started(cls, server: S3Server, more: Mapping[str, str] | None = None) -> Iterator[Cluster]:
        """A head without GPUs and a store; gone, with all processes and files, on leaving."""
        folder = Path(f"/tmp/c{uuid.uuid4().hex[:6]}")  # short: sockets lie in it
        folder.mkdir()
        token = uuid.uuid4().hex
        cluster = None
        names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
        own = {k: v for k, v in os.environ.items() if k not in names and "_proxy" not in k.lower()}
        try:
            with Network() as network:
                home = network.attach("store", STORE)
                with inside(home, lambda: FaultyProxy(server.url, host=STORE)) as store:
                    environment = {
                        **own, **_HEALTH, **_PATIENCE, **server.owner.environment(store.url),
                        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token,
                        "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT),
                        "PATH": f"{BIN}{os.pathsep}{own.get('PATH', '')}", **(more or {}),
                    }  # fmt: skip
                    cluster = cls(network, store, folder, environment)
                    cluster.start_head()
                    yield cluster
        finally:
            for process in cluster.nodes.values() if cluster else ():
                process.wait()  # killed with their namespaces; a child must be waited for
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def address(self) -> str:
        """Of Ray's control service."""
        return f"{HEAD}:6379"

    @property
    def dashboard(self) -> str:
        """Of the Jobs API."""
        return f"http://{HEAD}:8265"

    def start_head(self, cpus: int = 2) -> None:
        """A head, at the address that all heads of this cluster have."""
        self._start("head", [
            "--head", "--port=6379", "--include-dashboard=true", f"--dashboard-host={HEAD}",
            f"--num-cpus={cpus}", "--num-gpus=0",
        ])  # fmt: skip

    def join(self, name: str, *, cpus: int = 1, gpus: int = 1) -> None:
        """A worker node with its name as a label; returns when Ray knows it."""
        self._start(name, [
            f"--address={self.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}",
            f"--labels=kind={'gpu' if gpus else 'cpu'},name={name}",
        ])  # fmt: skip

    def _start(self, name: str, words: list[str]) -> None:
        if name in self.addresses:  # it died, and comes back
            ip("-n", namespace(name), "link", "set", "eth0", "up")
        else:
            self.addresses[name] = f"{NETWORK}.{10 + len(self.addresses)}"
            self.network.attach(name, self.addresses[name])
        command = [
            str(BIN / "ray"), "start", "--block", f"--node-ip-address={self.addresses[name]}",
            "--object-store-memory=100000000", f"--temp-dir={self.folder}/{name}",
            *(f"{flag}={port}" for flag, port in _AGENTS.values()), *words,
        ]  # fmt: skip
        with open(self.folder / f"{name}.log", "ab") as log:
            self.nodes[name] = self.spawn(name, command, stdout=log, stderr=log)
        self._until_known(name)

    def spawn(self, name: str, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """A process on a node (which need not run Ray), with the environment of all."""
        environment = {**self.environment, "FCNSEG_TEST_NODE": name}
        return subprocess.Popen(
            ["ip", "netns", "exec", namespace(name), *command],
            env=environment, stdin=subprocess.DEVNULL, start_new_session=True, **options,
        )  # fmt: skip

    def alive(self) -> list[str]:
        """Addresses of the nodes that Ray takes for living."""
        request = urllib.request.Request(f"{self.dashboard}/nodes?view=summary")
        request.add_header("Authorization", f"Bearer {self.environment['RAY_AUTH_TOKEN']}")

        def ask() -> list[str]:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                request, timeout=10
            ) as answer:
                rows = json.load(answer)["data"]["summary"]
            return [
                row["raylet"]["nodeManagerAddress"]
                for row in rows
                if row["raylet"].get("state") == "ALIVE"
            ]

        with suppress(OSError):
            return inside(namespace("head"), ask)
        return []

    def _until_known(self, name: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while self.addresses[name] not in self.alive():
            _announce_agents(namespace(name))
            if self.nodes[name].poll() is not None or time.monotonic() > deadline:
                said = (self.folder / f"{name}.log").read_text(errors="replace")
                raise RuntimeError(f"node {name} does not start: {said[-3000:]}")
            time.sleep(0.3)

    def die(self, name: str) -> None:
        """Pull the plug: nothing is sent any more, and nothing lives."""
        ip("-n", namespace(name), "link", "set", "eth0", "down")
        kill_all(namespace(name))
        self.nodes.pop(name).wait()

    def part(self, name: str) -> None:
        """The store's answers no longer reach a node: nothing comes, not even a refusal."""
        route = ("blackhole", f"{self.addresses[name]}/32")
        ip("-n", namespace("store"), "route", "add", *route)

    def heal(self, name: str) -> None:
        """They do again."""
        route = ("blackhole", f"{self.addresses[name]}/32")
        ip("-n", namespace("store"), "route", "del", *route)


def main() -> None:
    """A head and two workers until stdin ends; prints their addresses."""
    with S3Server.started() as server, Cluster.started(server) as cluster:
        for name in ("w1", "w2"):
            cluster.join(name)
        told = {"nodes": cluster.addresses, "store": cluster.store.url, "pid": os.getpid()}
        print(json.dumps(told), flush=True)
        with suppress(KeyboardInterrupt):
            sys.stdin.read()


if __name__ == "__main__":
    main()
