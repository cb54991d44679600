"""A VOC development kit as INPUT: the images of its split, in virtual shards as any folder's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fcn_core.labels import VOC
from fcn_core.weights.weights_file import read_weights
from pipeline.config import RunConfig
from pipeline.driver import plan, run
from pipeline.errors import ConfigError, InputError, OutputError
from pipeline.storage.store import Store
from tests.support import datasets, world

Fcnseg = Callable[..., tuple[int, str, str]]
IDS = ("2007_000032", "2007_000033", "2008_000007")


@pytest.fixture(scope="module")
def voc_weights(tmp_path_factory: pytest.TempPathFactory, random_fcn) -> Path:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("weights") / "voc.safetensors"
    path.write_bytes(world.weights_bytes(random_fcn(num_classes=21, width=1 / 32), VOC))
    assert read_weights(str(path)).info.labels == VOC
    return path


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    files = {f"VOCdevkit/VOC2012/{n}": data for n, data in datasets.voc().items()}
    return datasets.write(tmp_path / "in", files)


def config(
    devkit: Path, output: Path, weights: Path, split: str = "val", **more: object
) -> RunConfig:
    return world.config(
        devkit,
        output,
        weights,
        input__layout="voc",
        input__split=split,
        input__shard_size=2,
        **more,
    )


def test_a_split_gives_the_masks_and_scores_of_its_folder(
    devkit: Path, tmp_path: Path, voc_weights: Path
) -> None:
    folder = tmp_path / "folder"
    for top, target, suffix in (
        ("JPEGImages", "images", ".jpg"),
        ("SegmentationClass", "labels", ".png"),
    ):
        (folder / target).mkdir(parents=True)
        for name in IDS:
            shutil.copy(devkit / f"VOCdevkit/VOC2012/{top}/{name}{suffix}", folder / target)
    plain = world.config(folder, tmp_path / "plain", voc_weights, input__shard_size=2)
    assert run(plain).exit_code == 0
    result = run(config(devkit, tmp_path / "out", voc_weights))
    assert (result.exit_code, result.images, result.shards) == (0, 3, 2)
    assert result.scores["labeled_images"] == 3
    found, expected = world.tree(tmp_path / "out"), world.tree(tmp_path / "plain")
    assert found.keys() == expected.keys()
    where = ("_commits/", "stats/shards.parquet")  # both name the input
    assert all(found[name] == expected[name] for name in found if not name.startswith(where))
    assert run(config(devkit, tmp_path / "out", voc_weights)).done_now == 0


def test_a_split_without_labels_is_segmented_and_not_scored(
    devkit: Path, tmp_path: Path, voc_weights: Path
) -> None:
    result = run(config(devkit, tmp_path / "out", voc_weights, split="test"))
    assert (result.exit_code, result.images, result.scores["labeled_images"]) == (0, 1, 0)


def test_splits_are_not_mixed_in_one_output(
    devkit: Path, tmp_path: Path, voc_weights: Path
) -> None:
    run(config(devkit, tmp_path / "out", voc_weights))
    with pytest.raises(OutputError, match=r"split val \(3 ids, .* now it is .*split train \(1 ids"):
        run(config(devkit, tmp_path / "out", voc_weights, split="train"))
    lists = devkit / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "val.txt").write_text("2007_000032\n")
    with pytest.raises(OutputError, match=r"split val \(3 ids, .* split val \(1 ids"):
        run(config(devkit, tmp_path / "out", voc_weights))
    (lists / "val.txt").write_text("\n".join(reversed(IDS)))
    assert run(config(devkit, tmp_path / "out", voc_weights)).done_now == 0


def test_ids_that_the_user_brings(devkit: Path, tmp_path: Path, voc_weights: Path) -> None:
    (tmp_path / "seg11valid.txt").write_text("2008_000007\n")
    brought = config(devkit, tmp_path / "out", voc_weights, split=str(tmp_path / "seg11valid.txt"))
    assert [m.key for shard in plan(brought).pending for m in shard.members] == ["2008_000007"]


def test_a_changed_label_makes_its_shard_pending(
    devkit: Path, tmp_path: Path, voc_weights: Path
) -> None:
    mine = config(devkit, tmp_path / "out", voc_weights)
    run(mine)
    (devkit / "VOCdevkit/VOC2012/SegmentationClass/2008_000007.png").write_bytes(
        world.png(datasets.values(5, 0, 3, (18, 23)))
    )
    assert [shard.id for shard in plan(mine).pending] == ["images-000001"]


def test_some_missing_labels_are_an_error(devkit: Path, tmp_path: Path, voc_weights: Path) -> None:
    (devkit / "VOCdevkit/VOC2012/SegmentationClass/2008_000007.png").unlink()
    with pytest.raises(InputError, match=r"1 of 3 ids without label .*: 2008_000007"):
        run(config(devkit, tmp_path / "out", voc_weights))
    assert not (tmp_path / "out").exists()


def test_without_its_split_a_development_kit_is_refused(
    devkit: Path, tmp_path: Path, voc_weights: Path
) -> None:
    with pytest.raises(InputError, match=r"a PASCAL VOC development kit.*--layout voc --split"):
        run(world.config(devkit, tmp_path / "out", voc_weights))
    labels = devkit / "VOCdevkit/VOC2012/SegmentationClass"
    with pytest.raises(InputError, match="a PASCAL VOC development kit"):
        run(world.config(devkit, tmp_path / "out", voc_weights, input__labels=str(labels)))
    alone = devkit / "VOCdevkit/VOC2012/JPEGImages"  # on purpose: every image of it
    assert plan(world.config(alone, tmp_path / "o", voc_weights)).total == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"input__split": "val"}, "--split: 'val' alone"),
        ({"input__layout": "voc"}, "--layout: 'voc' alone"),
        (
            {"input__layout": "voc", "input__split": "val", "input__labels": "x"},
            "--labels: a folder together with --layout voc",
        ),
    ],
)
def test_options_that_do_not_go_together(
    devkit: Path, tmp_path: Path, voc_weights: Path, flags: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(world.config(devkit, tmp_path / "out", voc_weights, **flags))


def test_the_commands(devkit: Path, tmp_path: Path, voc_weights: Path, fcnseg: Fcnseg) -> None:
    options = ("--layout", "voc", "--split", "val")
    code, out, _ = fcnseg("plan", devkit, tmp_path / "out", *options)
    assert code == 0 and out.startswith("1 shard, 3 images, ")
    code, out, _ = fcnseg("run", devkit, tmp_path / "out", "--weights", voc_weights, *options)
    assert code == 0 and "(3 labeled of 3 images)" in out
    code, out, _ = fcnseg(
        "evaluate", devkit, "--label-set", "voc", "--upper-bound", "--factors", "4", *options
    )
    assert code == 0 and out.count("3 labeled images") == 1


def test_a_development_kit_in_any_store(voc_weights: Path, tmp_path: Path) -> None:
    source = Store("memory://devkit/VOC2012")
    for name, data in datasets.voc().items():
        source.write(name, data)
    result = run(
        world.config(
            source.url, tmp_path / "out", voc_weights, input__layout="voc", input__split="val"
        )
    )
    assert (result.exit_code, result.images) == (0, 3)
