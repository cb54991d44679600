"""One image that crashes, hangs or starves its process costs that image and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.driver import run
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.result import EvaluationRequest
from pipeline.output.run_result import RunResult
from pipeline.workers.fork_server import close_fork_server
from tests.support import poison, world
from tests.support.ray_head import embedded_ray

REASONS = {
    "segv": "the worker process died (SIGSEGV), 3 times, with this sample alone",
    "exit": "the worker process died (exit code 7), 3 times",
    "hang": "the worker process made no progress for 4 s, 3 times",
    "memory": "needed more memory than limits.worker_memory (1.0 GiB), 3 times",
}
KEYS = [f"img{n}" for n in range(6)]
Label = Callable[..., RunResult]


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Worker processes of this module's tests have the obeying decoder."""
    folder = poison.install(tmp_path_factory.mktemp("site"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    close_fork_server()


@pytest.fixture
def label(tmp_path: Path, weights: Path) -> Label:
    """Label shards given as {shard: members} into tmp_path / out."""

    def call(out: str, shards: dict[str, dict[str, bytes]], **flags: Any) -> RunResult:
        source = tmp_path / f"{out}-in"
        source.mkdir()
        for name, members in shards.items():
            (source / f"{name}.tar").write_bytes(world.tar(members))
        limits = {"limits__stall_seconds": 4, "limits__worker_memory": "1GiB"}
        return run(world.config(source, tmp_path / out, weights, **limits | flags))

    return call


def samples(orders: dict[str, str] | None = None, shard: int = 0) -> dict[str, bytes]:
    """Six labeled images; those with an order are poison."""
    members = world.samples(shard, len(KEYS))
    for index, key in enumerate(KEYS):
        if orders and key in orders:
            members[f"{key}.jpg"] = poison.image(orders[key], size=world.SIZES[index % 4])
    return members


def without(members: dict[str, bytes], *keys: str) -> dict[str, bytes]:
    return {name: data for name, data in members.items() if name.split(".")[0] not in keys}


def written(output: Path) -> dict[str, bytes]:
    tops = ("masks", "png", "tar", "_previews")
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for top in tops
        for path in output.glob(f"{top}/**/*")
        if path.is_file()
    }


def quarantined(output: Path) -> dict[str, tuple[str, str]]:
    rows = [
        row
        for path in output.glob("_quarantine/*.parquet")
        for row in pq.ParquetFile(path).read().to_pylist()
    ]
    return {row["key"]: (row["error"], row["reason"]) for row in rows}


@pytest.mark.parametrize(
    ("orders", "flags"),
    [
        ({"img0": "segv"}, {}),
        ({"img3": "exit"}, {"compute__batch_size": 4}),
        ({"img5": "hang"}, {}),
        ({"img2": "memory"}, {}),
        ({"img1": "segv", "img4": "exit"}, {"limits__chunk_images": 4}),
        ({"img1": "hang", "img3": "segv"}, {"compute__decoders": 3}),
    ],
    ids=lambda value: ",".join(map(str, value.values())) or "default",
)
def test_poison_is_quarantined_and_the_rest_is_as_without_it(
    label: Label, tmp_path: Path, orders: dict[str, str], flags: dict[str, Any]
) -> None:
    members = samples(orders)
    result = label("out", {"a": members, "b": samples(shard=1)}, **flags)
    assert result.exit_code == 3 and result.failures == len(orders)
    found = quarantined(tmp_path / "out")
    assert set(found) == set(orders)
    for key, order in orders.items():
        error, reason = found[key]
        assert error == "PoisonError" and REASONS[order] in reason
    if "limits__chunk_images" not in flags:  # the cut would fall elsewhere
        label("calm", {"a": without(members, *orders), "b": samples(shard=1)}, **flags)
        assert written(tmp_path / "out") == written(tmp_path / "calm")


def test_what_pillow_did_not_foresee_is_the_fault_of_its_image(
    label: Label, tmp_path: Path
) -> None:
    label("out", {"a": samples({"img1": "raise"})})
    ((key, (error, reason)),) = quarantined(tmp_path / "out").items()
    assert (key, error) == ("img1", "PoisonError")
    assert "decoding it raised KeyError: 'a bug of the decoder'" in reason


def test_a_process_killed_once_costs_nothing(label: Label, tmp_path: Path) -> None:
    flag = tmp_path / "killed"
    members = samples({"img2": f"once {flag}"})
    assert label("out", {"a": members}).exit_code == 0 and flag.exists()
    assert label("calm", {"a": members}).exit_code == 0
    objects = written(tmp_path / "out")
    assert objects == written(tmp_path / "calm") and "masks/a.parquet" in objects
    assert quarantined(tmp_path / "out") == {}


def test_a_shard_full_of_poison_fails_and_the_others_go_on(label: Label, tmp_path: Path) -> None:
    full = samples(dict.fromkeys(KEYS, "exit"))
    result = label("out", {"a": full, "b": samples(shard=1)})
    assert result.exit_code == 4 and result.committed == 1
    (failure,) = result.failed
    assert failure.shard == "a" and failure.error == "PoisonError"
    assert "3 images" in failure.reason and "died (exit code 7)" in failure.reason
    assert "limits.max_bad_fraction_per_shard" in failure.reason
    assert "a.tar#" in failure.reason and "img" not in str(list((tmp_path / "out/png").iterdir()))
    marker = json.loads((tmp_path / "out/_PARTIAL").read_text())
    assert list(marker["failed_shards"]) == ["a"]
    # Raised, the same limit lets the shard pass, and every sample is tried and named.
    flags = {"limits__max_bad_fraction_per_shard": 1, "limits__max_bad_fraction": 1}
    half = samples(dict.fromkeys(KEYS[:4], "exit"))
    assert label("loose", {"a": half}, **flags).exit_code == 3
    assert set(quarantined(tmp_path / "loose")) == set(KEYS[:4])


def test_poison_counts_towards_the_limit_of_the_run(label: Label) -> None:
    poisoned = {f"s{n}": samples({"img1": "exit"}, shard=n) for n in range(3)}
    result = label("out", poisoned)
    assert result.exit_code == 4 and result.over_limit and result.committed == 3
    assert result.failed == () and result.failures == 3


@pytest.mark.ray
def test_ray_finds_the_same_poison(
    label: Label, tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    full = samples(dict.fromkeys(KEYS, "exit"))
    mixed = samples({"img1": "segv", "img4": "hang"})
    shards = {"a": mixed, "b": samples(shard=1), "c": samples({"img0": "memory"}), "d": full}
    with embedded_ray():
        by_ray = label("ray", shards, compute__executor="ray", limits__stall_seconds=8)
    by_threads = label("local", shards, limits__stall_seconds=8)
    assert by_ray.exit_code == by_threads.exit_code == 4
    objects = written(tmp_path / "ray")
    assert objects == written(tmp_path / "local") and "masks/a.parquet" in objects
    assert quarantined(tmp_path / "ray") == quarantined(tmp_path / "local")
    assert set(quarantined(tmp_path / "ray")) == {"img0", "img1", "img4"}
    assert [failure.shard for failure in by_ray.failed] == ["d"]


def test_an_evaluation_scores_the_others(tmp_path: Path, weights: Path) -> None:
    poisoned = samples({"img2": "exit"})
    found = []
    for name, members in (("whole", poisoned), ("cleaned", without(poisoned, "img2"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "s.tar").write_bytes(world.tar(members))
        found.append(
            evaluate(world.config(tmp_path / name, "unused", weights), EvaluationRequest())
        )
    whole, cleaned = found
    assert (whole.exit_code, cleaned.exit_code) == (3, 0)
    assert [failure.key for _, failure in whole.failures] == ["img2"]
    assert np.array_equal(whole.accumulator.confusions, cleaned.accumulator.confusions)
