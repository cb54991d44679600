"""docs/costs.md holds what docs/costs.py computes, and that is what the network does."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/costs.md").read_text()


@pytest.fixture(scope="module")
def costs() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs/costs.py"))


def test_the_page_shows_what_its_script_prints(
    costs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["costs.py"])
    costs["main"]()
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 3
    for table in tables:
        assert f"\n\n{table}\n\n" in PAGE


def test_operations_are_those_counted_while_measuring(costs: dict[str, Any]) -> None:
    measured = json.loads((ROOT / "benchmarks/forward.json").read_text())
    for size in ((375, 500), (128, 128)):
        row = measured[f"{size[0]}x{size[1]} fp32"]
        whole, taken = costs["gflop"](*size)
        assert (round(whole, 1), round(taken, 1)) == (row["plain"]["gflop"], row["ours"]["gflop"])
    seconds = measured["375x500 fp32"]["ours"]["cpu_s"]
    assert f"Measured: {seconds:.2f} s of one core" in PAGE
    assert f"That is {seconds * 1e6 / 3600:.0f} core hours" in PAGE


def test_rates_and_prices_follow_from_what_is_stated(costs: dict[str, Any]) -> None:
    gpu = costs["Gpu"]("any", tflops=100, machine="m", dollars=3.6)
    assert costs["rate"](gpu, operations=200, utilisation=0.4) == pytest.approx(200)
    assert costs["per_million"](gpu, 200) == pytest.approx(5)
    assert costs["requests"](png=False) == (15_628, pytest.approx(0.06, abs=0.005))
    named = re.search(r"on eight L4 .* / \((\d+) x 8\) / 3600 = ([\d.]+) hours", PAGE)
    assert named is not None
    (l4,) = (gpu for gpu in costs["GPUS"] if gpu.name == "L4")
    found = costs["rate"](l4, costs["gflop"](375, 500)[1], 0.4)
    assert (int(named[1]), float(named[2])) == (round(found), round(1e7 / found / 8 / 3600, 1))
