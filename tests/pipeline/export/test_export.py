"""Exports: contents, names of images, refusals, and exports that were interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcn_core.labels import LabelSet
from pipeline.driver import run
from pipeline.errors import ConfigError, InputError, OutputError, VerifyError
from pipeline.export.coco import segment_ids
from pipeline.export.cvat import mask_attributes
from pipeline.export.export import FORMATS
from pipeline.export.export import export as export_output
from pipeline.export.format import ExportOptions
from pipeline.export.label_studio import brush_rle
from pipeline.manifest import read_manifest
from pipeline.output.quarantine import retry_config
from pipeline.storage.store import Store
from tests.support import world
from tests.support.exports import (
    export,
    files,
    image_bytes,
    make_output,
    obvious_brush,
    obvious_cvat,
)

Fcnseg = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def output(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_output(tmp_path_factory.mktemp("export"), weights)


def test_segment_ids_are_unique_for_any_palette() -> None:
    black, red = (0, 0, 0), (1, 0, 0)
    labels = LabelSet("odd", ("a", "b", "c", "d"), palette=(black, red, red, (2, 0, 0)))
    ids = segment_ids(labels)
    assert len({*ids, 0}) == 5 and ids[1] == 1 and ids[3] == 2


def test_hf_images_have_the_bytes_of_the_input(output: Path, tmp_path: Path) -> None:
    import pyarrow.dataset as ds

    export(output, tmp_path, "hf")
    rows = ds.dataset(tmp_path / "data").to_table().to_pylist()
    assert len(rows) == 11
    for row in rows:
        assert row["image"]["bytes"] == image_bytes(row["shard"], row["key"])


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (300, 301), (1, 40)])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_brush_run_lengths_decode_to_the_mask(shape: tuple[int, int], share: float) -> None:
    pixels = np.random.default_rng(1).random(shape) < share
    rgba = obvious_brush(brush_rle(pixels)).reshape(*shape, 4)
    assert all(np.array_equal(rgba[..., channel], 255 * pixels) for channel in range(4))


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
def test_cvat_run_lengths_decode_to_the_mask(share: float) -> None:
    pixels = np.random.default_rng(2).random((19, 31)) < share
    assert np.array_equal(obvious_cvat(mask_attributes(pixels), pixels.shape), pixels)


@pytest.mark.parametrize("form", FORMATS)
def test_a_repeated_export_does_nothing_and_a_different_one_is_refused(
    form: str, output: Path, tmp_path: Path
) -> None:
    first = export(output, tmp_path, form)
    before = files(tmp_path)
    again = export(output, tmp_path, form)
    assert again.again and not first.again and again.images == first.images
    with pytest.raises(OutputError, match="with other options"):
        export(output, tmp_path, form, split="other")
    assert files(tmp_path) == before


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_export_again_finishes_an_interrupted_one(
    form: str, output: Path, tmp_path: Path
) -> None:
    export(output, tmp_path / "whole", form)
    whole = files(tmp_path / "whole")
    for allowed in (1, len(whole) // 2, len(whole)):
        dest = Store(str(tmp_path / f"cut{allowed}"))
        puts = iter(range(allowed))

        def stop(puts: Any = puts) -> None:
            if next(puts, None) is None:
                raise KeyboardInterrupt

        store = Store(str(output))
        config = retry_config(store, read_manifest(store), None, [], {})
        with pytest.raises(KeyboardInterrupt):
            export_output(store, dest.guarded(stop), ExportOptions(form), config)
        export_output(store, dest, ExportOptions(form), config)
        assert files(Path(dest.url)) == whole


def test_a_destination_with_other_files_is_refused(output: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(OutputError, match=r"other\.txt"):
        export(output, tmp_path, "coco")
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]
    with pytest.raises(ConfigError, match="overlap"):
        export(output, output / "export", "coco")
    with pytest.raises(ConfigError, match="overlap"):
        export(output, output.parent / "in/x", "coco")


@pytest.mark.parametrize("form", ["png", "tar"])
def test_all_mask_formats_give_the_same_export(
    form: str, output: Path, weights: Path, tmp_path: Path
) -> None:
    run(world.config(output.parent / "in", tmp_path / "out", weights, output__masks=(form,)))
    for images in (True, False):
        export(output, tmp_path / f"a{images}", "voc", images=images)
        export(tmp_path / "out", tmp_path / f"b{images}", "voc", images=images)
        assert files(tmp_path / f"a{images}") == files(tmp_path / f"b{images}")


def test_without_images_the_input_is_not_read(weights: Path, tmp_path: Path) -> None:
    source = world.write_shards(tmp_path / "in", shards=1)
    run(world.config(source, tmp_path / "out", weights))
    source.rename(tmp_path / "gone")
    for form in FORMATS:
        dest = tmp_path / form
        root = "s3://bucket" if form == "label-studio" else None
        with pytest.raises(InputError):
            export(tmp_path / "out", dest, form)
        exported = export(tmp_path / "out", dest, form, images=False, image_root=root)
        assert (exported.images, exported.pending, exported.exit_code) == (4, 0, 0)
        assert not list(dest.rglob("*.jpg"))


def test_pending_and_changed_shards_are_left_out_and_counted(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    run(world.config(shards, tmp_path / "out", weights, input__limit_shards=2))
    (shards / "s0.tar").write_bytes(world.tar(world.samples(7)))
    code, out, err = fcnseg("export", tmp_path / "out", tmp_path / "dest", "--format", "hf")
    assert (code, out) == (3, f"4 images of 1 shard exported: {tmp_path}/dest\n")
    assert "1 shard is not segmented" in err and "1 shard is left out: the input" in err
    run(world.config(shards, tmp_path / "out", weights))
    code, _, err = fcnseg("export", tmp_path / "out", tmp_path / "dest", "--format", "hf")
    assert code == 2 and "other commits, or with other options" in err
    code, out, err = fcnseg("export", tmp_path / "out", tmp_path / "d2", "--format", "hf", "--json")
    assert (code, err) == (0, "") and json.loads(out)["images"] == 12


def test_images_of_a_folder_keep_their_names_and_shared_names_are_refused(
    weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    for index, name in enumerate(("a.jpg", "sub/a.jpg", "b c.jpeg")):
        (tmp_path / "in" / name).write_bytes(world.jpeg(world.image(index)))
    run(world.config(tmp_path / "in", tmp_path / "out", weights))
    export(tmp_path / "out", tmp_path / "coco", "coco")
    assert {p for p in files(tmp_path / "coco") if p.startswith("images/")} == {
        "images/a.jpg", "images/sub/a.jpg", "images/b c.jpg",
    }  # fmt: skip
    export(tmp_path / "out", tmp_path / "voc", "voc")
    ids = (tmp_path / "voc/VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt").read_text()
    assert ids.split("\n") == ["a", "b_c", "sub_a", ""]


def test_two_images_of_one_name_are_refused(output: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another image has the name 'img0' too") as caught:
        export(output, tmp_path, "coco", names="key")
    assert "--names shard" in str(caught.value)


def test_images_with_exif_orientation_are_counted(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(world.image(1)).save(tmp_path / "in/a.jpg", exif=exif)
    (tmp_path / "in/b.png").write_bytes(world.png(world.image(2)))
    run(world.config(tmp_path / "in", tmp_path / "out", weights))
    assert export(tmp_path / "out", tmp_path / "dest", "coco").turned == 1


def test_a_damaged_mask_is_reported(shards: Path, weights: Path, tmp_path: Path) -> None:
    run(world.config(shards, tmp_path / "out", weights, output__masks=("png",)))
    (tmp_path / "out/png/s1/img2.png").write_bytes(world.png(world.label(3)))
    with pytest.raises(VerifyError, match=r"s1/img2\.png"):
        export(tmp_path / "out", tmp_path / "dest", "webdataset")


def test_the_destination_may_be_any_url(output: Path) -> None:
    export(output, "memory://exported", "voc")
    paths = [info.path for info in Store("memory://exported").objects()]
    assert "VOCdevkit/VOC2012/JPEGImages/s2_img0.jpg" in paths


@pytest.mark.parametrize(
    ("choices", "word"),
    [
        ({"form": "tiff"}, "--format"),
        ({"form": "coco", "names": "best"}, "--names"),
        ({"form": "coco", "without": ("dog",)}, "--without"),
        ({"form": "hf", "without": ("thing",)}, "--without"),
        ({"form": "label-studio", "images": False}, "--no-images"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_written(
    choices: dict[str, Any], word: str, output: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^{word}"):
        export(output, tmp_path / "dest", **choices)
    assert not (tmp_path / "dest").exists()
