"""The commands of docs/prefect.md, as they stand there, from nothing to a night."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.prefect_site import BIN, ROOT, until

DOC = (ROOT / "docs/prefect.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", DOC, re.DOTALL)
SERVES = ("prefect server start", "prefect worker start")


def test_every_other_block_says_why_it_is_not_run() -> None:
    others = re.findall(r"\n```\n(?:python|ray) .*?```\n+(.*?)\n", DOC, re.DOTALL)
    assert len(others) == 2
    assert all(line.startswith(("(Not run", "(Tested with")) for line in others)
    assert len(BLOCKS) == 7 and sum(name in b for b in BLOCKS for name in SERVES) == 2


def test_the_readme_goes_the_same_way() -> None:
    """Its commands are those of the page, in their order, and so are run with them."""
    section = (ROOT / "README.md").read_text().partition("## Every night")[2].partition("\n## ")[0]
    found = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    assert len(found) == 5 and found == BLOCKS[:5]


class Terminal:
    """Shells in one folder that share what they export."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.exports: list[str] = []
        self.running: list[subprocess.Popen[bytes]] = []
        own = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_"))}
        self.environment = {
            **own,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PYTHONPATH": str(ROOT),
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "RAY_raylet_start_wait_time_s": "180",
        }

    def script(self, block: str) -> str:
        """A block for bash, on a port of its own."""
        text = block.replace("4200", str(self.port))
        self.exports += [line for line in text.splitlines() if line.startswith("export ")]
        return "\n".join(["set -e", *self.exports, text])

    def run(self, block: str) -> str:
        """What the commands of a block print."""
        done = subprocess.run(
            ["bash", "-c", self.script(block)], cwd=self.folder, env=self.environment,
            capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, (block, done.stdout[-4000:], done.stderr[-4000:])
        return done.stdout

    def start(self, block: str) -> None:
        """A block whose last command goes on."""
        with (self.folder / f"log{len(self.running)}").open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", self.script(block)], cwd=self.folder, env=self.environment,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.running.append(process)

    def stop(self) -> None:
        """End what goes on."""
        for process in reversed(self.running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in reversed(self.running):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    found = Terminal(tmp_path, port)
    try:
        yield found
    finally:
        found.stop()


def answers(port: int) -> Callable[[], bool]:
    """Whether a server answers."""

    def ask() -> bool:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=10).read()
            return True
        return False

    return ask


@pytest.mark.prefect
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_from_nothing_to_a_night(terminal: Terminal) -> None:
    said: list[str] = []
    for block in BLOCKS:
        if any(name in block for name in SERVES):
            terminal.start(block)
            if "server" in block:
                until("the server answers", answers(terminal.port))
        else:
            said.append(terminal.run(block))
    assert "successfully created" in said[1]
    assert "Europe/Berlin" in said[2] or "0 2 * * *" in said[2]
    for name in ("nightly", "other"):
        assert (terminal.folder / "demo" / name / "_SUCCESS").exists()
    assert said[-1].startswith("created: fcn-pipeline")


@pytest.mark.prefect
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_served_on_a_laptop_a_schedule_starts_runs(terminal: Terminal) -> None:
    terminal.run("fcnseg demo demo")
    config = re.search(r"```yaml\n(input.*?)```", DOC, re.DOTALL)
    assert config is not None
    (terminal.folder / "nightly.yaml").write_text(config[1])
    terminal.start(next(block for block in BLOCKS if SERVES[0] in block))
    until("the server answers", answers(terminal.port))
    terminal.exports.append(f"export PREFECT_API_URL=http://127.0.0.1:{terminal.port}/api")
    command = re.search(r"```\n(python -m flows.serve .*?)```", DOC, re.DOTALL)
    assert command is not None
    terminal.start(command[1].replace("0 2 * * *", "* * * * *"))
    marker = terminal.folder / "demo/nightly/_SUCCESS"
    until("a scheduled run is done", marker.exists, 900)
    until("it is said", lambda: "3 shards segmented, 3 of 3 done" in said(terminal), 300)


def said(terminal: Terminal) -> str:
    """What the last process printed."""
    time.sleep(0.5)
    text: Any = (terminal.folder / f"log{len(terminal.running) - 1}").read_text()
    return str(text)
