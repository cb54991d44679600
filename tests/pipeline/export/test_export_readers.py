"""Every export format, read back by the library that it is meant for."""

from __future__ import annotations

import gc
import io
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from pycocotools.coco import COCO
from torchvision.datasets import VOCSegmentation

from fcn_core.predictor import Predictor
from pipeline.driver import run
from tests.support import world
from tests.support.exports import (
    Masks,
    export,
    image_bytes,
    make_output,
    masks_of,
    obvious_box,
    obvious_brush,
)

CLASSES = world.TINY.classes


@pytest.fixture(scope="module")
def output(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_output(tmp_path_factory.mktemp("export"), weights)


@pytest.fixture(scope="module")
def truth(output: Path) -> Masks:
    return masks_of(output)


def test_voc_is_read_by_torchvision(output: Path, truth: Masks, tmp_path: Path) -> None:
    exported = export(output, tmp_path, "voc", split="val")
    assert (exported.images, exported.shards, exported.quarantined, exported.exit_code) == (
        11,
        3,
        1,
        3,
    )
    dataset = VOCSegmentation(str(tmp_path), image_set="val")
    assert len(dataset) == 11
    for (image, mask), path in zip(dataset, dataset.masks, strict=True):
        shard, key = Path(path).stem.split("_")
        assert np.array_equal(np.asarray(mask), truth[shard, key])
        assert image.size == mask.size
    images = tmp_path / "VOCdevkit/VOC2012/JPEGImages"
    assert (images / "s0_img3.jpg").read_bytes() == image_bytes("s0", "img3")


def test_voc_converts_other_images_to_jpeg(weights: Path, tmp_path: Path) -> None:
    """PNG and WebP images become JPEGs; the masks stay those of the original images."""
    source = tmp_path / "in"
    source.mkdir()
    slope = np.linspace(0, 255, 40 * 50).reshape(40, 50)
    smooth = np.dstack([slope, slope[::-1], slope[:, ::-1]]).astype(np.uint8)
    images = {"a": smooth, "b": smooth[::-1].copy()}
    for (name, pixels), form in zip(images.items(), ("png", "webp"), strict=True):
        Image.fromarray(pixels).save(source / f"{name}.{form}", lossless=True)
    run(world.config(source, tmp_path / "out", weights, output__masks=("parquet",)))
    export(tmp_path / "out", tmp_path / "voc", "voc", split="val")
    dataset = VOCSegmentation(str(tmp_path / "voc"), image_set="val")
    assert len(dataset) == 2
    for (image, mask), pixels in zip(dataset, images.values(), strict=True):
        expected = Predictor.load(weights).predict([pixels])[0].mask
        assert np.array_equal(np.asarray(mask), expected)
        assert np.abs(np.asarray(image, float) - pixels).max() < 16


def test_an_export_to_voc_is_a_valid_input(output: Path, weights: Path, tmp_path: Path) -> None:
    export(output, tmp_path / "voc", "voc")
    again = world.config(
        tmp_path / "voc", tmp_path / "out", weights, input__layout="voc", input__split="train"
    )
    scores = run(again).scores  # the network against its own masks
    assert (scores["images"], scores["pixel_accuracy"]) == (11, 1.0)


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # raised by pycocotools itself
def test_coco_is_read_by_pycocotools(output: Path, truth: Masks, tmp_path: Path) -> None:
    export(output, tmp_path, "coco")
    coco = COCO(str(tmp_path / "annotations.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    for image in coco.loadImgs(coco.getImgIds()):
        shard, key = Path(image["file_name"]).with_suffix("").parts
        mask = np.full((image["height"], image["width"]), 255, np.uint8)
        for one in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            pixels = coco.annToMask(one).astype(bool)
            assert one["area"] == pixels.sum() and not (mask[pixels] != 255).any()
            assert one["bbox"] == obvious_box(pixels)
            mask[pixels] = one["category_id"] - 1
        assert np.array_equal(mask, truth[shard, key])
        data = (tmp_path / "images" / image["file_name"]).read_bytes()
        assert data == image_bytes(shard, key)
    assert len(coco.getImgIds()) == 11


def test_coco_panoptic_follows_the_rules_of_the_format(
    output: Path, truth: Masks, tmp_path: Path
) -> None:
    export(output, tmp_path, "coco-panoptic", without=("thing",))
    document = json.loads((tmp_path / "panoptic.json").read_text())
    categories = {c["id"]: c["name"] for c in document["categories"]}
    assert categories == {1: "ground", 3: "stuff"}
    assert all(c["isthing"] == 0 for c in document["categories"])
    images = {image["id"]: image for image in document["images"]}
    assert [a["image_id"] for a in document["annotations"]] == list(images) == [*range(1, 12)]
    for one in document["annotations"]:
        shard, key = Path(one["file_name"]).with_suffix("").parts
        with Image.open(tmp_path / "panoptic" / one["file_name"]) as png:
            assert png.mode == "RGB" and png.size == (
                images[one["image_id"]]["width"],
                images[one["image_id"]]["height"],
            )
            rgb = np.asarray(png).astype(np.int64)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]
        expected = truth[shard, key].copy()
        expected[expected == 1] = 255
        mask = np.full(ids.shape, 255, np.uint8)
        assert {0, *(s["id"] for s in one["segments_info"])} >= set(np.unique(ids))
        for segment in one["segments_info"]:
            pixels = ids == segment["id"]
            assert segment["id"] > 0 and segment["iscrowd"] == 0
            assert (segment["area"], segment["bbox"]) == (pixels.sum(), obvious_box(pixels))
            mask[pixels] = segment["category_id"] - 1
        assert np.array_equal(mask, expected)


def test_webdataset_is_read_by_webdataset(output: Path, truth: Masks, tmp_path: Path) -> None:
    export(output, tmp_path, "webdataset")
    tars = sorted(str(path) for path in tmp_path.glob("*.tar"))
    assert len(tars) == 6  # two chunks each, as the run cut them

    def to_indices(data: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data)))

    dataset = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode(
        webdataset.handle_extension("mask.png", to_indices), "pil"
    )
    with warnings.catch_warnings():
        # webdataset leaves its tars open until they are garbage collected.
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(dataset)
        gc.collect()
    seen = set()
    for sample in samples:
        about = sample["json"]
        place = about["shard"], about["key"]
        seen.add(place)
        assert np.array_equal(sample["mask.png"], truth[place])
        assert sample["jpg"].size == (about["width"], about["height"])
        assert 0 < about["mean_confidence"] <= 1
    assert seen == set(truth)
    assert json.loads((tmp_path / "classes.json").read_text())["classes"] == list(CLASSES)


