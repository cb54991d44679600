"""Evaluations: scores, limits and exit codes equal those of a run, and nothing is written."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from fcn_core.images import decode_image, decode_label
from fcn_core.metrics import ConfusionMatrix
from fcn_core.metrics.bootstrap import Bootstrap
from fcn_core.predictor import Predictor
from pipeline.driver import run
from pipeline.errors import InputError
from pipeline.evaluation.evaluate import evaluate, upper_bound
from pipeline.evaluation.result import Evaluation, EvaluationRequest
from pipeline.storage.store import Store
from tests.support import datasets, oracles, world

Fcnseg = Callable[..., tuple[int, str, str]]

WIDTHS = (1, 3, 1000)
ONE_THREAD = ("--set", "compute.threads_per_worker=1")
FOUR = ("pixel_accuracy", "mean_accuracy", "mean_iou", "frequency_weighted_iou")


def scored(
    source: Path, weights: Path, request: EvaluationRequest | None = None, **flags: Any
) -> Any:
    request = request or EvaluationRequest(widths=WIDTHS, bootstrap=Bootstrap(50))
    return evaluate(world.config(source, source.parent / "unused", weights, **flags), request)


def document(evaluation: Evaluation) -> dict[str, Any]:
    """Return the JSON document without the fields that depend on time, place and sharding."""
    varying = ("seconds", "input", "shards")
    return {name: value for name, value in evaluation.to_dict().items() if name not in varying}


@pytest.fixture
def troubled(tmp_path: Path) -> Path:
    """Write four shards: good, bad within the limit, bad over the limit, and a truncated tar."""
    root = world.write_shards(tmp_path / "troubled", shards=1)
    samples = world.samples(1) | {"bare.jpg": world.jpeg(world.image(9))}
    samples |= {"torn.jpg": b"x", "torn.png": world.png(world.label(9))}
    samples |= {
        "big.jpg": world.jpeg(world.image(8)),
        "big.png": world.png(world.label(8, (30, 30))),
    }
    (root / "s1.tar").write_bytes(world.tar(samples))
    rotten = world.samples(2, 2) | {f"r{n}.jpg": b"x" for n in range(3)}
    rotten |= {f"r{n}.png": world.png(world.label(n)) for n in range(3)}
    (root / "s2.tar").write_bytes(world.tar(rotten))
    whole = world.tar(world.samples(3))
    (root / "s3.tar").write_bytes(whole[: len(whole) // 2])
    return root


# --- Scores -----------------------------------------------------------------------------------


def test_scores_equal_the_formulas_on_masks_of_the_predictor(shards: Path, weights: Path) -> None:
    predictor = Predictor.load(weights)
    total, bands = ConfusionMatrix(3), {width: ConfusionMatrix(3) for width in WIDTHS}
    for shard in range(3):
        members = world.samples(shard)
        for key in {name.split(".")[0] for name in members}:
            image, label = decode_image(members[f"{key}.jpg"]), decode_label(members[f"{key}.png"])
            mask = predictor.predict([image])[0].mask
            total.update(label, mask)
            for width, matrix in bands.items():
                matrix.update(np.where(oracles.in_band(label, width), label, 255), mask)
    evaluation = scored(shards, weights).to_dict()
    assert evaluation["confusion"] == total.matrix.tolist()
    expected = oracles.scores(evaluation["confusion"])
    assert {name: evaluation[name] for name in FOUR} == pytest.approx(
        {name: expected[name] for name in FOUR}
    )
    assert evaluation["iou"] == pytest.approx(expected["iou"])
    assert [row["width"] for row in evaluation["trimap"]] == list(WIDTHS)
    for row in evaluation["trimap"]:
        assert row["confusion"] == bands[row["width"]].matrix.tolist()
        assert row["mean_iou"] == pytest.approx(oracles.scores(row["confusion"])["mean_iou"])
    assert (
        evaluation["trimap"][-1]["confusion"] == evaluation["confusion"]
    )  # every label has a boundary


def test_scores_equal_those_that_a_run_commits_for_each_shard(
    troubled: Path, weights: Path, tmp_path: Path
) -> None:
    result = run(world.config(troubled, tmp_path / "out", weights))
    evaluation = scored(troubled, weights)
    report = evaluation.to_dict()
    for name in (*FOUR, "iou", "confusion", "classes", "labeled_images"):
        assert report[name] == result.scores[name], name
    commits = {
        path.stem: json.loads(path.read_text()) for path in (tmp_path / "out/_commits").glob("*")
    }
    assert [row["shard"] for row in report["shards"]] == sorted(commits) == ["s0", "s1"]
    for row in report["shards"]:
        commit = commits[row["shard"]]
        assert {name: row[name] for name in (*FOUR, "iou")} == {
            name: commit["scores"][name] for name in (*FOUR, "iou")
        }
    assert evaluation.exit_code == result.exit_code == 4
    assert sorted(report["failed_shards"]) == [failure.shard for failure in result.failed]
    assert (
        "3 of 5 images (60%) are bad; the limit is 5% (limits.max_bad_fraction_per_shard)"
        in report["failed_shards"]["s2"]
    )


@pytest.mark.parametrize(("shard", "exit_code"), [("s0", 0), ("s1", 3), ("s2", 4), ("s3", 4)])
def test_exit_codes_equal_those_of_a_run(
    troubled: Path, weights: Path, tmp_path: Path, shard: str, exit_code: int
) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(troubled / f"{shard}.tar", tmp_path / "one")
    assert scored(tmp_path / "one", weights).exit_code == exit_code


def test_bad_samples_are_listed_and_unlabeled_images_counted(troubled: Path, weights: Path) -> None:
    evaluation = scored(troubled, weights).to_dict()
    row = evaluation["shards"][1]
    assert (row["labeled_images"], row["unlabeled_images"], row["failures"]) == (4, 1, 2)
    assert (evaluation["labeled_images"], evaluation["unlabeled_images"]) == (8, 1)
    bad = {f["key"]: f["reason"] for f in evaluation["failures"] if f["shard"] == "s1"}
    assert sorted(bad) == ["big", "torn"] and "label is 30x30" in bad["big"]


def test_order_and_sharding_change_no_score(shards: Path, weights: Path, tmp_path: Path) -> None:
    members = [
        {f"{shard}-{name}": data for name, data in world.samples(shard).items()}
        for shard in range(3)
    ]
    pairs = [(f"{s}-img{i}.jpg", f"{s}-img{i}.png") for s in range(3) for i in range(4)]
    together = {name: data for shard in members for name, data in shard.items()}
    random.Random(4).shuffle(pairs)
    (tmp_path / "other").mkdir()
    for number, part in enumerate((pairs[:5], pairs[5:6], pairs[6:], [])):
        data = world.tar({name: together[name] for pair in part for name in pair})
        (tmp_path / f"other/p{number}.tar").write_bytes(data)
    one, other = (scored(source, weights) for source in (shards, tmp_path / "other"))
    assert [
        np.array_equal(one.accumulator.confusions, other.accumulator.confusions),
        one.exit_code,
    ] == [
        True,
        0,
    ]
    assert {n: one.to_dict()[n] for n in FOUR} == {n: other.to_dict()[n] for n in FOUR}


@pytest.mark.parametrize(
    "flags",
    [{"limits__chunk_images": 1}, {"compute__workers": 2}, {"compute__batch_size": 3}],
    ids=str,
)
def test_chunks_workers_and_batches_change_nothing(
    shards: Path, weights: Path, flags: dict[str, Any]
) -> None:
    one, other = scored(shards, weights), scored(shards, weights, **flags)
    varying = "fingerprint"
    assert {**document(one), varying: 0} == {**document(other), varying: 0}


def test_a_configuration_for_ray_is_scored_locally_with_a_warning(
    shards: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr("pipeline.evaluation.evaluate.log.warning", warnings.append)
    assert scored(shards, weights, compute__executor="ray").accumulator.images == 12
    assert len(warnings) == 1 and "this machine only" in warnings[0]


def test_the_policy_decides_about_classes_without_truth(
    weights: Path, tmp_path: Path, shards: Path
) -> None:
    members = world.samples(0)
    for name in [name for name in members if name.endswith(".png")]:
        label = np.minimum(decode_label(members[name]), 1).astype(np.uint8)  # class 2 never occurs
        members[name] = world.png(label)
    (tmp_path / "two").mkdir()
    (tmp_path / "two/s.tar").write_bytes(world.tar(members))
    for policy in ("reference", "present"):
        evaluation = scored(tmp_path / "two", weights, EvaluationRequest(policy=policy)).to_dict()
        expected = oracles.scores(evaluation["confusion"], policy)
        assert evaluation["predicted_pixels"][2] > 0 == evaluation["label_pixels"][2]
        assert evaluation["mean_iou"] == pytest.approx(expected["mean_iou"])
        assert evaluation["policy"] == policy


def test_intervals_follow_from_the_seed(shards: Path, weights: Path) -> None:
    report = [
        scored(shards, weights, EvaluationRequest(bootstrap=Bootstrap(50, seed))).to_dict()[
            "intervals"
        ]
        for seed in (1, 1, 2)
    ]
    assert report[0] == report[1] != report[2]
    low, high = report[0]["mean_iou"]
    assert 0 <= low < high <= 1 and len(report[0]["iou"]) == 3


def test_nothing_is_written(shards: Path, weights: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    in_memory = sorted(fsspec.filesystem("memory").store)
    scored(shards, weights)
    world_config = world.config(shards, tmp_path / "unused", weights)
    upper_bound(world_config, EvaluationRequest(factors=(4,)))
    assert sorted(tmp_path.rglob("*")) == before
    assert sorted(fsspec.filesystem("memory").store) == in_memory


def test_shards_committed_by_a_run_are_scored_as_well(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    config = world.config(shards, tmp_path / "out", weights)
    run(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert evaluate(config, EvaluationRequest()).accumulator.images == 12
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_a_folder_with_labels_is_scored_too(weights: Path, tmp_path: Path) -> None:
    for name, data in world.samples(0).items():
        top = "images" if name.endswith(".jpg") else "labels"
        (tmp_path / "folder" / top).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / top / name).write_bytes(data)
    (tmp_path / "tar").mkdir()
    (tmp_path / "tar/s0.tar").write_bytes(world.tar(world.samples(0)))
    one, other = (scored(tmp_path / kind, weights).to_dict() for kind in ("folder", "tar"))
    assert one["confusion"] == other["confusion"]
    assert [row["shard"] for row in one["shards"]] == ["images-000000"]


def test_a_development_kit_is_scored_on_its_split(tmp_path: Path, fcnseg: Fcnseg) -> None:
    files = {f"VOCdevkit/VOC2012/{name}": data for name, data in datasets.voc().items()}
    source = datasets.write(tmp_path / "in", files)
    which = ("--layout", "voc", "--split", "val")
    arguments = ("--upper-bound", "--label-set", "voc", "--factors", "1", "--json")
    code, out, _ = fcnseg("evaluate", source, *which, *arguments)
    assert (code, json.loads(out)["labeled_images"]) == (0, 3)
    assert fcnseg("evaluate", source, *arguments)[0] == 1  # the split is ambiguous


@pytest.mark.parametrize("work", [evaluate, upper_bound])
def test_an_input_without_labels_is_refused(
    weights: Path, tmp_path: Path, work: Callable[..., Evaluation]
) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/a.jpg").write_bytes(world.jpeg(world.image(1)))
    with pytest.raises(InputError, match="1 images without a label"):
        work(
            world.config(tmp_path / "bare", tmp_path / "unused", weights),
            EvaluationRequest(factors=(4,)),
        )


# --- Upper bound ------------------------------------------------------------------------------


def test_the_upper_bound_scores_labels_against_coarse_copies(troubled: Path) -> None:
    config = world.config(troubled, "unused", "demo", input__label_set=str(label_set(troubled)))
    evaluation = upper_bound(
        tiny(config), EvaluationRequest(factors=(8, 1), bootstrap=Bootstrap(20))
    )
    report = evaluation.to_dict()
    coarse, exact = report["upper_bound"]
    assert (coarse["factor"], exact["factor"]) == (8, 1)
    assert exact["mean_iou"] == 1.0 > coarse["mean_iou"]
    assert exact["intervals"]["mean_iou"] == [1.0, 1.0]
    assert (coarse["paper_voc_mean_iou"], exact["paper_voc_mean_iou"]) == (0.964, None)
    # Images are not decoded, so only labels can be bad; s3 is a truncated tar.
    assert sorted(report["failed_shards"]) == ["s3"] and report["unlabeled_images"] == 1
    labels = [name for s in (0, 1) for name in world.samples(s) if name.endswith(".png")]
    assert report["labeled_images"] == len(labels) + 2 + 2 + 3
    assert coarse["label_pixels"] == exact["label_pixels"]


def label_set(beside: Path) -> Path:
    path = beside.parent / "tiny.yaml"
    path.write_text(json.dumps(world.TINY.to_dict()))
    return path


def tiny(config: Any) -> Any:
    return config.model_copy(update={"model": config.model.model_copy(update={"weights": None})})


def test_the_upper_bound_uses_the_label_set_of_the_weights(shards: Path, weights: Path) -> None:
    by_weights = upper_bound(
        world.config(shards, "unused", weights), EvaluationRequest(factors=(4, 8))
    )
    named = world.config(shards, "unused", weights, input__label_set=str(label_set(shards)))
    assert document(by_weights) == document(
        upper_bound(tiny(named), EvaluationRequest(factors=(4, 8)))
    )


def test_a_bad_label_is_a_bad_sample_of_the_upper_bound(tmp_path: Path) -> None:
    members = world.samples(0) | {"x.jpg": b"", "x.png": world.png(np.full((4, 4), 9, np.uint8))}
    (tmp_path / "in").mkdir()
    (tmp_path / "in/s.tar").write_bytes(world.tar(members))
    config = world.config(
        tmp_path / "in", "unused", "demo", input__label_set=str(label_set(tmp_path / "in"))
    )
    evaluation = upper_bound(tiny(config), EvaluationRequest(factors=(4,)))
    (failure,) = evaluation.to_dict()["failures"]
    assert failure["key"] == "x" and "label value 9" in failure["reason"]
    assert (evaluation.exit_code, evaluation.accumulator.images) == (3, 4)


# --- Command ----------------------------------------------------------------------------------


def test_the_command_prints_tables_and_json(shards: Path, weights: Path, fcnseg: Fcnseg) -> None:
    arguments = ("evaluate", shards, "--weights", weights, "--bootstrap", "20", "--trimap", "2,1")
    arguments += ONE_THREAD
    code, out, err = fcnseg(*arguments)
    assert code == 0 and "scoring: 3/3 shards, 12 images" in err
    report = json.loads(fcnseg(*arguments, "--json")[1])
    low, high = report["intervals"]["mean_iou"]
    for text in ("ground", "mean IoU", "1 px", "2 px", "all pixels", "s0", "12 labeled images"):
        assert text in out
    assert f"{report['mean_iou']:.4f}" in out and f"{low:.4f}-{high:.4f}" in out
    assert [row["width"] for row in report["trimap"]] == [1, 2]
    assert "20 bootstrap replicates" in out


def test_the_command_reports_bad_samples_and_shards(
    troubled: Path, weights: Path, fcnseg: Fcnseg
) -> None:
    code, out, err = fcnseg(
        "evaluate", troubled, "--weights", weights, "--bootstrap", "0", *ONE_THREAD
    )
    assert code == 4 and "8 labeled images, 1 without a label left out, 5 bad" in out
    assert "s1.tar" in err and "label is 30x30" in err and "failed: shard s2: 3 of 5" in err
    assert "95 %" not in out.split("labeled images")[1]


def test_the_command_prints_the_upper_bound_beside_the_paper(shards: Path, fcnseg: Fcnseg) -> None:
    arguments = ("evaluate", shards, "--upper-bound", "--label-set", label_set(shards))
    code, out, _ = fcnseg(*arguments)
    assert code == 0
    rows = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in rows] == ["128", "64", "32", "16", "8", "4"]
    assert [row[-1].strip() for row in rows] == [
        "0.509",
        "0.733",
        "0.861",
        "0.928",
        "0.964",
        "0.985",
    ]
    report = json.loads(fcnseg(*arguments, "--factors", "1", "--json")[1])
    assert report["upper_bound"][0]["mean_iou"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--weights", "demo", "--policy", "mean"], 2, "reference or present"),
        (["--weights", "demo", "--trimap", "0"], 2, "whole numbers, 1 or more"),
        (["--weights", "demo", "--trimap", "2,2"], 2, "different"),
        (["--weights", "demo", "--trimap", "1.5"], 2, "whole numbers"),
        (["--weights", "demo", "--factors", "4"], 2, "--upper-bound"),
        (["--upper-bound", "--label-set", "voc", "--trimap", "4"], 2, "one of the two"),
        (["--upper-bound"], 2, "--label-set voc"),
        (["--upper-bound", "--label-set", "voc", "--factors", "4,x"], 2, "--factors"),
        ([], 2, "a weights file"),
        (["--weights", "demo", "--set", "no.such=1"], 2, "unknown"),
    ],
    ids=str,
)
def test_wrong_usage_is_reported(
    shards: Path, fcnseg: Fcnseg, arguments: list[str], code: int, message: str
) -> None:
    exit_code, out, err = fcnseg("evaluate", shards, *arguments)
    assert (exit_code, out) == (code, "") and message in err


def test_labels_of_another_set_are_bad_samples_one_by_one(
    tmp_path: Path, weights: Path, fcnseg: Fcnseg
) -> None:
    (tmp_path / "in").mkdir()
    for index in range(30):
        Image.fromarray(world.image(index)).save(tmp_path / f"in/{index}.jpg")
    Store(str(tmp_path / "labels")).write("0.png", world.png(np.full((17, 23), 77, np.uint8)))
    Store(str(tmp_path / "labels")).write("1.png", world.png(world.label(1)))
    code, out, err = fcnseg(
        "evaluate", tmp_path / "in", "--labels", tmp_path / "labels", "--weights", weights
    )
    assert code == 3 and "1 labeled image, 28 without" in out and "label value 77" in err
