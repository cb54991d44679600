"""The plain forward pass can be asked for, and an output does not mind which one made it."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fcn_core.inference.forward import FastForward
from fcn_core.weights.weights_file import read_weights
from pipeline.driver import run
from pipeline.resolve import resolve_run
from pipeline.stages.segment import Segmenter
from pipeline.workers.segmenter import IsolatedSegmenter
from pipeline.workers.shared_weights import SharedWeights
from tests.support import world


@pytest.mark.parametrize("plain", [False, True])
def test_the_setting_reaches_the_network(
    shards: Path, weights: Path, tmp_path: Path, plain: bool
) -> None:
    config = world.config(shards, tmp_path / "out", weights, compute__plain_forward=plain)
    spec, file = resolve_run(config)
    isolated = IsolatedSegmenter(spec, SharedWeights(file), 2**30)
    predictor = Segmenter(isolated.worker.settings, read_weights(weights)).predictor
    assert isinstance(predictor.logits, FastForward) is not plain


def test_an_output_is_resumed_with_the_other_pass(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    flags = {"output__masks": ("parquet",)}
    mixed, fast = tmp_path / "mixed", tmp_path / "fast"
    first = world.config(
        shards, mixed, weights, compute__plain_forward=True, input__limit_shards=1, **flags
    )
    assert run(first).done_now == 1
    assert run(world.config(shards, mixed, weights, **flags)).exit_code == 0
    assert run(world.config(shards, fast, weights, **flags)).exit_code == 0
    for path in sorted((fast / "masks").iterdir()):
        rows = [pq.read_table(out / "masks" / path.name).to_pylist() for out in (fast, mixed)]
        for one, other in zip(*rows, strict=True):
            masks = [np.asarray(Image.open(BytesIO(row["mask"]["bytes"]))) for row in (one, other)]
            assert np.mean(masks[0] == masks[1]) > 0.999
            assert one["mean_confidence"] == pytest.approx(other["mean_confidence"], abs=1e-5)
