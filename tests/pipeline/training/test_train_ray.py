"""Two workers learn what one does: the same steps, up to the rounding of sums."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fcn_core.weights.weights_file import WeightsFile
from pipeline.training.config import load_train_config
from pipeline.training.driver import train
from tests.support import world

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore"),  # Ray Train warns at will
]


def learn(
    root: Path, output: str, workers: int, **changes: object
) -> tuple[list[float], WeightsFile]:
    flags = {
        "input.url": "in", "val.url": "in", "input.label_set": "tiny.yaml", "output.url": output,
        "model.variant": "fcn32s", "model.width": 1 / 32, "train.max_steps": 5,
        "train.batch_size": 4, "train.crop": 16, "train.log_every": 1, "train.eval_every": 5,
        "compute.device": "cpu", "compute.threads": 1, "compute.workers": workers, **changes,
    }  # fmt: skip
    train(load_train_config(None, [], flags))
    lines = [
        json.loads(line) for line in (root / output / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["images"] for line in lines if "evaluation" in line] == [6]
    data = (root / output / "last.safetensors").read_bytes()
    return [line["loss"] for line in lines if "loss" in line], WeightsFile(data, output)


def test_two_workers_learn_what_one_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # relative paths hold in workers too
    world.write_shards(tmp_path / "in", 2, 3)
    (tmp_path / "tiny.yaml").write_text("{name: tiny, classes: [ground, thing, stuff]}")
    alone, one = learn(tmp_path, "one", 1)
    shared, two = learn(tmp_path, "two", 2)
    assert len(alone) == 5 and alone[0] != alone[-1]
    assert shared == pytest.approx(alone, rel=1e-4)
    expected = one.load().state_dict()
    for name, found in two.load().state_dict().items():
        # AdamW divides by tiny second moments: what is rounded differently moves a little apart.
        assert torch.allclose(found, expected[name], rtol=0.02, atol=2e-3), name
