"""The masks open in other people's libraries, as the images they are."""

from __future__ import annotations

import gc
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from fcn_core.images import decode_label
from fcn_core.labels import voc_palette
from pipeline.driver import run
from tests.support import world


@pytest.fixture(scope="module")
def output(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards, the second without labels, in all three forms."""
    root = tmp_path_factory.mktemp("elsewhere")
    shards = world.write_shards(root / "in")
    bare = {name: data for name, data in world.samples(1).items() if name.endswith(".jpg")}
    (shards / "s1.tar").write_bytes(world.tar(bare))
    assert run(world.config(shards, root / "out", weights)).exit_code == 0
    return root / "out"


@pytest.fixture(scope="module")
def rows(output: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The mask tables as a data set of the datasets library."""
    home = tmp_path_factory.mktemp("hf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(home))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        import datasets

        files = str(output / "masks/*.parquet")
        yield datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(home))


def written(output: Path, shard: str, key: str) -> np.ndarray:
    return decode_label((output / f"png/{shard}/{key}.png").read_bytes())


def test_datasets_yields_palette_images_with_the_right_values(rows: Any, output: Path) -> None:
    assert len(rows) == 12
    seen = set()
    for row in rows:
        mask = row["mask"]
        assert isinstance(mask, Image.Image) and mask.mode == "P"
        assert mask.size == (row["width"], row["height"])
        assert np.array_equal(np.asarray(mask), written(output, row["shard"], row["key"]))
        seen.add((row["shard"], row["key"]))
    assert seen == {(f"s{s}", f"img{k}") for s in range(3) for k in range(4)}


def test_datasets_yields_the_colours_of_the_classes(rows: Any) -> None:
    palette = np.array(voc_palette())
    for row in rows:
        colours = np.asarray(row["mask"].convert("RGB"))
        assert np.array_equal(colours, palette[np.asarray(row["mask"])])


def test_datasets_knows_the_type_of_every_column(rows: Any) -> None:
    kinds = {name: type(kind).__name__ for name, kind in rows.features.items()}
    assert kinds.pop("mask") == "Image"
    assert kinds == {
        "key": "Value", "shard": "Value", "height": "Value", "width": "Value",
        "class_pixels": "List", "mean_confidence": "Value", "correct_pixels": "Value",
        "labeled_pixels": "Value", "iou": "List",
    }  # fmt: skip


def test_datasets_yields_null_where_there_was_no_label(rows: Any) -> None:
    for row in rows:
        nulls = {row["correct_pixels"] is None, row["labeled_pixels"] is None, row["iou"] is None}
        assert nulls == {row["shard"] == "s1"}
        assert sum(row["class_pixels"]) == row["height"] * row["width"]


def test_datasets_streams_the_same_rows(rows: Any, output: Path) -> None:
    import datasets

    files = str(output / "masks/*.parquet")
    stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    for one, other in zip(stream, rows, strict=True):
        assert np.array_equal(np.asarray(one.pop("mask")), np.asarray(other["mask"]))
        assert one == {name: value for name, value in other.items() if name != "mask"}


def test_the_mask_table_names_the_classes(output: Path) -> None:
    metadata = pq.read_schema(output / "masks/s0.parquet").metadata
    assert json.loads(metadata[b"classes"]) == list(world.TINY.classes)


def test_a_folder_of_mask_tables_is_one_data_set(output: Path) -> None:
    found = ds.dataset(output, format="parquet", exclude_invalid_files=True)
    names = {Path(name).relative_to(output).parts[0] for name in found.files}
    assert names == {"masks", "stats", "review"}  # what begins with _ is not looked at
    assert ds.dataset(output / "masks").count_rows() == 12


def from_webdataset(path: Path, *decode: Callable[[str, bytes], Any]) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        # The library leaves its files to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        pipeline = webdataset.WebDataset(str(path), shardshuffle=False)
        found = list(pipeline.decode(*decode) if decode else pipeline)
        del pipeline
        gc.collect()
    return found


def test_webdataset_reads_the_tars_back(output: Path) -> None:
    for n in range(3):
        found = from_webdataset(output / f"tar/s{n}.tar")
        assert [sample["__key__"] for sample in found] == [f"img{k}" for k in range(4)]
        for sample in found:
            assert sample["png"] == (output / f"png/s{n}/{sample['__key__']}.png").read_bytes()


def test_webdataset_decodes_them_to_palette_images(output: Path) -> None:
    def decode(name: str, data: bytes) -> Image.Image | None:
        return Image.open(io.BytesIO(data)) if name.endswith("png") else None

    for sample in from_webdataset(output / "tar/s0.tar", decode):
        assert sample["png"].mode == "P"
        assert np.array_equal(np.asarray(sample["png"]), written(output, "s0", sample["__key__"]))


def test_pillow_shows_every_png(output: Path) -> None:
    images = sorted(output.glob("png/**/*.png"))
    assert len(images) == 12
    for path in images:
        with Image.open(path) as image:
            assert image.mode == "P" and set(np.unique(image)) <= {0, 1, 2}
