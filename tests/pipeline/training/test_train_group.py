"""Two processes that share every batch, by torch's DDP over gloo, learn what one does. No Ray."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
import torch

from fcn_core.training.learner import SingleProcess
from fcn_core.weights.weights_file import WeightsFile
from pipeline.errors import LimitsError
from pipeline.training.config import TrainConfig, load_train_config
from pipeline.training.loop import TrainingHooks, TrainingLoop
from pipeline.training.prepare import prepare_training
from tests.support import world


class Gloo:
    """What `pipeline.training.ray_train` has of Ray Train, of torch alone."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size

    def wrap(self, model):
        return torch.nn.parallel.DistributedDataParallel(model)

    def no_sync(self, wrapped):
        return wrapped.no_sync()

    def sum(self, values):
        found = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(found)
        return found.tolist()


def work(rank, size, meeting, config):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size
    )
    run(config, Gloo(rank, size))
    torch.distributed.destroy_process_group()


def run(config, group):
    prepared = prepare_training(config)
    around = TrainingHooks(prepared.output, group, "cpu", stop=lambda: False)
    assert TrainingLoop(prepared, around).run().is_finished


def settings(root: Path, output: str, crop: int, **changes: object) -> TrainConfig:
    flags = {
        "input.url": str(root / "in"), "val.url": str(root / "in"),
        "input.label_set": str(root / "tiny.yaml"), "output.url": str(root / output),
        "model.variant": "fcn32s", "model.width": 1 / 32, "train.max_steps": 4,
        "train.batch_size": 4, "train.crop": crop, "train.log_every": 1, "train.eval_every": 4,
        "compute.threads": 1, **changes,
    }  # fmt: skip
    return load_train_config(None, [], flags)


def outcome(root: Path, output: str) -> tuple[list[float], dict, WeightsFile]:
    lines = [
        json.loads(line) for line in (root / output / "metrics.jsonl").read_text().splitlines()
    ]
    (scored,) = [line for line in lines if "evaluation" in line]
    data = (root / output / "last.safetensors").read_bytes()
    return [line["loss"] for line in lines if "loss" in line], scored, WeightsFile(data, output)


@pytest.mark.parametrize("crop", [16, 0], ids=["crops", "whole images"])
def test_two_processes_learn_what_one_does(tmp_path, crop):
    world.write_shards(tmp_path / "in", 2, 3)
    (tmp_path / "tiny.yaml").write_text("{name: tiny, classes: [ground, thing, stuff]}")
    run(settings(tmp_path, "one", crop), SingleProcess())
    context = multiprocessing.get_context("spawn")
    arguments = (2, str(tmp_path / "meeting"), settings(tmp_path, "two", crop))
    processes = [context.Process(target=work, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    alone, expected, one = outcome(tmp_path, "one")
    shared, found, two = outcome(tmp_path, "two")
    assert len(alone) == 4 and alone[0] != alone[-1]
    assert shared == pytest.approx(alone, rel=1e-4)
    assert found["images"] == expected["images"] == 6
    tensors = one.load().state_dict()
    for name, tensor in two.load().state_dict().items():
        # AdamW divides by tiny second moments: what is rounded differently moves a little apart.
        assert torch.allclose(tensor, tensors[name], rtol=0.02, atol=2e-3), name


def refuse(rank, size, meeting, config, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size
    )
    prepared = prepare_training(config)
    around = TrainingHooks(prepared.output, Gloo(rank, size), "cpu", stop=lambda: False)
    try:
        TrainingLoop(prepared, around).run()
    except LimitsError as error:
        queue.put(str(error))
    torch.distributed.destroy_process_group()


def test_what_processes_skip_counts_for_all(tmp_path):
    """Three of twelve are too many; of its own six, no process skips three."""
    (tmp_path / "in").mkdir()
    members = {**world.samples(0, 12), **{f"img{n}.jpg": b"no image" for n in (1, 4, 7)}}
    (tmp_path / "in" / "a.tar").write_bytes(world.tar(members))
    (tmp_path / "tiny.yaml").write_text("{name: tiny, classes: [ground, thing, stuff]}")
    flags = {"val.url": None, "train.batch_size": 12, "train.check_labels": False}
    config = settings(tmp_path, "out", 16, **flags)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = (2, str(tmp_path / "meeting"), config, queue)
    processes = [context.Process(target=refuse, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    said = [queue.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    assert all("3 of 12 samples are bad" in text for text in said)
