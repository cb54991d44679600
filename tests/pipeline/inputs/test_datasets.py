"""Datasets as they are distributed become tars: every sample of a split, and no other."""

from __future__ import annotations

import contextlib
import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn_core.datasets.matfiles import read_sbd_label
from fcn_core.errors import LabelError, MissingPackageError
from fcn_core.labels import CAMVID, NYUDV2, SIFTFLOW, SIFTFLOW_GEO, VOC, VOID
from pipeline.errors import ConfigError, InputError
from pipeline.inputs.datasets import LAYOUTS, pack_dataset
from pipeline.storage.store import Store
from tests.support import datasets, world

Fcnseg = Callable[..., tuple[int, str, str]]


def pack(root: Path, layout: str, split: str | None, size: int = 2) -> dict[str, dict[str, bytes]]:
    """Members of the tars by key: {"key": {".jpg": …, ".png": …}}."""
    output = Store(f"{root}-{layout}-{str(split).replace('/', '_')}")
    packed = pack_dataset(layout, Store(str(root)), split, output, size)
    found: dict[str, dict[str, bytes]] = {}
    names = [info.path for info in output.objects()]
    assert names == [f"shard-{n:06d}.tar" for n in range(len(names))]
    for name in names:
        with tarfile.open(fileobj=io.BytesIO(output.read(name))) as tar:
            members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
        keys = {member.partition(".")[0] for member, _ in members}
        assert len(keys) <= size
        for member, data in members:
            key, dot, suffix = member.partition(".")
            found.setdefault(key, {})[dot + suffix] = data
    labeled = sum(len(members) == 2 for members in found.values())
    assert (packed.shards, packed.images) == (len(names), len(found))
    assert (packed.labeled_images, packed.left_out) == (labeled, ())
    return found


def labels_of(
    found: dict[str, dict[str, bytes]], suffix: str = ".png"
) -> dict[str, list[list[int]]]:
    return {key: datasets.read_png(members[suffix]).tolist() for key, members in found.items()}


def as_lists(truth: dict[str, np.ndarray], *ids: str) -> dict[str, list[list[int]]]:
    return {name: truth[name].tolist() for name in ids}


# --- The layouts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("above", ["", "VOCdevkit/VOC2012/"])
def test_voc(tmp_path: Path, above: str) -> None:
    files = datasets.voc()
    root = datasets.write(tmp_path / "d", {above + name: data for name, data in files.items()})
    found = pack(root, "voc", "val")
    assert sorted(found) == ["2007_000032", "2007_000033", "2008_000007"]
    for key, members in found.items():
        assert members[".jpg"] == files[f"JPEGImages/{key}.jpg"]
        assert np.array_equal(
            datasets.read_png(members[".png"]),
            datasets.read_png(files[f"SegmentationClass/{key}.png"]),
        )
    assert list(pack(root, "voc", "train")) == ["2008_000001"]
    assert pack(root, "voc", "test") == {
        "2008_000002": {".jpg": files["JPEGImages/2008_000002.jpg"]}
    }


def test_voc_labels_that_were_saved_as_rgb(tmp_path: Path) -> None:
    files = datasets.voc()
    name = "SegmentationClass/2007_000032.png"
    expected = datasets.read_png(files[name])
    rgb = Image.open(io.BytesIO(files[name])).convert("RGB")
    files[name] = world.png(np.asarray(rgb))
    found = pack(datasets.write(tmp_path / "d", files), "voc", "val")
    assert np.array_equal(datasets.read_png(found["2007_000032"][".png"]), expected)


def test_sbd(tmp_path: Path) -> None:
    files, truth = datasets.sbd()
    root = datasets.write(tmp_path / "d", {f"dataset/{n}": data for n, data in files.items()})
    found = pack(root, "sbd", "train")
    assert labels_of(found) == as_lists(truth, "2008_000002", "2008_000007")
    assert found["2008_000002"][".jpg"] == files["img/2008_000002.jpg"]
    assert labels_of(pack(root, "sbd", "val")) == as_lists(truth, "2008_000003")


