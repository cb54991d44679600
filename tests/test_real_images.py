"""CamVid and VOC pictures, where they lie beside the checkout or where FCNSEG_TEST_DATA says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fcn_core.labels import CAMVID, VOC, LabelSet
from pipeline.packing import pack_folder
from pipeline.run import run
from pipeline.store import Store
from pipeline.verify import verify
from tests import world

DATA = Path(os.environ.get("FCNSEG_TEST_DATA", Path(__file__).parent.parent.parent / "shared/data"))


def folder(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"no test pictures at {DATA / name}; set FCNSEG_TEST_DATA")
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
