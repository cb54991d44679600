"""That benchmarks measure what they say: the null network, memory, and scripts that run to the end.

No speed is asserted here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import pipeline, scale
from benchmarks.null_network import in_worker_processes, null_mask
from benchmarks.peers.world import make_folder, make_weights
from fcn_core.images import decode_label
from pipeline.driver import run
from tests.support import world

ROOT = Path(__file__).parents[2]


def masks(output: Path) -> dict[str, np.ndarray]:
    tables = [pq.ParquetFile(path).read() for path in sorted((output / "masks").glob("*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    return {f"{row['shard']}/{row['key']}": decode_label(row["mask"]["bytes"]) for row in rows}


def test_the_null_network_is_in_the_worker_processes_and_nowhere_else(
    tmp_path: Path, weights: Path
) -> None:
    world.write_shards(tmp_path / "in", 2, 3)
    found = []
    for name in ("plain", "null", "again"):
        config = world.config(tmp_path / "in", tmp_path / name, weights)
        if name == "null":
            with in_worker_processes():
                assert run(config).exit_code == 0
        else:
            assert run(config).exit_code == 0
        found.append(masks(tmp_path / name))
    plain, null, again = found
    assert len(null) == 6 and null.keys() == plain.keys()
    for key, mask in null.items():
        assert np.array_equal(mask, null_mask(*mask.shape, 3)), key
        assert np.array_equal(plain[key], again[key]), key


def test_a_steady_run_is_measured(tmp_path: Path) -> None:
    make_folder(tmp_path / "folder", 0, 2)
    make_weights(tmp_path / "w.safetensors", 1 / 64)
    images = pipeline.encoded(tmp_path / "folder")
    pipeline.write_shards(tmp_path / "shards", images, 4)
    how = pipeline.How("fp32", threads=1)
    found = pipeline.steady(tmp_path / "shards", tmp_path / "out", tmp_path / "w.safetensors", how)
    assert found["images_per_second"] > 0 and found["busy"] > 0
    assert 0 < found["forward_seconds"] <= found["seconds"] + 0.05  # one worker; rounded
    costs = pipeline.codec_seconds(images)
    assert set(costs) == {"decode_image", "decode_label", "encode_mask"} and min(costs.values()) > 0


def test_the_peak_is_that_of_a_process_and_its_children() -> None:
    child = "x = b'x' * 150_000_000; import sys; print(1, flush=True); sys.stdin.read()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    peak = scale.Peak(process.pid)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(3 * scale.GLANCE)
    process.communicate()
    assert 150e6 < peak.stop() < 250e6


@pytest.mark.slow
def test_the_script_for_gpus_runs_to_its_end(tmp_path: Path) -> None:
    figures = _run("benchmarks.gpu", "--device", "cpu", "--seconds", "0.01", folder=tmp_path)
    assert [row["size"] for row in figures["forward"]] == ["64x64"]
    assert figures["forward"][0]["apart"] <= 0.01
    assert [row["what"] for row in figures["pipeline"]] == [
        "network alone", "fcnseg run, 0 decoders", "fcnseg run, 8 decoders",
    ]  # fmt: skip


def test_the_start_of_the_command_line_is_measured(tmp_path: Path) -> None:
    figures = _run("benchmarks.cli_start", "--rounds", "1", folder=tmp_path)
    assert [row["command"] for row in figures["rows"]][:2] == ["python", "fcnseg --help"]
    assert all(row["this_wall_s"] > 0 and row["this_cpu_s"] > 0 for row in figures["rows"])


def _run(module: str, *words: str, folder: Path) -> dict[str, Any]:
    file = folder / "figures.json"
    command = [sys.executable, "-m", module, *words, "--json", str(file)]
    subprocess.run(command, check=True, cwd=ROOT, env=dict(os.environ), capture_output=True)
    found: dict[str, Any] = json.loads(file.read_text())
    return found