def test_siftflow_semantic_and_geometric(tmp_path: Path) -> None:
    files, semantic, geometric = datasets.siftflow()
    root = datasets.write(tmp_path / "d", files)
    ids = "highway_bost181", "street_urb506"
    found = pack(root, "siftflow", "trainval")
    assert labels_of(found) == as_lists(semantic, *ids)
    geo = pack(root, "siftflow-geo", "trainval")
    assert labels_of(geo) == {n: np.maximum(geometric[n], 0).tolist() for n in ids}
    # The dataset's own list has folders with backslashes and suffixes.
    assert labels_of(pack(root, "siftflow", "TestSet1")) == as_lists(semantic, "coast_natu975")
    # What the paper's code makes of them: minus one in 8 bits.
    for name in ids:
        assert np.array_equal(SIFTFLOW.encode(semantic[name]), semantic[name] - np.uint8(1))
        wrapped = (np.maximum(geometric[name], 0) - 1) % 256
        assert np.array_equal(SIFTFLOW_GEO.encode(geometric[name]), wrapped)


def test_nyudv2_folder_of_the_fcn_code(tmp_path: Path) -> None:
    files, truth = datasets.nyudv2_folder()
    found = pack(datasets.write(tmp_path / "d", files), "nyudv2", "test")
    assert labels_of(found, ".seg.png") == as_lists(truth, "img_5001", "img_5003")
    assert found["img_5001"][".png"] == files["data/images/img_5001.png"]


@pytest.mark.parametrize("mapping", ["classMapping40.mat", "labels40.mat"])
def test_nyudv2_as_one_matlab_file(tmp_path: Path, mapping: str) -> None:
    files, images, truth = datasets.nyudv2_file()
    if mapping == "labels40.mat":
        del files["classMapping40.mat"]
        files[mapping] = datasets.labels40(truth)
    root = datasets.write(tmp_path / "d", files)
    for split, ids in (("train", ("img_5002", "img_5004")), ("test", ("img_5001", "img_5003"))):
        found = pack(root, "nyudv2", split)
        assert labels_of(found, ".seg.png") == as_lists(truth, *ids)
        for name in ids:
            image = Image.open(io.BytesIO(found[name][".png"]))
            assert np.array_equal(np.asarray(image), images[name])


def test_lists_of_the_fcn_code_fit_the_matlab_file(tmp_path: Path) -> None:
    files, _, truth = datasets.nyudv2_file()
    files["val.txt"] = b"5002\n5003\n"
    root = datasets.write(tmp_path / "d", files)
    assert labels_of(pack(root, "nyudv2", "val"), ".seg.png") == as_lists(
        truth, "img_5002", "img_5003"
    )
    del files["splits.mat"]
    (root / "splits.mat").unlink()
    with pytest.raises(ConfigError, match=r"no list of ids 'test'; one of val\. .*splits\.mat"):
        pack(root, "nyudv2", "test")


def test_camvid_of_segnet(tmp_path: Path) -> None:
    files, truth = datasets.camvid_segnet()
    root = datasets.write(tmp_path / "d", {f"CamVid/{n}": data for n, data in files.items()})
    found = pack(root, "camvid", "train")
    assert labels_of(found, ".seg.png") == as_lists(truth, "0001TP_006690", "0001TP_006720")
    assert found["0001TP_006690"][".png"] == files["train/0001TP_006690.png"]
    listed = pack(root, "camvid", str(root / "CamVid/val.txt"))
    assert labels_of(listed, ".seg.png") == as_lists(truth, "0016E5_07959")


def test_camvid_as_first_published(tmp_path: Path) -> None:
    files, rgb = datasets.camvid_original()
    files["train.txt"] = datasets.camvid_segnet()[0]["train.txt"].splitlines(keepends=True)[0]
    root = datasets.write(tmp_path / "d", files)
    meaning = {
        (128, 128, 128): 0, (0, 128, 64): 1, (192, 64, 128): 8, (0, 0, 192): 4,
        (192, 0, 192): 10, (0, 0, 0): VOID,
    }  # fmt: skip
    expected = {
        name: [[meaning[tuple(pixel)] for pixel in row] for row in colours.tolist()]
        for name, colours in rgb.items()
    }
    assert labels_of(pack(root, "camvid", "all"), ".seg.png") == expected
    assert list(pack(root, "camvid", "train")) == ["0001TP_006690"]