def test_an_export_to_webdataset_is_a_valid_input(
    output: Path, weights: Path, tmp_path: Path
) -> None:
    export(output, tmp_path / "wds", "webdataset")
    scores = run(world.config(tmp_path / "wds", tmp_path / "out", weights)).scores
    assert (scores["labeled_images"], scores["pixel_accuracy"]) == (11, 1.0)


def test_hf_is_read_by_datasets(
    output: Path, truth: Masks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(output, tmp_path / "hf", "hf", split="validation")
    script = f"""
import json, numpy as np
from datasets import load_dataset, get_dataset_config_info
splits = load_dataset({str(tmp_path / "hf")!r}, cache_dir={str(tmp_path / "cache")!r})
data = splits["validation"]
info = get_dataset_config_info({str(tmp_path / "hf")!r})
assert info.splits["validation"].num_examples == len(data) == 11
assert info.features == data.features
out = {{"names": data.features["classes"].feature.names, "rows": []}}
for row in data:
    mask = np.asarray(row["mask"])
    assert row["image"].mode == "RGB" and row["image"].size == row["mask"].size
    assert row["classes"] == np.unique(mask).tolist()
    out["rows"].append([row["shard"], row["key"], mask.tolist()])
print(json.dumps(out))
"""
    # In a separate process, because the import of datasets starts threads and adds hooks.
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["names"] == list(CLASSES)
    masks = {(shard, key): np.array(mask) for shard, key, mask in document["rows"]}
    assert masks.keys() == truth.keys()
    assert all(np.array_equal(masks[place], truth[place]) for place in truth)


def test_label_studio_tasks_contain_the_masks(output: Path, truth: Masks, tmp_path: Path) -> None:
    export(output, tmp_path, "label-studio", without=("ground",), image_root="s3://b/a photo")
    tasks = [t for path in sorted(tmp_path.glob("tasks/*")) for t in json.loads(path.read_text())]
    assert len(tasks) == 11
    for task in tasks:
        shard, key = task["data"]["shard"], task["data"]["key"]
        assert task["data"]["image"] == f"s3://b/a photo/{shard}/{key}.jpg"
        (prediction,) = task["predictions"]
        expected, mask = truth[shard, key], np.zeros_like(truth[shard, key])
        for brush in prediction["result"]:
            size = brush["original_height"], brush["original_width"]
            alpha = obvious_brush(bytes(brush["value"]["rle"])).reshape(*size, 4)[..., 3]
            mask[alpha == 255] = CLASSES.index(brush["value"]["brushlabels"][0])
        assert np.array_equal(mask, expected)
    assert '<Label value="stuff" background="#' in (tmp_path / "label_config.xml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "package"),
    [("label-studio", "label-studio-sdk==2.1.2"), ("cvat", "datumaro==1.13.12"),
     ("coco-panoptic", "datumaro==1.13.12")],
)  # fmt: skip
def test_label_tools_read_their_format(
    form: str, package: str, output: Path, truth: Masks, tmp_path: Path
) -> None:
    """Label tools need other package versions, so each runs in a separate environment."""
    uv = Path(sys.executable).parent / "uv"
    program = str(uv) if uv.exists() else "uv"
    export(output, tmp_path / "dest", form)
    np.savez(tmp_path / "truth.npz", **{f"{s}/{k}": mask for (s, k), mask in truth.items()})
    script = Path(__file__).parents[2] / "support/readers" / f"{form.replace('-', '_')}.py"
    done = subprocess.run(
        [program, "run", "--no-project", "--isolated", "--with", package, "python", str(script),
         str(tmp_path / "dest"), str(tmp_path / "truth.npz")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "11 images agree" in done.stdout
