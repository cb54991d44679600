"""The table of mask formats: one entry is all that a format needs."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from fcn_core.images import decode_label, encode_mask
from fcn_core.metrics import ConfusionMatrix
from pipeline.config import MaskFormatName
from pipeline.stages.mask_formats import MASK_FORMATS, format_of
from pipeline.stages.records import ImageResult, SegmentedChunk
from tests.support import world


def chunk(seq: int = 0, count: int = 1) -> SegmentedChunk:
    images = tuple(
        ImageResult(
            key=key,
            mask=np.where(world.label(seed) == 255, 0, world.label(seed)),
            mean_confidence=0.5,
            class_pixels=(1, 2, 3),
            confidence=world.label(seed),
        )
        for seed, key in enumerate(("a", "b/c.d"))
    )
    return SegmentedChunk("x/s", seq, count, images, (), (), ConfusionMatrix(3), {})


def test_the_configuration_names_the_formats_of_the_table() -> None:
    assert get_args(MaskFormatName) == tuple(MASK_FORMATS)


@pytest.mark.parametrize("name", MASK_FORMATS)
def test_what_is_encoded_is_decoded(name: str) -> None:
    kind, segmented = MASK_FORMATS[name], chunk()
    pngs = [encode_mask(result.mask, world.TINY.palette) for result in segmented.images]
    found = []
    for path, data in kind.objects(segmented, pngs, world.TINY):
        assert format_of(path) is kind
        for stored in kind.decode(path, data):
            keys = kind.keys("x/s", [path]) if kind.is_per_image else [stored.key]
            found.append((keys[0], decode_label(stored.png, path).tolist()))
    values = [result.mask if kind.has_classes else result.confidence for result in segmented.images]
    expected = zip(("a", "b/c.d"), values, strict=True)
    assert found == [(key, value.tolist()) for key, value in expected if value is not None]


@pytest.mark.parametrize("name", MASK_FORMATS)
def test_paths_of_chunks_and_images_are_different(name: str) -> None:
    kind = MASK_FORMATS[name]
    parts = [chunk(seq, 3) for seq in range(3)]
    if kind.is_per_image:
        paths = [kind.image_path("x/s", result.key) for result in parts[0].images]
    else:
        paths = [kind.chunk_path(part.shard, part.seq, part.count) for part in parts]
    assert len(set(paths)) == len(paths) and all(map(kind.has_path, paths))
    others = [other for other in MASK_FORMATS.values() if other is not kind]
    assert not any(other.has_path(path) for other in others for path in paths)


@pytest.mark.parametrize(
    "path", ["masks/.parquet", "masks/a.png", "stats/shards.parquet", "png/", "_run.json", "masks"]
)
def test_other_objects_have_no_format(path: str) -> None:
    assert format_of(path) is None