def test_packed_labels_are_read_with_the_label_set_of_the_layout(tmp_path: Path) -> None:
    files, truth = datasets.nyudv2_folder()
    found = pack(datasets.write(tmp_path / "d", files), "nyudv2", "test")
    raw = datasets.read_png(found["img_5001"][".seg.png"])
    assert np.array_equal(LAYOUTS["nyudv2"].labels.encode(raw), truth["img_5001"] - np.uint8(1))
    sets = {name: layout.labels for name, layout in LAYOUTS.items()}
    assert sets == {
        "voc": VOC, "sbd": VOC, "nyudv2": NYUDV2, "siftflow": SIFTFLOW,
        "siftflow-geo": SIFTFLOW_GEO, "camvid": CAMVID,
    }  # fmt: skip


def test_palettes_show_each_value_in_the_colour_of_its_class(tmp_path: Path) -> None:
    files, truth = datasets.nyudv2_folder()
    found = pack(datasets.write(tmp_path / "d", files), "nyudv2", "test")
    shown = np.asarray(Image.open(io.BytesIO(found["img_5001"][".seg.png"])).convert("RGB"))
    for row, column in ((0, 0), (5, 7), (16, 22)):
        value = int(truth["img_5001"][row, column])
        expected = NYUDV2.palette[value - 1] if value else (224, 224, 192)
        assert tuple(shown[row, column]) == expected


def test_packing_from_and_into_any_store() -> None:
    source, output = Store("memory://layouts/sbd"), Store("memory://layouts/tars")
    for name, data in datasets.sbd()[0].items():
        source.write(name, data)
    first = pack_dataset("sbd", source, "train", output, 1)
    assert first == pack_dataset("sbd", source, "train", output, 1)
    assert [info.path for info in output.objects()] == ["shard-000000.tar", "shard-000001.tar"]


def test_the_matlab_file_is_read_through_any_store() -> None:
    source = Store("memory://layouts/nyud")
    for name, data in datasets.nyudv2_file()[0].items():
        source.write(name, data)
    assert pack_dataset("nyudv2", source, "test", Store("memory://layouts/nyud-out"), 9).images == 2


@pytest.mark.s3
def test_from_a_bucket_into_a_bucket(s3: str) -> None:
    source, output = Store(f"{s3}/nyud"), Store(f"{s3}/tars")
    files, images, _ = datasets.nyudv2_file()
    for name, data in files.items():
        source.write(name, data)
    assert pack_dataset("nyudv2", source, "test", output, 1).shards == 2
    with tarfile.open(fileobj=io.BytesIO(output.read("shard-000001.tar"))) as tar:
        image = Image.open(tar.extractfile("img_5003.png"))  # type: ignore[arg-type]
        assert np.array_equal(np.asarray(image), images["img_5003"])


# --- What is missing or damaged ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "make", "remove", "message"),
    [
        ("voc", datasets.voc, "JPEGImages/2007_000033.jpg",
         r"val\.txt: 1 of 3 ids without image JPEGImages/<id>\.jpg: 2007_000033; a file for every"),
        ("voc", datasets.voc, "SegmentationClass/2007_000033.png",
         r"1 of 3 ids without label SegmentationClass/<id>\.png: 2007_000033"),
        ("voc", datasets.voc, "ImageSets/Segmentation/val.txt",
         r"no list of ids 'val'; one of test, train\. Give --split .* seg11valid"),
        ("sbd", lambda: datasets.sbd()[0], "cls/2008_000003.mat", "1 of 1 ids without label cls/"),
        ("sbd", lambda: datasets.sbd()[0], "img/2008_000003.jpg", "1 of 1 ids without image img/"),
        ("camvid", lambda: datasets.camvid_segnet()[0], "valannot/0016E5_07959.png",
         "no list of ids 'val'; one of train"),
        ("siftflow", lambda: datasets.siftflow()[0], "trainval.txt",
         r"no list of ids 'val'; one of TestSet1, trainval\.|one of TestSet1\."),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)  # fmt: skip
def test_what_is_missing_is_named(
    tmp_path: Path, layout: str, make: Callable[[], datasets.Files], remove: str, message: str
) -> None:
    files = make()
    del files[remove]
    root = datasets.write(tmp_path / "d", files)
    output = Store(str(tmp_path / "o"))
    with pytest.raises((InputError, ConfigError), match=message):
        pack_dataset(layout, Store(str(root)), "val", output, 2)
    assert output.objects() == []


