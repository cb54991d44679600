"""Laws of a whole run with the local executor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fcn_core.images import decode_image, decode_label
from fcn_core.metrics import ConfusionMatrix
from fcn_core.predictor import Predictor
from pipeline.driver import run
from pipeline.errors import InputError, LeaseError, OutputError
from pipeline.output.lease import Lease
from pipeline.output.run_result import RunResult
from pipeline.output.verify import verify
from pipeline.stages import read as chunks
from pipeline.storage.store import Store
from tests.support import world


def test_every_image_gets_the_mask_that_the_predictor_gives(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    result = run(world.config(shards, tmp_path / "out", weights))
    assert (result.exit_code, result.images, result.committed) == (0, 12, 3)
    predictor = Predictor.load(weights)
    matrix = ConfusionMatrix(3)
    for shard in range(3):
        members = world.samples(shard)
        for key in ("img0", "img1", "img2", "img3"):
            mask = predictor.predict([decode_image(members[f"{key}.jpg"])])[0].mask
            written = (tmp_path / f"out/png/s{shard}/{key}.png").read_bytes()
            assert np.array_equal(decode_label(written), mask)
            matrix.update(decode_label(members[f"{key}.png"]), mask)
    scores = json.loads((tmp_path / "out/stats/scores.json").read_text())
    assert scores["confusion"] == matrix.matrix.tolist()
    assert scores["mean_iou"] == pytest.approx(matrix.scores().mean_iou)


def test_output_has_the_files_of_the_contract(shards: Path, weights: Path, tmp_path: Path) -> None:
    run(world.config(shards, tmp_path / "out", weights))
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    expected = {"_run.json", "stats/shards.parquet", "stats/scores.json", "report.html"}
    expected |= {f"{top}/s{i}{ext}" for i in range(3) for top, ext in
                 (("_commits", ".json"), ("masks", ".parquet"), ("tar", ".tar"))}  # fmt: skip
    assert expected <= names
    assert (tmp_path / "out/_SUCCESS").exists()
    assert not (tmp_path / "out/_lease.json").exists()


def test_rows_of_the_mask_table_agree_with_the_masks(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    run(world.config(shards, tmp_path / "out", weights))
    for row in pq.ParquetFile(tmp_path / "out/masks/s1.parquet").read().to_pylist():
        mask = decode_label(row["mask"]["bytes"])
        label = decode_label(world.samples(1)[f"{row['key']}.png"])
        assert mask.shape == (row["height"], row["width"])
        assert np.bincount(mask.ravel(), minlength=3).tolist() == row["class_pixels"]
        assert row["labeled_pixels"] == (label != 255).sum()
        assert row["correct_pixels"] == ((label == mask) & (label != 255)).sum()
        assert 0 < row["mean_confidence"] <= 1


def _reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the shards that are read from now on."""
    seen: list[str] = []
    original = chunks.TarIndex

    def spy(shard, *args, **options):  # type: ignore[no-untyped-def]
        seen.append(shard.id)
        return original(shard, *args, **options)

    monkeypatch.setattr(chunks, "TarIndex", spy)
    return seen


