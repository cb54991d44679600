"""The wheel, from a clean virtual environment, far from this checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def uv(*arguments: object, cwd: Path) -> None:
    found = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "make setup installs uv"
    command = [found, *(str(argument) for argument in arguments)]
    subprocess.run(command, cwd=cwd, check=True, capture_output=True)


@pytest.mark.slow
def test_demo_runs_from_the_wheel(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", "demo", ".*cache"))
    uv("build", "--wheel", "--out-dir", tmp_path, ".", cwd=source)
    (wheel,) = tmp_path.glob("fcn_pipeline-*.whl")
    uv("venv", "--python", sys.executable, tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env/bin/python"
    # The lock for the versions, the wheel for itself: its own ranges must admit what is locked.
    uv("pip", "install", "--python", python, "-r", ROOT / "requirements.lock", cwd=tmp_path)
    uv("pip", "install", "--python", python, wheel, cwd=tmp_path)
    done = subprocess.run(
        [tmp_path / "env/bin/fcnseg", "demo", tmp_path / "demo", "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mean_iou"] >= 0.8
    assert (tmp_path / "demo/output/report.html").stat().st_size > 1_000_000  # with its scripts
