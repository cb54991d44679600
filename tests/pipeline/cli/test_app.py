"""Every command as a person calls it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image

from pipeline.driver import run
from tests.support import world

Fcnseg = Callable[..., tuple[int, str, str]]


@pytest.fixture
def finished_output(shards: Path, weights: Path, tmp_path: Path) -> Path:
    run(world.config(shards, tmp_path / "out", weights))
    return tmp_path / "out"


def test_the_version_is_that_of_the_package(fcnseg: Fcnseg) -> None:
    code, stdout, _ = fcnseg("--version")
    assert (code, stdout) == (0, f"fcnseg {version('fcn-pipeline')}\n")


@pytest.mark.parametrize("places", [("in/{date}", "out"), ("in", "out/{yesterday:%Y}")])
def test_a_date_without_a_value_is_refused(places: tuple[str, str], fcnseg: Fcnseg) -> None:
    code, _, stderr = fcnseg("plan", *places)
    assert code == 2 and "$(date +%F)" in stderr


def test_plan_says_what_is_there_and_writes_nothing(
    shards: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    code, out, _ = fcnseg("plan", shards, tmp_path / "out")
    assert code == 0 and out.startswith("3 shards, 12 images, ") and "3 pending" in out
    assert not (tmp_path / "out").exists()
    document = json.loads(fcnseg("plan", shards, tmp_path / "out", "--json")[1])
    assert (document["images"], document["pending"]) == (12, ["s0", "s1", "s2"])


def test_plan_after_a_run_has_nothing_pending(
    shards: Path, weights: Path, finished_output: Path, fcnseg: Fcnseg
) -> None:
    assert "; 0 pending" in fcnseg("plan", shards, finished_output)[1]
    assert "; 0 pending" in fcnseg("plan", shards, finished_output, "--weights", weights)[1]


def test_run_prints_the_table_to_stdout_and_progress_to_stderr(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    code, out, err = fcnseg("run", shards, tmp_path / "out", "--weights", weights)
    assert code == 0
    assert "3 shards done now, 3 of 3 in all, 12 images" in out and "mean IoU" in out
    assert f"report: {tmp_path}/out/report.html" in out
    assert "segmenting: 3/3 shards, 12 images" in err
    again = fcnseg("run", shards, tmp_path / "out", "--weights", weights)
    assert "nothing pending: all 3 shards are done" in again[1] and again[2] == ""


def test_dry_run_only_plans(shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg) -> None:
    code, out, _ = fcnseg("run", shards, tmp_path / "out", "--weights", weights, "--dry-run")
    assert code == 0 and "3 pending" in out and not (tmp_path / "out").exists()


def test_config_file_set_and_flags_come_together(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {{weights: {weights}}}\noutput: {{masks: [tar]}}\n")
    out = tmp_path / "out"
    code, _, _ = fcnseg(
        "run", shards, out, "--config", file, "--set", "limits.chunk_images=2", "--masks", "png"
    )
    assert code == 0 and (out / "png").exists() and not (out / "tar").exists()
    assert json.loads((out / "_run.json").read_text())["chunk_limits"]["images"] == 2


def test_json_of_a_run_is_the_scores_and_the_shards(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    out = fcnseg("run", shards, tmp_path / "out", "--weights", weights, "--json")[1]
    document = json.loads(out)
    written = json.loads((tmp_path / "out/stats/scores.json").read_text())
    assert {**document, **written} == document
    assert (document["exit_code"], document["shards_committed"]) == (0, 3)


def test_status_report_and_verify_agree(finished_output: Path, fcnseg: Fcnseg) -> None:
    scores = json.loads((finished_output / "stats/scores.json").read_text())
    status = json.loads(fcnseg("status", finished_output, "--json")[1])
    assert status["mean_iou"] == scores["mean_iou"] and status["marker"] == "_SUCCESS"
    code, out, _ = fcnseg("status", finished_output)
    assert code == 0 and "3 shards committed of 3, 12 images" in out
    (finished_output / "report.html").unlink()
    assert f"{scores['mean_iou']:.4f}" in fcnseg("report", finished_output)[1]
    assert (finished_output / "report.html").stat().st_size > 1000
    assert json.loads(fcnseg("report", finished_output, "--json")[1])["shards"] == 3
    code, out, _ = fcnseg("verify", finished_output, "--deep")
    assert code == 0 and "0 problems" in out


def test_verify_exits_1_on_a_changed_mask(finished_output: Path, fcnseg: Fcnseg) -> None:
    (finished_output / "png/s0/img0.png").write_bytes(b"x")
    code, out, _ = fcnseg("verify", finished_output)
    assert code == 1 and "png/s0/img0.png: 1 bytes" in out


@pytest.mark.parametrize("command", ["status", "report", "verify"])
def test_no_output_of_a_run_is_said(command: str, tmp_path: Path, fcnseg: Fcnseg) -> None:
    code, _, err = fcnseg(command, tmp_path)
    assert code == 2 and "no _run.json" in err


def test_shard_then_run(weights: Path, tmp_path: Path, fcnseg: Fcnseg) -> None:
    for index in range(5):
        for top, data in (
            ("images", world.jpeg(world.image(index))),
            ("labels", world.png(world.label(index))),
        ):
            (tmp_path / top).mkdir(exist_ok=True)
            suffix = ".jpg" if top == "images" else ".png"
            (tmp_path / top / f"k{index}{suffix}").write_bytes(data)
    arguments = (tmp_path / "images", tmp_path / "tars", "--labels", tmp_path / "labels")
    code, out, _ = fcnseg("shard", *arguments, "--shard-size", "2")
    assert code == 0 and out.strip() == "3 shards, 5 images, 5 labeled, 0 left out"
    assert fcnseg("run", tmp_path / "tars", tmp_path / "out", "--weights", weights)[0] == 0
    direct = (tmp_path / "images", tmp_path / "out2", "--labels", tmp_path / "labels")
    assert fcnseg("run", *direct, "--weights", weights)[0] == 0
    one, other = (json.loads((tmp_path / o / "stats/scores.json").read_text())["confusion"]
                  for o in ("out", "out2"))  # fmt: skip
    assert one == other


def test_predict_writes_mask_and_overlay_and_names_the_bad_one(
    weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    (tmp_path / "good.jpg").write_bytes(world.jpeg(world.image(1)))
    (tmp_path / "bad.jpg").write_bytes(b"x")
    out = tmp_path / "out"
    images = (tmp_path / "bad.jpg", tmp_path / "good.jpg")
    code, stdout, err = fcnseg("predict", *images, "--output", out, "--weights", weights)
    assert code == 1 and "good.jpg: " in stdout and "bad.jpg" in err
    with Image.open(out / "good-mask.png") as mask, Image.open(out / "good-overlay.png") as overlay:
        assert mask.mode == "P" and overlay.mode == "RGB"
        assert mask.size == overlay.size == (23, 17)


def test_predict_overwrites_no_image(weights: Path, tmp_path: Path, fcnseg: Fcnseg) -> None:
    for name in ("a.png", "a-mask.png"):
        (tmp_path / name).write_bytes(world.png(world.image(len(name))))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, stderr = fcnseg(
        "predict", tmp_path / "a.png", tmp_path / "a-mask.png",
        "--output", tmp_path, "--weights", weights,
    )  # fmt: skip
    assert code == 1 and "would overwrite" in stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_predict_refuses_two_images_of_one_name(
    weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    code, _, err = fcnseg(
        "predict", "a/x.jpg", "b/x.jpg", "--output", tmp_path, "--weights", weights
    )
    assert code == 1 and "has the same name" in err


@pytest.mark.parametrize("arguments", [("run",), ("nothing",), ("run", "--no-such-flag")])
def test_usage_errors_exit_2(arguments: tuple[str, ...], fcnseg: Fcnseg) -> None:
    assert fcnseg(*arguments)[0] == 2


def test_counts_agree_with_their_nouns(tmp_path: Path, weights: Path, fcnseg: Fcnseg) -> None:
    """One shard of one image, looked at by every command that counts; then nothing is left."""
    source, out = world.write_shards(tmp_path / "in", 1, 1), tmp_path / "out"
    said = []
    for words in (
        ("plan", source, out),
        ("run", source, out, "--weights", weights, "--workers", 1, "--masks", "parquet"),
        ("run", source, out, "--weights", weights),
        *((command, out) for command in ("status", "report", "history", "verify", "failed", "gc")),
        ("evaluate", source, "--weights", weights),
        ("export", out, tmp_path / "dest", "--format", "voc"),
    ):
        code, stdout, stderr = fcnseg(*words)
        assert code == 0, words
        said.append(stdout + stderr)
    text = "\n".join(said)
    assert "1 shard, 1 image, " in text and "1 shard, 2 objects, " in text
    assert "1 image of 1 shard exported" in text and "nothing pending: the shard is done" in text
    assert not re.findall(r"(?<![\d./])1 \w+s\b", text)
