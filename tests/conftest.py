"""Small seeded worlds that several tests share."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from fcn_core.networks.model import FCN
from tests.support import networks, world
from tests.support.ray_head import forget_tokens
from tests.support.s3_server import HOW_TO_GET, S3Server, is_installed

# Networks this small gain nothing from threads, and lose a factor of 30 when a core is busy: the
# threads of a layer wait for the slowest.
torch.set_num_threads(1)

# Ray runs its workers at niceness 15: beside the tests of another process they would hardly move,
# and a limit in seconds would take that for a stall.
os.environ.setdefault("RAY_worker_niceness", "0")

# A shell starts its background jobs with SIGINT ignored, and so do they theirs: Ctrl-C is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Hypothesis' 200 ms for an example would assert a speed, of a machine that may be busy. Examples
# are the same every time, so that a change is judged by nothing but itself; FCNSEG_EXPLORE=1 draws
# others, for a while to spend on finding more.
hypothesis.settings.register_profile(
    "fcnseg",
    parent=hypothesis.settings(),
    deadline=None,
    derandomize="FCNSEG_EXPLORE" not in os.environ,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("fcnseg")


# Scripts for environments of their own, with packages that are not in ours.
collect_ignore = ["support/readers"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what takes longer than CI has, saying so."""
    if item.get_closest_marker("long") and "FCNSEG_LONG" not in os.environ:
        pytest.skip("long: set FCNSEG_LONG=1")


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name a case of bytes by its argument alone: what a writer makes may hold the time of day, and
    the processes that share the tests have to call them the same."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="module", autouse=True)
def _ray_forgets_tokens() -> Iterator[None]:
    yield
    forget_tokens()


@pytest.fixture(scope="session")
def random_fcn() -> Callable[..., FCN]:
    """Makes a small FCN whose every layer matters: random_fcn("fcn16s", num_classes=3)."""
    return networks.random_fcn


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of three classes whose masks are not constant."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    networks.write_tiny_weights(path)
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three tars of four labeled images of mixed sizes."""
    return world.write_shards(tmp_path / "in")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server on this machine; without one, a failure if FCNSEG_REQUIRE_S3 is set."""
    if not is_installed():
        reason = f"no S3 server on this machine: {HOW_TO_GET}"
        (pytest.fail if os.environ.get("FCNSEG_REQUIRE_S3") else pytest.skip)(reason)
    with S3Server.started() as server:
        yield server


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser; without one, a failure if FCNSEG_REQUIRE_BROWSER is set."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        reason = "no Chromium on this machine: apt-get install chromium"
        (pytest.fail if os.environ.get("FCNSEG_REQUIRE_BROWSER") else pytest.skip)(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def use_s3(patch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    """Make this process, and those it starts, a client with this environment and no other."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    for name, value in environment.items():
        patch.setenv(name, value)


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket, reached as a user would: by the environment alone."""
    use_s3(monkeypatch, s3_server.owner.environment(s3_server.url))
    return f"s3://{s3_server.new_bucket()}"


@pytest.fixture
def fcnseg(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: (exit code, stdout, stderr)."""
    from pipeline.cli.app import app

    def call(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            app([str(arg) for arg in args])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call