@pytest.mark.parametrize(("folder", "what"), [("train", "image"), ("trainannot", "label")])
def test_camvid_folders_that_do_not_match_are_refused(
    tmp_path: Path, folder: str, what: str
) -> None:
    files = datasets.camvid_segnet()[0]
    del files[f"{folder}/0001TP_006720.png"]
    with pytest.raises(InputError, match=f"1 of 2 ids without {what} .*: 0001TP_006720"):
        pack(datasets.write(tmp_path / "d", files), "camvid", "train")


def test_many_missing_ids_are_counted(tmp_path: Path) -> None:
    files = datasets.voc()
    files["ImageSets/Segmentation/val.txt"] = datasets.lines(*(f"x{n}" for n in range(10)))
    with pytest.raises(InputError, match=r"10 of 10 ids .*: x0, x1, x2 and 7 more"):
        pack(datasets.write(tmp_path / "d", files), "voc", "val")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_folder_is_no_dataset(tmp_path: Path, layout: str) -> None:
    root = datasets.write(tmp_path / "d", {"a.jpg": b"", "val.txt": b"a\n"})
    with pytest.raises(InputError, match="Check the address and the --layout"):
        pack(root, layout, "val")


def test_two_development_kits_are_not_mixed(tmp_path: Path) -> None:
    files = {f"VOC{year}/{n}": data for year in (2007, 2012) for n, data in datasets.voc().items()}
    with pytest.raises(InputError, match=r"2 datasets \(VOC2007/, VOC2012/\)"):
        pack(datasets.write(tmp_path / "d", files), "voc", "val")


SBD_TRUTH = datasets.sbd()[1]["2008_000003"]
DAMAGED = [
    ("sbd", "cls/2008_000003.mat", datasets.sbd()[0]["cls/2008_000003.mat"][:80], "not readable"),
    ("sbd", "cls/2008_000003.mat", b"<html>" * 60, "not readable"),
    ("sbd", "cls/2008_000003.mat", b"", "not readable"),
    ("sbd", "cls/2008_000003.mat", datasets.mat(S=np.zeros((2, 2))), "KeyError: 'GTcls'"),
    ("sbd", "cls/2008_000003.mat", b"MATLAB 7.3 MAT-file" + bytes(600), "save it with -v7"),
    ("sbd", "cls/2008_000003.mat",
     datasets.mat(GTcls={"Segmentation": np.full((2, 2), 21)}), "label value 21 in 4 pixels"),
    ("sbd", "cls/2008_000003.mat",
     datasets.mat(GTcls={"Segmentation": np.full((2, 2), 0.5)}), "expected integers"),
    ("sbd", "cls/2008_000003.mat",
     datasets.mat(GTcls={"Segmentation": np.full((2, 2), 256)}), "values from 256 to 256"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "name", "data", "message"), DAMAGED)
def test_a_damaged_label_is_named(
    tmp_path: Path, layout: str, name: str, data: bytes, message: str
) -> None:
    root = datasets.write(tmp_path / "d", {**datasets.sbd()[0], name: data})
    with pytest.raises(LabelError, match=message) as caught:
        pack(root, layout, "val")
    assert caught.value.where == str(root / name)


def test_damage_at_any_place_is_an_error_and_never_a_crash() -> None:
    whole = datasets.sbd()[0]["cls/2008_000003.mat"]  # compressed, as MATLAB writes by default
    for length in range(0, len(whole), 7):
        with pytest.raises(LabelError):
            read_sbd_label(whole[:length], "x.mat")
    random = np.random.default_rng(0)
    for _ in range(200):
        damaged = np.frombuffer(whole, np.uint8).copy()
        places = random.integers(0, len(whole), 3)
        damaged[places] ^= random.integers(1, 256, 3).astype(np.uint8)
        with contextlib.suppress(LabelError):  # in the text of the header it does no harm
            assert read_sbd_label(damaged.tobytes(), "x.mat").tolist() == SBD_TRUTH.tolist()


def test_a_damaged_matlab_73_file_is_named(tmp_path: Path) -> None:
    files = datasets.nyudv2_file()[0]
    whole = files["nyu_depth_v2_labeled.mat"]
    for number, data in enumerate((whole[:2000], b"", b"x" * 4000)):
        files["nyu_depth_v2_labeled.mat"] = data
        root = datasets.write(tmp_path / f"d{number}", files)
        with pytest.raises(LabelError, match=r"nyu_depth_v2_labeled\.mat: not readable"):
            pack(root, "nyudv2", "test")


