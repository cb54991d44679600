"""Real processes, real signals: a training that was stopped ends as if it had not been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import world

STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    world.write_shards(root / "in", 2, 3)
    (root / "tiny.yaml").write_text("{name: tiny, classes: [ground, thing, stuff]}")
    return root


def command(data: Path, output: Path, *more: str) -> list[str]:
    sets = {
        "model.width": 0.03125, "train.max_steps": STEPS, "train.checkpoint_every": 3,
        "train.batch_size": 2, "train.crop": 16, "train.log_every": 1, "compute.threads": 1,
    }  # fmt: skip
    options = [word for item in sets.items() for word in ("--set", "=".join(map(str, item)))]
    words = [sys.executable, "-m", "pipeline", "train", data / "in", "--output", output]
    words += ["--label-set", data / "tiny.yaml", "--variant", "fcn32s", *options, *more]
    return [str(word) for word in words]


def finish(data: Path, output: Path) -> str:
    done = subprocess.run([*command(data, output), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["last_sha256"])


def stop_at(data: Path, output: Path, event: str, sent: int) -> tuple[int, str]:
    """Send a signal just before the step that the event announces."""
    # Stopped before every step until told to go on, so that the signal strikes at a known place.
    script = (
        "import sys\n"
        "from pipeline.training import loop as train_loop\n"
        "real = train_loop.TrainingLoop._learn\n"
        "def learn(self, step):\n"
        "    print('step', step.number, flush=True)\n"
        "    sys.stdin.readline()\n"
        "    return real(self, step)\n"
        "train_loop.TrainingLoop._learn = learn\n"
        "from pipeline.__main__ import main\n"
        "main()\n"
    )
    words = [sys.executable, "-c", script, *command(data, output)[3:]]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout and process.stderr
    with process:
        for line in process.stdout:
            if line.strip() == event:
                os.kill(process.pid, sent)
            try:
                process.stdin.write("\n")
                process.stdin.flush()
            except BrokenPipeError:
                break
        errors = process.stderr.read()
    return process.returncode, errors


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_polite_signal_ends_it_with_a_checkpoint_of_that_step(data, tmp_path, sent, code):
    found, errors = stop_at(data, tmp_path / "out", "step 5", sent)
    assert found == code, errors
    checkpoints = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert checkpoints[-1] == "step-00000005.safetensors"
    assert not (tmp_path / "out" / "_lease.json").exists()
    assert finish(data, tmp_path / "out") == finish(data, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_steps_change_nothing(data, tmp_path, seed):
    steps = sorted(random.Random(seed).sample(range(1, STEPS + 1), 3))
    for step in steps:
        assert stop_at(data, tmp_path / "out", f"step {step}", signal.SIGKILL)[0] == -9
    assert finish(data, tmp_path / "out") == finish(data, tmp_path / "whole")
