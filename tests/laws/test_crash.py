"""kill -9 at every single store write, of the driver and of a worker; then the same command again.

One Ray cluster serves all the kills. `tests.support.patches.crash` does the killing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.driver import run
from pipeline.output.verify import verify
from pipeline.storage.store import Store
from tests.conftest import use_s3
from tests.support import child_patches, world
from tests.support.ray_head import ray_head
from tests.support.s3_server import S3Server, is_installed

ROOT = Path(__file__).parents[2]
PATCH = "tests.support.patches.crash:patch"
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class World:
    """An input, the tree of an undisturbed run, and where outputs may go."""

    source: str
    outputs: str
    weights: Path
    calm: dict[str, object]


class Crash:
    """The folder that tells processes when to die."""

    def __init__(self, folder: Path, store: Mapping[str, str]) -> None:
        self.folder = folder
        self.store = store
        folder.mkdir()
        self.site = child_patches.install(folder / "site", {"pipeline.storage.store": PATCH})

    def arm(self, role: str, n: int) -> None:
        for name in ("driver", "worker"):
            for suffix in ("count", "at"):
                (self.folder / f"{name}.{suffix}").unlink(missing_ok=True)
        if n:
            (self.folder / f"{role}.at").write_text(str(n))

    def happened(self, role: str) -> bool:
        return not (self.folder / f"{role}.at").exists()

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **self.store,
            "FCNSEG_CRASH": str(self.folder),
            "PYTHONPATH": f"{self.site}{os.pathsep}{ROOT}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        }


@pytest.fixture(scope="module")
def crash(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Crash:
    store = {}
    if is_installed():  # the cluster serves the kills on both stores
        server: S3Server = request.getfixturevalue("s3_server")
        store = server.owner.environment(server.url)
    return Crash(tmp_path_factory.mktemp("crash") / "control", store)


@pytest.fixture(scope="module")
def cluster(crash: Crash) -> Iterator[str]:
    """The address of a Ray node whose workers can be told to die."""
    crash.arm("driver", 0)
    with ray_head(crash.environment) as head:
        yield head.address


@pytest.fixture(
    scope="module", params=["file", pytest.param("s3", marks=[pytest.mark.s3, pytest.mark.long])]
)
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A fresh prefix."""
    if request.param == "file":
        yield str(tmp_path_factory.mktemp("store"))
        return
    server: S3Server = request.getfixturevalue("s3_server")
    with pytest.MonkeyPatch.context() as patch:
        use_s3(patch, server.owner.environment(server.url))
        yield f"s3://{server.new_bucket()}"


@pytest.fixture(scope="module")
def a_world(place: str, weights: Path) -> World:
    source = Store(f"{place}/in")
    source.write("s0.tar", world.tar({**world.samples(0, 3), "bad.jpg": b"no image"}))
    source.write("s1.tar", world.tar(world.samples(1, 3)))
    run(world.config(source.url, f"{place}/calm", weights, output__masks=("parquet", "png")))
    return World(source.url, f"{place}/out", weights, world.tree(f"{place}/calm"))


def _command(a_world: World, output: str, address: str | None) -> list[str]:
    executor = ["--executor", "local"] if address is None else ["--address", address]
    return [
        sys.executable, "-m", "pipeline", "run", a_world.source, output,
        "--weights", str(a_world.weights), "--masks", "parquet,png", "--workers", "1",
        "--set", "compute.threads_per_worker=1", *executor,
    ]  # fmt: skip


def _run(command: list[str], crash: Crash) -> int:
    done = subprocess.run(
        command, env=crash.environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode in (-9, 3), done.stderr
    return done.returncode


def _assert_undisturbed(a_world: World, output: str) -> None:
    assert world.tree(output) == a_world.calm
    assert verify(Store(output), deep=True).problems == ()


def _kill_the_driver_at_every_write(a_world: World, crash: Crash, address: str | None) -> int:
    kills = 0
    for n in range(1, 100):
        output = f"{a_world.outputs}-driver-{n}-{'ray' if address else 'local'}"
        command = _command(a_world, output, address)
        crash.arm("driver", n)
        if _run(command, crash) != -9:
            break
        kills += 1
        assert _run(command, crash) == 3
        _assert_undisturbed(a_world, output)
    return kills


@pytest.mark.timeout(1500)
def test_local_driver_killed_at_every_write(a_world: World, crash: Crash) -> None:
    # Identity, lease, two shards of five or six objects and a commit, results, marker.
    assert _kill_the_driver_at_every_write(a_world, crash, None) >= 20


@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_ray_driver_killed_at_every_write(a_world: World, crash: Crash, cluster: str) -> None:
    assert _kill_the_driver_at_every_write(a_world, crash, cluster) >= 10


@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_ray_worker_killed_at_every_write(a_world: World, crash: Crash, cluster: str) -> None:
    kills = 0
    for n in range(1, 100):
        output = f"{a_world.outputs}-worker-{n}"
        crash.arm("worker", n)
        started = time.monotonic()
        assert _run(_command(a_world, output, cluster), crash) == 3
        if not crash.happened("worker"):
            break
        kills += 1
        _assert_undisturbed(a_world, output)
        assert time.monotonic() - started < 120
    assert kills >= 10  # two shards of five or six objects
