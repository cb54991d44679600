"""The chaos run, as `python -m tests.support.chaos` does it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import chaos, networks, poison
from tests.support.s3_server import S3Server


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.long
@pytest.mark.s3
@pytest.mark.timeout(1800)
def test_whatever_dies_the_tree_is_the_undisturbed_one(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.owner.environment(s3_server.url).items():
        monkeypatch.setenv(name, value)
    weights = networks.write_tiny_weights(tmp_path / "tiny.safetensors")
    site = poison.install(tmp_path / "site")
    setting = chaos.Setting(images=520, shards=26)
    figures = chaos.chaos(setting, weights, s3_server, site)
    print(chaos.report(setting, figures))
    assert figures.differences == []
    assert figures.exit_codes[-1] == 3
    assert figures.kills.total() > 3
    assert len(figures.quarantined) == 13
