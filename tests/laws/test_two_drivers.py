"""Two real drivers: one works, the other exits 75; when the first is killed, another finishes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.driver import run
from pipeline.output.lease import read_lease
from pipeline.paths import LEASE
from pipeline.storage.store import Store
from pipeline.text import plural
from tests.conftest import use_s3
from tests.support import world
from tests.support.faulty_proxy import FaultyProxy, Rule
from tests.support.s3_server import S3Server

SHARDS = 6


def driver(source: str, output: str, weights: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline", "run", source, output, "--weights", str(weights),
               "--masks", "parquet,png,tar", "--executor", "local", "--workers", "1",
               "--set", "compute.threads_per_worker=1"]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def committed(output: Store) -> set[str]:
    return {info.path for info in output.listing("_commits")}


def as_files(output: Store, folder: Path) -> Path:
    """A tree that `world.tree` can look at."""
    if output.is_local:
        return Path(output.url)
    copy = Store(str(folder))
    for info in output.listing():
        copy.write(info.path, output.read(info.path))
    return folder


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["file", "s3"])
def test_one_works_and_the_other_takes_over_when_it_is_killed(
    s3: str,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    weights: Path,
    tmp_path: Path,
    kind: str,
) -> None:
    source = Store(f"{s3}/in")
    for index in range(SHARDS):
        source.write(f"s{index}.tar", world.tar(world.samples(index)))
    run(world.config(source.url, tmp_path / "calm", weights))
    output = Store(f"{s3}/out" if kind == "s3" else str(tmp_path / "out"))
    with FaultyProxy(s3_server.url) as proxy:
        # From the third shard on, reading stalls: the driver works on until it is killed.
        proxy.add(Rule("stall", "GET", "*/in/s[2-9].tar", times=None))
        use_s3(monkeypatch, s3_server.owner.environment(proxy.url))
        drivers = [driver(source.url, output.url, weights) for _ in range(2)]
        wait_until(lambda: any(process.poll() is not None for process in drivers))
        drivers.sort(key=lambda process: process.poll() is None)
        refused, worker = drivers
        _, said = refused.communicate()
        assert refused.returncode == 75, said
        assert f"held by process {worker.pid} on {os.uname().nodename} since" in said
        wait_until(lambda: len(committed(output)) == 2)
        holder = read_lease(output)
        assert holder is not None and holder.pid == worker.pid
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
        left = read_lease(output)
        assert worker.returncode == -9 and left is not None and left.pid == worker.pid
        proxy.clear()
        done_before = committed(output)
        tags = {info.path: info.etag for info in output.listing("_commits")}
        second = driver(source.url, output.url, weights)
        out, said = second.communicate()
    assert second.returncode == 0, said
    assert (
        f"{plural(SHARDS - len(done_before), 'shard')} done now, {SHARDS} of {SHARDS} in all" in out
    )
    use_s3(monkeypatch, s3_server.owner.environment(s3_server.url))
    output = Store(output.url)  # the other one speaks to the proxy, which is gone
    now = {info.path: info.etag for info in output.listing("_commits")}
    assert {path: now[path] for path in tags} == tags  # what was committed is left alone
    names = {info.path for info in output.listing()}
    assert LEASE not in names and not {name for name in names if name.startswith("_probe-")}
    assert world.tree(as_files(output, tmp_path / "copy")) == world.tree(tmp_path / "calm")


@pytest.mark.s3
def test_terminated_on_s3_it_gives_the_lease_back(
    s3: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    source, output = Store(f"{s3}/in"), Store(f"{s3}/out")
    for index in range(SHARDS):
        source.write(f"s{index}.tar", world.tar(world.samples(index)))
    with FaultyProxy(s3_server.url) as proxy:
        proxy.add(Rule("delay", "GET", "*/in/s[2-9].tar", times=None, seconds=3))
        use_s3(monkeypatch, s3_server.owner.environment(proxy.url))
        process = driver(source.url, output.url, weights)
        wait_until(lambda: committed(output))
        assert json.loads(output.read(LEASE))["pid"] == process.pid
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 143
    use_s3(monkeypatch, s3_server.owner.environment(s3_server.url))
    assert read_lease(Store(output.url)) is None
