"""The Ray executor leaves what the local one leaves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.run import run
from pipeline.store import Store
from pipeline.verify import verify
from tests import world

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One embedded Ray for all tests of this module; `run` uses what is there."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=150 * 2**20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def test_local_and_ray_leave_equal_trees(
    cluster: None, shards: Path, weights: Path, tmp_path: Path
) -> None:
    bad = {**world.samples(1), "bad.jpg": b"x", "odd name+%.jpg": world.jpeg(world.picture(3))}
    (shards / "s1.tar").write_bytes(world.tar(bad))
    (shards / "cut.tar").write_bytes(world.tar(world.samples(5))[:3000])
    flags = {"limits__chunk_images": 3}
    results = [
        run(world.config(shards, tmp_path / name, weights, compute__executor=name, **flags))
        for name in ("local", "ray")
    ]
    assert [result.exit_code for result in results] == [4, 4]
    assert results[0].failed == results[1].failed
    assert world.tree(tmp_path / "local") == world.tree(tmp_path / "ray")
    assert verify(Store(str(tmp_path / "ray")), deep=True).problems == ()


def test_folder_with_labels_gives_equal_trees(cluster: None, weights: Path, tmp_path: Path) -> None:
    for index in range(7):
        size = world.SIZES[index % 4]
        for top, data in (
            ("images", world.jpeg(world.picture(index, size))),
            ("labels", world.png(world.label(index, size))),
        ):
            (tmp_path / "in" / top).mkdir(parents=True, exist_ok=True)
            suffix = "jpg" if top == "images" else "png"
            (tmp_path / f"in/{top}/k{index}.{suffix}").write_bytes(data)
    for name in ("local", "ray"):
        flags = {"compute__executor": name, "input__shard_size": 3}
        assert run(world.config(tmp_path / "in", tmp_path / name, weights, **flags)).images == 7
    assert world.tree(tmp_path / "local") == world.tree(tmp_path / "ray")


def test_failing_store_is_named_and_a_rerun_finishes(
    cluster: None, shards: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "masks").write_text("a file where a folder should be")
    config = world.config(shards, out, weights, compute__executor="ray")
    with pytest.raises(StoreError, match="masks/s"):
        run(config)
    (out / "masks").unlink()
    assert run(config).exit_code == 0


def test_nothing_pending_does_not_start_ray(shards: Path, weights: Path, tmp_path: Path) -> None:
    import subprocess

    config = world.config(shards, tmp_path / "out", weights)
    run(config)
    script = (
        "import sys\nfrom pipeline.config import RunConfig\nfrom pipeline.run import run\n"
        "config = RunConfig.model_validate_json(sys.argv[1])\n"
        "assert run(config).done_now == 0\n"
        "assert not {'ray', 'torch'} & set(sys.modules)\n"
    )
    tree = config.model_dump()
    tree["compute"]["executor"] = "ray"
    text = type(config).model_validate(tree).model_dump_json()
    subprocess.run([sys.executable, "-c", script, text], check=True)
