"""The README's outputs are what the commands print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def numbers(table: str) -> dict[str, float]:
    """IU by class name of a printed table."""
    return {name: float(iou) for name, iou in re.findall(r"│ ([\w ]+?) +│ (\d\.\d{4}) │", table)}


def test_demo_prints_the_table_of_the_readme(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "demo", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    printed, promised = numbers(done.stdout), numbers(README)
    assert "mean IoU" in promised and promised["mean IoU"] >= 0.8
    # Another processor rounds otherwise, which moves a few pixels.
    assert printed == pytest.approx(promised, abs=0.005)
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "nothing pending: all 3 shards are done" in again.stdout
    assert "nothing pending: all 3 shards are done" in README


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.cli.commands.demo import make_scene_shards
    from pipeline.storage.store import Store
    from tests.support import world

    monkeypatch.chdir(tmp_path)
    make_scene_shards(Store(str(tmp_path / "shards")), shards=1, images=2)
    (tmp_path / "photo.jpg").write_bytes(world.jpeg(world.image(1)))
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, {})
