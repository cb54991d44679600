"""The comparison with others: each peer does the same job, and the comparison sees what differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers.__main__ import best, compare, plan, table
from benchmarks.peers.job import Job
from benchmarks.peers.measure import Run, compared, masks, timed
from benchmarks.peers.one import PEERS, do, is_installed
from benchmarks.peers.segmenter import DTYPES, LABELS, Segmenter, finished_row, mean_iou, read_image
from benchmarks.peers.world import make_folder, make_weights, write_scene
from fcn_core.metrics import ConfusionMatrix

SIZES = ((40, 56), (64, 33))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Done by `fcnseg run`, on two scenes and a sixteenth of the width."""
    folder = tmp_path_factory.mktemp("peers")
    make_folder(folder / "in", 0, 0)
    for seed, size in enumerate(SIZES):
        write_scene(folder / "in", seed, size)
    make_weights(folder / "weights.safetensors", 1 / 16)
    weights, output = str(folder / "weights.safetensors"), str(folder / "ours")
    job = Job(str(folder / "in"), weights, output, "fp32", False, 1, pillow=True)
    (folder / "score").write_text(repr(do("fcnseg", job)))
    return job


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in PEERS if name != "Ray recipe"),
        pytest.param("Ray recipe", marks=[pytest.mark.ray, pytest.mark.slow]),
    ],
)
def test_every_peer_makes_our_masks_and_our_score(ours: Job, tmp_path: Path, name: str) -> None:
    if not is_installed(name):
        pytest.skip(f"{PEERS[name][1]} is not installed")
    job = replace(ours, output=str(tmp_path / "out"))
    seconds = timed(name, job)
    expected = masks(ours.output)
    assert len(expected) == len(SIZES)
    assert len(np.unique(np.concatenate([m.ravel() for m in expected.values()]))) > 2
    assert compared(masks(job.output), expected) == {
        "pictures": 2, "share": 0.0, "worst_picture": 0.0
    }  # fmt: skip
    score = float(Path(job.output, "mean_iou").read_text())
    assert score == pytest.approx(float(Path(ours.output).with_name("score").read_text()))
    assert 0 < seconds["cpu"] and 0 < seconds["wall"]


def test_what_is_given_changes_no_mask_in_fp32_and_few_pixels_in_bf16(ours: Job) -> None:
    expected = masks(ours.output)
    for precision, most in (("fp32", 0.0), ("bf16", 0.1)):
        given = replace(ours, given=True, precision=precision, threads=torch.get_num_threads())
        segmenter = Segmenter(given)
        weight = next(segmenter.model.parameters())
        assert weight.dtype == DTYPES[precision]
        assert weight.is_contiguous(memory_format=torch.channels_last)
        found = {path.stem: segmenter(read_image(path)) for path in ours.images()}
        assert compared(found, expected)["share"] <= most


def test_a_job_that_fails_says_why(
    ours: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho no weights there >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr("benchmarks.peers.measure.sys.executable", str(script))
    job = replace(ours, output=str(tmp_path / "out"))
    with pytest.raises(RuntimeError, match=r"DataLoader loop ended with 3 [\s\S]*no weights there"):
        timed("DataLoader loop", job)


def test_counts_are_those_of_the_confusion_matrix(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, LABELS.num_classes, (9, 7)).astype(np.uint8)
    label = rng.integers(0, LABELS.num_classes + 1, (9, 7)).astype(np.uint8)  # 11: ignored
    label[0] = 255
    job = Job(str(tmp_path), "", str(tmp_path / "out"), "fp32", False, 1)
    row = finished_row(job, "a", mask, label)
    matrix = ConfusionMatrix(LABELS.num_classes)
    matrix.update(np.where(label == 11, 255, label).astype(np.uint8), mask)
    assert row["confusion"] == matrix.matrix.ravel().tolist()
    assert np.array_equal(masks(job.output)["a"], mask)


def test_rows_that_are_missing_are_noticed(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    make_folder(tmp_path, 0, 2)
    job = Job(str(tmp_path), "", str(tmp_path / "out"), "fp32", False, 1)
    zeros = [0] * LABELS.num_classes**2
    pq.write_table(pa.table({"confusion": [zeros]}), job.rows() / "a.parquet")
    with pytest.raises(RuntimeError, match="1 rows of 2 images"):
        mean_iou(job)


def test_masks_that_differ_are_counted() -> None:
    expected = {"a": np.zeros((2, 5), np.uint8), "b": np.zeros((3, 10), np.uint8)}
    found = {name: mask.copy() for name, mask in expected.items()}
    found["a"][0, :4] = 1
    assert compared(found, expected) == {"pictures": 2, "share": 0.1, "worst_picture": 0.4}
    with pytest.raises(RuntimeError, match="a mask of"):
        compared({"a": expected["b"]}, expected)
    with pytest.raises(RuntimeError, match="of no image"):
        compared({"c": expected["b"]}, expected)
    with pytest.raises(RuntimeError, match="0 images"):
        compared({}, expected)


def test_the_plan_has_ours_first_and_each_peer_twice() -> None:
    runs = plan("bf16", ["fcnseg", *PEERS])
    assert runs[:2] == [Run("fcnseg", False, "fp32"), Run("fcnseg", False, "bf16")]
    assert runs[2:] == [
        *(Run(name, False, "fp32") for name in PEERS),
        *(Run(name, True, "bf16") for name in PEERS),
    ]
    assert len(set(plan("fp32", ["fcnseg", *PEERS]))) == 1 + 2 * len(PEERS)


def test_ratios_by_hand(tmp_path: Path) -> None:
    def row(job: float, cpu: float, output: str) -> dict[str, object]:
        times = best(
            [{"wall": 5, "cpu": 3}], [{"wall": job, "cpu": cpu}, {"wall": 99, "cpu": 99}], 4
        )
        folder = tmp_path / output
        finished_row(
            Job("", "", str(folder), "fp32", False, 1),
            "a", np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8),
        )  # fmt: skip
        return {**times, "output": str(folder)}

    mine, theirs = Run("fcnseg", False, "fp32"), Run("datasets.map", True, "fp32")
    broken = Run("Ray recipe", True, "fp32")
    results = {mine: row(10, 9, "a"), theirs: row(25, 15, "b"), broken: {"failed": "no"}}
    compare(results, "fp32", tmp_path)
    assert results[mine]["images_per_second"] == 0.4 and results[mine]["work_cpu_s"] == 6
    ratios = {"job_s": 2.5, "work_s": 4.0, "work_cpu_s": 2.0}
    assert results[theirs]["times_ours_fp32"] == ratios
    lines = table(results).splitlines()
    assert "2.50 (fp32) | 4.00 (fp32) | 2.00 (fp32) | 0 |" in lines[3]
    assert len({line.count("|") for line in lines}) == 1 and "failed" in lines[4]
