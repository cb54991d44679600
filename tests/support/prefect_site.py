"""A real site on this machine: Prefect's server, a process worker, deployments from our file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcn_core.datasets.scenes import render_scene
from fcn_core.images import encode_mask
from fcn_core.labels import SCENES
from tests.support import world

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
POOL = "tests"


def until(what: str, condition: Callable[[], Any], seconds: float = 400) -> Any:
    """What the condition gives when it is no longer false or None."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.3)


@dataclass
class Site:
    """Where the flow runs.

    Attributes:
        home: of everything; removed at the end.
        environment: of every command and process here.
        port: of the server.
        server, worker: the processes, while they run.
    """

    home: Path
    environment: dict[str, str]
    port: int
    server: subprocess.Popen[bytes] | None = None
    worker: subprocess.Popen[bytes] | None = None
    _logs: dict[str, Path] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Of the server's API."""
        return f"http://127.0.0.1:{self.port}/api"

    def prefect(self, *words: str, check: bool = True) -> str:
        """What a command of Prefect prints."""
        done = subprocess.run(
            [str(BIN / "prefect"), "--no-prompt", *words], cwd=ROOT, env=self.environment,
            capture_output=True, text=True, timeout=580,
        )  # fmt: skip
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def api(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """An answer of the server: of a GET, or of a POST if there is a body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def start_server(self) -> None:
        """Start it, and wait until it answers."""
        words = ["server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        self.server = self._spawn("server", *words)

        def answers() -> bool:
            assert self.server is not None and self.server.poll() is None, self.log("server")
            with contextlib.suppress(OSError):
                return bool(self.api("health"))
            return False

        until("the server answers", answers)

    def start_worker(self) -> None:
        """Start a process worker."""
        self.worker = self._spawn("worker", "worker", "start", "--pool", POOL)

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End "server" or "worker"."""
        process: subprocess.Popen[bytes] | None = getattr(self, name)
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        setattr(self, name, None)

    def run(
        self,
        deployment: str,
        config: Mapping[str, Any] | None = None,
        flow: str = "label-dataset",
    ) -> str:
        """Start a flow run, with the deployment's own configuration by default; its id."""
        params = [] if config is None else ["--params", json.dumps({"config": config})]
        said = self.prefect("deployment", "run", f"{flow}/{deployment}", *params)
        found = re.search(r"flow-run/([0-9a-f-]{36})", "".join(said.split()))
        assert found, said
        return found[1]

    def ended(self, run: str, seconds: float = 560) -> dict[str, Any]:
        """The final state of a flow run."""

        def state() -> Any:
            with contextlib.suppress(OSError):
                found = self.api(f"flow_runs/{run}")["state"]
                ends = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
                return found if found["type"] in ends else None
            return None

        try:
            found: dict[str, Any] = until(f"run {run} ends", state, seconds)
        except AssertionError:
            sys.stderr.write(self.log("worker")[-8000:])
            raise
        return found

    def artifacts(self, run: str) -> dict[str, Any]:
        """The data of a flow run's artifacts, by the middle of their keys."""
        found = self.api("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
        kinds = ("summary", "classes", "worst-shards", "quarantined", "pictures", "progress",
                 "train-summary", "train-classes", "train-progress")  # fmt: skip
        named = {k: a["data"] for a in found for k in kinds if a["key"].startswith(f"fcnseg-{k}-")}
        assert len(named) == len({a["key"] for a in found}), [a["key"] for a in found]
        return named

    def messages(self, run: str) -> str:
        """The log of a flow run."""
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
        return "\n".join(line["message"] for line in self.api("logs/filter", wanted))

    def log(self, name: str) -> str:
        """What a process printed."""
        return self._logs[name].read_text(errors="replace") if name in self._logs else ""

    def processes(self, words: str, mark: str) -> list[int]:
        """Processes whose command line has some words and whose environment has a mark."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if not entry.name.isdigit():
                    continue
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if words in line and mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    def _spawn(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        self._logs[name] = self.home / f"{name}.log"
        with self._logs[name].open("ab") as log:
            return subprocess.Popen(
                [str(BIN / "prefect"), *words], cwd=self.home, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip


@contextlib.contextmanager
def site(environment: Mapping[str, str]) -> Iterator[Site]:
    """A server, a pool and a worker, with our deployments; gone at the end.

    Args:
        environment: of the worker, beside what this process has.
    """
    home = Path(tempfile.mkdtemp(prefix="x", dir="/tmp"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_"))}
    own |= {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    here = Site(home, {**own, **environment}, port)
    try:
        here.start_server()
        here.prefect("work-pool", "create", POOL, "--type", "process")
        for file in ("deploy/prefect.yaml", "deploy/prefect-train.yaml"):
            here.prefect("deploy", "--prefect-file", file, "--all")
        here.start_worker()
        yield here
    finally:
        here.stop("worker")
        here.stop("server")
        shutil.rmtree(home, ignore_errors=True)


def dark_scenes(images: int) -> bytes:
    """A tar of rendered scenes with a sixth of their light: other than what is usually seen."""
    members: dict[str, bytes] = {}
    for seed in range(7_000_000, 7_000_000 + images):
        scene = render_scene(seed)
        members[f"dark-{seed}.jpg"] = world.jpeg(scene.image // 6)
        members[f"dark-{seed}.png"] = encode_mask(scene.label, SCENES.palette)
    return world.tar(members)