def test_second_run_reads_nothing_and_changes_nothing(
    shards: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world.config(shards, tmp_path / "out", weights)
    run(config)
    before = world.tree(tmp_path / "out")
    seen = _reads(monkeypatch)
    result = run(config)
    assert (seen, result.done_now, result.exit_code) == ([], 0, 0)
    assert world.tree(tmp_path / "out") == before


def test_limit_shards_leaves_the_rest_for_the_next_run(
    shards: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(world.config(shards, tmp_path / "out", weights, input__limit_shards=2))
    assert (first.done_now, first.committed) == (2, 2)
    assert (tmp_path / "out/_PARTIAL").exists()
    seen = _reads(monkeypatch)
    run(world.config(shards, tmp_path / "out", weights))
    assert seen == ["s2"]
    assert (tmp_path / "out/_SUCCESS").exists() and not (tmp_path / "out/_PARTIAL").exists()


def test_changed_shard_is_done_again_and_no_other(
    shards: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world.config(shards, tmp_path / "out", weights)
    run(config)
    (shards / "s1.tar").write_bytes(world.tar(world.samples(7, images=2)))
    seen = _reads(monkeypatch)
    result = run(config)
    assert (seen, result.images) == (["s1"], 10)
    assert verify(Store(str(tmp_path / "out")), deep=True).problems == ()


def test_format_asked_for_later_is_added_and_keeps_the_earlier_one(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(world.config(shards, out, weights, output__masks=("parquet",)))
    table = (out / "masks/s0.parquet").read_bytes()
    result = run(world.config(shards, out, weights, output__masks=("png",)))
    assert result.done_now == 3
    commit = json.loads((out / "_commits/s0.json").read_text())
    assert commit["masks"] == ["parquet", "png"]
    assert (out / "masks/s0.parquet").read_bytes() == table


@pytest.mark.parametrize(
    "flags",
    [
        {"limits__chunk_images": 1},
        {"limits__chunk_images": 3},
        {"limits__chunk_bytes": 1},
        {"compute__workers": 3},
        {"compute__batch_size": 3},
    ],
)
def test_masks_do_not_depend_on_how_the_work_is_cut(
    shards: Path, weights: Path, tmp_path: Path, flags: dict[str, int]
) -> None:
    run(world.config(shards, tmp_path / "a", weights))
    run(world.config(shards, tmp_path / "b", weights, **flags))
    one, other = world.tree(tmp_path / "a"), world.tree(tmp_path / "b")
    pngs = [name for name in one if name.startswith("png/")]
    assert len(pngs) == 12
    assert all(one[name] == other[name] for name in pngs)
    assert one["stats/scores.json"] == other["stats/scores.json"]


def test_large_shard_is_split_under_numbered_names(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    run(world.config(shards, tmp_path / "out", weights, limits__chunk_images=3))
    names = sorted(path.name for path in (tmp_path / "out/masks").iterdir())
    assert names[:2] == ["s0-00000-of-00002.parquet", "s0-00001-of-00002.parquet"]
    assert len(json.loads((tmp_path / "out/_commits/s0.json").read_text())["files"]) == 10


@pytest.mark.parametrize(
    "change",
    [
        {"limits__chunk_images": 2},
        {"model__precision": "bf16"},
        {"input__label_set": "OTHER"},
        {"model__weights": "OTHER"},
        {"input__url": "OTHER"},
    ],
)
def test_output_of_something_else_is_refused_and_stays_as_it_is(
    shards: Path, weights: Path, tmp_path: Path, random_fcn, change: dict[str, object]
) -> None:
    out = tmp_path / "out"
    run(world.config(shards, out, weights))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    others = {
        "input__url": world.write_shards(tmp_path / "in2"),
        "model__weights": tmp_path / "other.safetensors",
        "input__label_set": tmp_path / "other.yaml",
    }
    model = random_fcn(num_classes=3, width=1 / 32, seed=9)
    others["model__weights"].write_bytes(world.weights_bytes(model))
    others["input__label_set"].write_text("name: other\nclasses: [a, b, c]\n")
    flags = {name: str(others[name]) if v == "OTHER" else v for name, v in change.items()}
    base = world.config(shards, out, weights)
    tree = base.model_dump()
    for name, value in flags.items():
        section, field = name.split("__")
        tree[section][field] = value
    with pytest.raises(OutputError, match="Use a new OUTPUT") as caught:
        run(type(base).model_validate(tree))
    assert caught.value.exit_code == 2
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_empty_input_leaves_no_trace(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no objects: the folder or prefix is"):
        run(world.config(tmp_path / "nothing", tmp_path / "out", weights))
    assert not (tmp_path / "out").exists()


def test_second_driver_is_refused_while_the_first_works(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    with Lease(Store(str(tmp_path / "out"))), pytest.raises(LeaseError, match="held by process"):
        run(world.config(shards, tmp_path / "out", weights))
    assert run(world.config(shards, tmp_path / "out", weights)).exit_code == 0


def _failing_store(monkeypatch: pytest.MonkeyPatch, fail_at: int) -> None:
    """The n-th put of the process dies before it happens, as if the process were killed there."""
    puts = 0

    def dies(original):  # type: ignore[no-untyped-def]
        def put(self, path, data):  # type: ignore[no-untyped-def]
            nonlocal puts
            puts += 1
            if puts >= fail_at:
                raise KeyboardInterrupt
            return original(self, path, data)

        return put

    monkeypatch.setattr(Store, "write", dies(Store.write))
    monkeypatch.setattr(Store, "create", dies(Store.create))


def test_crash_at_every_write_and_rerun_gives_the_undisturbed_tree(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    undisturbed = run(world.config(shards, tmp_path / "calm", weights))
    assert isinstance(undisturbed, RunResult)
    expected = world.tree(tmp_path / "calm")
    crashes = 0
    for n in range(1, 100):
        out = tmp_path / f"out{n}"
        config = world.config(shards, out, weights)
        try:
            with pytest.MonkeyPatch.context() as patch:
                _failing_store(patch, n)
                run(config)
            break
        except KeyboardInterrupt:
            crashes += 1
        run(config)
        assert world.tree(out) == expected
        assert verify(Store(str(out)), deep=True).problems == ()
    assert crashes > 25  # lease, identity, 3 shards of 7 objects and a commit, results, marker


def test_input_of_another_layout_is_refused(weights: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    for top, data in (
        ("images", world.jpeg(world.image(1))),
        ("labels", world.png(world.label(1))),
    ):
        (source / top).mkdir(parents=True)
        (source / top / f"a.{'jpg' if top == 'images' else 'png'}").write_bytes(data)
    config = world.config(source, tmp_path / "out", weights)
    run(config)
    before = world.tree(tmp_path / "out")
    (source / "labels").rename(source / "truth")  # its labels would become images
    with pytest.raises(OutputError, match="laid out as folder images/"):
        run(config)
    assert world.tree(tmp_path / "out") == before


def test_what_a_killed_worker_left_half_written_is_removed(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    leftover = tmp_path / "out/masks/.fcnseg-tmp-0123"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    run(world.config(shards, tmp_path / "out", weights))
    assert not leftover.exists()


def test_commit_without_a_format_that_is_asked_for_is_no_success(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(world.config(shards, out, weights, output__masks=("parquet",)))
    flags = {"output__masks": ("png",), "input__limit_shards": 1}
    assert run(world.config(shards, out, weights, **flags)).committed == 1
    assert (out / "_PARTIAL").exists() and not (out / "_SUCCESS").exists()
