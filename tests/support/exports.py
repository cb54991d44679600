"""Helpers for the tests of exports: an output, exports of it, and simple decoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fcn_core.images import decode_label
from pipeline.driver import run
from pipeline.export.export import Exported
from pipeline.export.export import export as export_output
from pipeline.export.format import ExportOptions
from pipeline.manifest import read_manifest
from pipeline.output.quarantine import retry_config
from pipeline.storage.store import Store
from tests.support import world

Masks = dict[tuple[str, str], np.ndarray]


def make_output(root: Path, weights: Path) -> Path:
    """Segment three tars of two chunks; one image of the second tar is bad and quarantined."""
    world.write_shards(root / "in")
    members = world.samples(1)
    members["img1.jpg"] = b"not an image"
    (root / "in/s1.tar").write_bytes(world.tar(members))
    run(world.config(root / "in", root / "out", weights, limits__chunk_images=3))
    return root / "out"


def masks_of(output: Path) -> Masks:
    """Return every mask by (shard, key), from the PNGs of the run."""
    return {
        (path.parent.name, path.stem): decode_label(path.read_bytes(), "x").astype(np.uint8)
        for path in (output / "png").rglob("*.png")
    }


def image_bytes(shard: str, key: str) -> bytes:
    return world.samples(int(shard[1:]))[f"{key}.jpg"]


def export(output: Path, dest: Path | str, form: str, **choices: Any) -> Exported:
    store = Store(str(output))
    config = retry_config(store, read_manifest(store), None, [], {})
    return export_output(store, Store(str(dest)), ExportOptions(form, **choices), config)


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "_export.json"
    }


def obvious_box(pixels: np.ndarray) -> list[int]:
    ys, xs = np.nonzero(pixels)
    return [min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1]


def obvious_brush(rle: bytes) -> np.ndarray:
    """Decode like @thi.ng/rle-pack, bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    at = 0

    def take(size: int) -> int:
        nonlocal at
        at += size
        return int(bits[at - size : at], 2)

    count, size = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < count:
        is_run, length = take(1), take(sizes[take(2)]) + 1
        out += [take(size)] * length if is_run else [take(size) for _ in range(length)]
    return np.array(out, np.uint8)


def obvious_cvat(text: str, shape: tuple[int, int]) -> np.ndarray:
    """Draw the mask of these XML attributes on an empty canvas."""
    fields = dict(part.split('="') for part in text.rstrip('"').split('" '))
    left, top, width, height = (int(fields[n]) for n in ("left", "top", "width", "height"))
    flat: list[bool] = []
    for index, run_length in enumerate(fields["rle"].split(", ")):
        flat += [index % 2 == 1] * int(run_length)
    canvas = np.zeros(shape, bool)
    canvas[top : top + height, left : left + width] = np.reshape(flat, (height, width))
    return canvas
