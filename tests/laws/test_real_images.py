"""CamVid and VOC images, where they lie beside the checkout or where FCNSEG_TEST_DATA says."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_core.labels import CAMVID, VOC, LabelSet
from fcn_core.metrics.bootstrap import Bootstrap
from fcn_core.metrics.upper_bound import FACTORS
from pipeline.driver import run
from pipeline.evaluation.evaluate import upper_bound
from pipeline.evaluation.result import EvaluationRequest
from pipeline.inputs.datasets import pack_dataset
from pipeline.inputs.packing import pack_folder
from pipeline.output.verify import verify
from pipeline.storage.store import Store
from tests.support import world

DATA = Path(os.environ.get("FCNSEG_TEST_DATA", Path(__file__).parents[3] / "shared/data"))


def folder(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"no test images at {DATA / name}; set FCNSEG_TEST_DATA")
    return DATA / name


def weights(path: Path, labels: LabelSet, random_fcn) -> Path:  # type: ignore[no-untyped-def]
    model = random_fcn(num_classes=labels.num_classes, width=1 / 32)
    path.write_bytes(world.weights_bytes(model, labels))
    return path


@pytest.mark.ray
def test_camvid_as_tars_local_and_ray(tmp_path: Path, random_fcn) -> None:  # type: ignore[no-untyped-def]
    data = folder("camvid/val")
    tars = tmp_path / "tars"
    packed = pack_folder(Store(f"{data}/images"), Store(f"{data}/labels"), Store(str(tars)), 32)
    assert (packed.images, packed.labeled_images, packed.left_out) == (101, 101, ())
    file = weights(tmp_path / "w.safetensors", CAMVID, random_fcn)
    for executor in ("local", "ray"):
        config = world.config(tars, tmp_path / executor, file, compute__executor=executor)
        result = run(config)
        assert (result.exit_code, result.images, result.scores["labeled_images"]) == (0, 101, 101)
        assert verify(Store(str(tmp_path / executor)), deep=True).problems == ()
    assert world.tree(tmp_path / "local") == world.tree(tmp_path / "ray")


def test_ragged_voc_folder_with_void_borders(tmp_path: Path, random_fcn) -> None:  # type: ignore[no-untyped-def]
    data = folder("voc")
    file = weights(tmp_path / "w.safetensors", VOC, random_fcn)
    source = tmp_path / "in"
    names = (data / "val.txt").read_text().split()[:24]
    for name in names:
        for top, suffix in (("images", ".jpg"), ("labels", ".png")):
            (source / top).mkdir(parents=True, exist_ok=True)
            (source / top / f"{name}{suffix}").symlink_to(data / top / f"{name}{suffix}")
    result = run(world.config(source, tmp_path / "out", file, input__shard_size=10))
    assert (result.exit_code, result.images, result.shards) == (0, 24, 3)
    assert verify(Store(str(tmp_path / "out")), deep=True).problems == ()


# The table that docs/evaluation.md shows: mean IoU and pixel accuracy by factor.
CAMVID_UPPER_BOUND = {
    128: (0.3428, 0.7867),
    64: (0.4918, 0.8769),
    32: (0.6354, 0.9264),
    16: (0.7515, 0.9558),
    8: (0.8452, 0.9739),
    4: (0.9210, 0.9861),
}


@pytest.mark.slow
def test_upper_bound_of_camvid_is_that_of_the_docs(fcnseg) -> None:  # type: ignore[no-untyped-def]
    data = folder("camvid/train")
    arguments = ("evaluate", data, "--upper-bound", "--label-set", "camvid", "--json")
    code, out, _ = fcnseg(*arguments)
    found = json.loads(out)
    assert (code, found["labeled_images"]) == (0, 367)
    rows = {row["factor"]: (row["mean_iou"], row["pixel_accuracy"]) for row in found["upper_bound"]}
    assert list(rows) == list(CAMVID_UPPER_BOUND)
    page = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
    for factor, (mean_iou, accuracy) in CAMVID_UPPER_BOUND.items():
        assert rows[factor] == pytest.approx((mean_iou, accuracy), abs=6e-5)
        assert re.search(rf"│ {factor} +│ +{mean_iou:.4f} │ [^│]+│ +{accuracy:.4f} │", page)


def test_coarse_truth_loses_more_the_coarser_it_is(tmp_path: Path) -> None:
    data = folder("voc")
    names = (data / "val.txt").read_text().split()[:12]
    for name in names:
        for top, suffix in (("images", ".jpg"), ("labels", ".png")):
            (tmp_path / "in" / top).mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / top / f"{name}{suffix}").symlink_to(data / top / f"{name}{suffix}")
    config = world.config(tmp_path / "in", "unused", None, input__label_set="voc")
    found = upper_bound(
        config, EvaluationRequest(factors=FACTORS, bootstrap=Bootstrap(0))
    ).to_dict()
    assert found["labeled_images"] == 12
    mean_iou = [row["mean_iou"] for row in found["upper_bound"]]
    assert mean_iou == sorted(mean_iou) and mean_iou[0] < 0.8 and mean_iou[-1] > 0.99


def packed_labels(tars: Path) -> Mapping[str, list[list[int]]]:
    """Class values of every label in the tars, as a viewer of palette PNGs finds them."""
    found = {}
    for path in tars.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith((".seg.png", ".png")):
                    data = tar.extractfile(member)
                    assert data is not None
                    image = Image.open(data)
                    if image.mode == "P":
                        found[member.name.partition(".")[0]] = np.asarray(image).tolist()
    return found


def test_voc_as_a_development_kit(tmp_path: Path) -> None:
    data = folder("voc")
    names = (data / "val.txt").read_text().split()[:24]
    kit = tmp_path / "VOCdevkit/VOC2012"
    (kit / "ImageSets/Segmentation").mkdir(parents=True)
    (kit / "ImageSets/Segmentation/val.txt").write_text("\n".join(names))
    (kit / "JPEGImages").symlink_to(data / "images")
    (kit / "SegmentationClass").symlink_to(data / "labels")
    source, output = Store(str(tmp_path / "VOCdevkit")), Store(str(tmp_path / "tars"))
    assert pack_dataset("voc", source, "val", output, 10).labeled_images == 24
    originals = {n: np.asarray(Image.open(data / f"labels/{n}.png")).tolist() for n in names}
    assert packed_labels(tmp_path / "tars") == originals


def test_camvid_in_the_folders_of_segnet_and_as_colours(tmp_path: Path) -> None:
    data = folder("camvid/val")
    names = sorted(path.stem for path in (data / "labels").glob("*.png"))[:12]
    originals = {n: np.asarray(Image.open(data / f"labels/{n}.png")) for n in names}
    colours = np.array([*CAMVID.palette, (0, 0, 0)], np.uint8)  # 11 = unlabeled is black
    places = {
        "segnet/val": "segnet/valannot",
        "first/701_StillsRaw_full": "first/LabeledApproved_full",
    }
    for images, labels in places.items():
        (tmp_path / images).mkdir(parents=True)
        (tmp_path / labels).mkdir()
        for n in names:
            (tmp_path / images / f"{n}.jpg").symlink_to(data / f"images/{n}.jpg")
    for n, label in originals.items():
        Image.fromarray(label).save(tmp_path / f"segnet/valannot/{n}.png")
        Image.fromarray(colours[label]).save(tmp_path / f"first/LabeledApproved_full/{n}_L.png")
    for top, split in (("segnet", "val"), ("first", "all")):
        source, output = Store(str(tmp_path / top)), Store(str(tmp_path / f"{top}-tars"))
        assert pack_dataset("camvid", source, split, output, 5).shards == 3
    expected = {n: label.tolist() for n, label in originals.items()}
    assert packed_labels(tmp_path / "segnet-tars") == expected
    classes = {n: CAMVID.encode(label).tolist() for n, label in originals.items()}
    assert packed_labels(tmp_path / "first-tars") == classes
