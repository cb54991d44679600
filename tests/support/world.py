"""A tiny seeded world: images, labels, shards, weights and runs, in a temporary place."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fcn_core.labels import LabelSet
from fcn_core.preprocessing import CENTRED_RGB
from fcn_core.weights.weights_file import save_weights
from fcn_core.weights.weights_info import WeightsInfo
from pipeline.config import RunConfig, load_config
from pipeline.formats import add_to_tar
from pipeline.inputs.shard import ChunkLimits
from pipeline.manifest import Manifest
from pipeline.stages.spec import RunSpec
from pipeline.storage.store import Store

TINY = LabelSet("tiny", ("ground", "thing", "stuff"))
SIZES = ((17, 23), (23, 17), (9, 31), (17, 23))


def image(seed: int, size: tuple[int, int] = SIZES[0]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def label(seed: int, size: tuple[int, int] = SIZES[0]) -> np.ndarray:
    values = np.random.default_rng(seed + 1000).integers(0, 3, size).astype(np.uint8)
    values[0] = 255
    return values


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def tar(members: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> bytes:
    items = members.items() if isinstance(members, Mapping) else members
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in items:
            add_to_tar(archive, name, data)
    return buffer.getvalue()


def samples(shard: int, images: int = 4) -> dict[str, bytes]:
    """Members of one shard: a JPEG and its label per key."""
    members = {}
    for index in range(images):
        seed, size = shard * 100 + index, SIZES[index % len(SIZES)]
        members[f"img{index}.jpg"] = jpeg(image(seed, size))
        members[f"img{index}.png"] = png(label(seed, size))
    return members


def write_shards(root: Path, shards: int = 3, images: int = 4) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        (root / f"s{shard}.tar").write_bytes(tar(samples(shard, images)))
    return root


def weights_bytes(model: Any, labels: LabelSet = TINY) -> bytes:
    info = WeightsInfo(model.architecture, labels, CENTRED_RGB, {"from": "a test"})
    return save_weights(model, info)


def config(
    source: Path | str, output: Path | str, weights: Path | str | None, **flags: Any
) -> RunConfig:
    """A run on one CPU thread; flags are dotted names with __ for the dot."""
    dotted = {name.replace("__", "."): value for name, value in flags.items()}
    base = {
        "input.url": str(source),
        "output.url": str(output),
        "model.weights": None if weights is None else str(weights),
        "output.masks": ("parquet", "png", "tar"),
        "compute.executor": "local",
        "compute.workers": 1,
        "compute.threads_per_worker": 1,
    }
    return load_config(None, [], {**base, **dotted})


def spec(images: Store | None = None, output: Store | None = None, **changes: Any) -> RunSpec:
    """Settings of a run that no configuration file and no weights stand behind.

    Args:
        images, output: stores; in memory where None is given.
        changes: other fields of the spec; dotted names with __ for the dot go to the configuration.
    """
    images = images or Store("memory://no-input")
    output = output or Store("memory://no-output")
    flags = {name: changes.pop(name) for name in list(changes) if "__" in name}
    made = config(images.url, output.url, None, **flags)
    limits = ChunkLimits(made.limits.chunk_images, made.limits.chunk_bytes)
    fields = {
        "config": made,
        "images": images,
        "label_folder": None,
        "output": output,
        "fingerprint": "f00d",
        "labels": TINY,
        "manifest": Manifest(images.url, limits, TINY, {}),
        "masks": made.output.masks,
    }
    return RunSpec(**{**fields, **changes})


def tree(output: Path | str) -> dict[str, Any]:
    """What must be equal between two runs on equal inputs (the contract's "equal trees")."""
    store = Store(str(output))
    found: dict[str, Any] = {}
    for info in store.objects():
        top = info.path.split("/")[0]
        if top in ("masks", "png", "tar", "confidence", "_quarantine", "_previews"):
            found[info.path] = store.read(info.path)
        elif info.path == "stats/scores.json":
            found[info.path] = store.read(info.path)
        elif info.path == "stats/shards.parquet":
            rows = pq.read_table(pa.BufferReader(store.read(info.path))).to_pylist()
            varying = ("seconds", "commit_etag", "input_etag", "run")
            found[info.path] = [{k: v for k, v in r.items() if k not in varying} for r in rows]
        elif top == "_commits":
            commit = json.loads(store.read(info.path))
            for name in ("commit_id", "seconds", "run"):
                commit.pop(name)
            commit["input"].pop("etag")
            found[info.path] = commit
    return found
