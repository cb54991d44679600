"""kill -9 of the driver in the middle; the same command again finishes, reading nothing twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.driver import run
from pipeline.paths import LEASE
from tests.support import world

SHARDS = 10


def _command(source: Path, out: Path, weights: Path, executor: str) -> list[str]:
    fixed = ("--set", "compute.threads_per_worker=1", "--workers", "1")
    return [
        sys.executable, "-m", "pipeline", "run", str(source), str(out), "--weights", str(weights),
        "--masks", "parquet,png,tar", "--executor", executor, *fixed,
    ]  # fmt: skip


def _interrupt_after_first_commit(command: list[str], out: Path, number: int) -> int:
    """Start a driver, send it a signal in the middle of its work; its exit code."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("_commits/*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    return process.wait()


def _spoil(source: Path, out: Path) -> int:
    """Overwrite finished shards with garbage that looks untouched: reading one would show."""
    finished = [path.stem for path in out.glob("_commits/*.json")]
    for name in finished:
        path = source / f"{name}.tar"
        times = path.stat()
        path.write_bytes(b"\1" * times.st_size)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return len(finished)


@pytest.mark.parametrize(
    "executor", ["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])]
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_interrupted_run_resumes_to_the_undisturbed_tree(
    weights: Path, tmp_path: Path, executor: str, number: int
) -> None:
    source = world.write_shards(tmp_path / "in", SHARDS, images=12)
    run(world.config(source, tmp_path / "calm", weights))
    out = tmp_path / "out"
    command = _command(source, out, weights, executor)
    code = _interrupt_after_first_commit(command, out, number)
    expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
    assert code == expected[signal.Signals(number)]
    assert (out / LEASE).exists() == (number == signal.SIGKILL)
    assert 0 < _spoil(source, out) < SHARDS
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert world.tree(out) == world.tree(tmp_path / "calm")