def test_nyudv2_without_a_mapping_says_where_it_is(tmp_path: Path) -> None:
    files = datasets.nyudv2_file()[0]
    del files["classMapping40.mat"]
    with pytest.raises(InputError, match=r"894 classes; the 40 classes .* ankurhanda"):
        pack(datasets.write(tmp_path / "d", files), "nyudv2", "test")


@pytest.mark.parametrize("ids", [b"5005\n", b"1\n", b"one\n"])
def test_image_numbers_that_are_not_there_are_refused(tmp_path: Path, ids: bytes) -> None:
    files = {**datasets.nyudv2_file()[0], "mine.txt": ids}
    with pytest.raises(InputError, match=r"ids from 5001 to 5004|numbers from 5001 on"):
        pack(datasets.write(tmp_path / "d", files), "nyudv2", "mine")


def test_labels_of_another_number_of_images_are_refused(tmp_path: Path) -> None:
    files, _, truth = datasets.nyudv2_file()
    del files["classMapping40.mat"], truth["img_5004"]
    files["labels40.mat"] = datasets.labels40(truth)
    with pytest.raises(LabelError, match=r"labels40\.mat: .*shape \(17, 23, 3\).* of 4 images"):
        pack(datasets.write(tmp_path / "d", files), "nyudv2", "test")


@pytest.mark.parametrize("make", [datasets.nyudv2_folder, datasets.nyudv2_file])
def test_an_image_under_two_names_is_refused(
    tmp_path: Path, make: Callable[[], tuple[datasets.Files, ...]]
) -> None:
    root = datasets.write(tmp_path / "d", {**make()[0], "mine.txt": b"5001\nimg_5001\n"})
    with pytest.raises(InputError, match="ids more than once, the first is 'img_5001'"):
        pack(root, "nyudv2", "mine")


def test_an_unknown_colour_of_camvid_is_named(tmp_path: Path) -> None:
    files, rgb = datasets.camvid_original()
    rgb["0001TP_006690"][3, 4] = (1, 2, 3)
    name = "LabeledApproved_full/0001TP_006690_L.png"
    files[name] = world.png(rgb["0001TP_006690"])
    with pytest.raises(LabelError, match=r"color \(1, 2, 3\) in 1 pixels, .* row 3, column 4"):
        pack(datasets.write(tmp_path / "d", files), "camvid", "all")


def test_an_original_label_without_its_image_is_named(tmp_path: Path) -> None:
    files, _ = datasets.camvid_original()
    del files["701_StillsRaw_full/Seq05VD_f00000.png"]
    with pytest.raises(InputError, match=r"without image .*: Seq05VD_f00000"):
        pack(datasets.write(tmp_path / "d", files), "camvid", "all")


def test_a_missing_package_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = datasets.write(tmp_path / "d", datasets.nyudv2_file()[0])
    monkeypatch.setitem(sys.modules, "h5py", None)  # what an absent one looks like
    with pytest.raises(MissingPackageError, match=r"h5py: .*pip install 'fcn-pipeline\[matlab\]'"):
        pack(root, "nyudv2", "train")


# --- The command ---------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, fcnseg: Fcnseg) -> None:
    root = datasets.write(tmp_path / "d", datasets.voc())
    code, out, _ = fcnseg("shard", root, tmp_path / "o", "--layout", "voc", "--split", "val")
    assert (code, out) == (0, "1 shard, 3 images, 3 labeled, 0 left out\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layout", "coco", "--split", "val"), "'coco'; one of voc, sbd, nyudv2"),
        (("--split", "val"), "--split: 'val' without --layout"),
        (("--layout", "voc", "--labels", "x"), "'x' together with --layout voc"),
        (("--layout", "voc"), "no --split; one of test, train, val"),
        (("--layout", "voc", "--split", "nowhere/ids.txt"), "no such file"),
    ],
)
def test_wrong_options_are_refused(
    tmp_path: Path, fcnseg: Fcnseg, arguments: tuple[str, ...], message: str
) -> None:
    root = datasets.write(tmp_path / "d", datasets.voc())
    code, _, err = fcnseg("shard", root, tmp_path / "o", *arguments)
    assert code == 2 and message in err
    assert not (tmp_path / "o").exists()
