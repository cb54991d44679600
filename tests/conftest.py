"""Small seeded worlds that several tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fcn_core.architecture import Architecture, Variant
from fcn_core.model import FCN
from tests import world
from tests.s3_server import HOW_TO_GET, S3Server, is_installed

# Networks this small gain nothing from threads, and lose a factor of 30 when a core is busy: the
# threads of a layer wait for the slowest.
torch.set_num_threads(1)


def _random_fcn(
    variant: Variant = "fcn8s",
    num_classes: int = 4,
    width: float = 1 / 16,
    seed: int = 0,
    biases: float = 0.0,
    **options: Any,
) -> FCN:
    arch = Architecture(variant, num_classes, width, **options)
    model = FCN(arch)
    generator = torch.Generator().manual_seed(seed)
    model.reset_parameters(generator)
    for name, parameter in model.named_parameters():
        if name.startswith("score"):  # zero by default, which would hide every skip
            nn.init.normal_(parameter, std=0.2, generator=generator)
        elif name.endswith("bias") and biases:
            nn.init.normal_(parameter, std=biases, generator=generator)
    noise = 4 * torch.rand(1, arch.input_channels, 64, 64, generator=generator) - 2
    model.eval()
    with torch.no_grad():  # no class leads everywhere
        for head in arch.head_classes:
            ending = f"_{head}.bias" if head else ".bias"
            scores = [name for name in model.state_dict() if name.startswith("score")]
            finest = [name for name in scores if name.endswith(ending)][-1]
            bias = model.get_parameter(finest)
            bias -= model(noise, head).mean(dim=(0, 2, 3))
    return model


@pytest.fixture(scope="session")
def random_fcn() -> Callable[..., FCN]:
    """Makes a small FCN whose every layer matters: random_fcn("fcn16s", num_classes=3)."""
    return _random_fcn


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of three classes whose masks are not constant."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    path.write_bytes(world.weights_bytes(_random_fcn(num_classes=3, width=1 / 32)))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three tars of four labelled pictures of mixed sizes."""
    return world.write_shards(tmp_path / "in")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server on this machine; without one, a failure if FCNSEG_REQUIRE_S3 is set."""
    if not is_installed():
        reason = f"no S3 server on this machine: {HOW_TO_GET}"
        (pytest.fail if os.environ.get("FCNSEG_REQUIRE_S3") else pytest.skip)(reason)
    with S3Server.started() as server:
        yield server


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
    from pipeline.cli import app

    def call(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            app([str(arg) for arg in args])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call
