"""Laws of failed: everything quarantined is listed, a retry does those shards and nothing else."""

from __future__ import annotations

import ast
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.concurrency import map_ordered
from pipeline.driver import plan, run
from pipeline.errors import OutputError
from pipeline.manifest import absolute, anywhere, read_manifest, saved_config
from pipeline.monitoring.progress import Progress
from pipeline.output.quarantine import (
    find_retry_list,
    quarantined,
    read_retry_list,
    retry_config,
    write_retry_list,
)
from pipeline.output.status import read_status
from pipeline.paths import commit_path, quarantine_path
from pipeline.storage.store import Store
from tests.support import world

LENIENT = {"limits__max_bad_fraction_per_shard": 1.0, "limits__max_bad_fraction": 1.0}
SMALL = 300
"""Pixels: of the world's images only those of 9x31 pass."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards: s0 whole, s1 with an image that decodes to nothing, s2 no tar."""
    root = tmp_path_factory.mktemp("failed")
    shards = world.write_shards(root / "in", images=2)
    bad = {**world.samples(1, 2), "x/bad\t1.jpg": b"no image", "~.jpg": b""}
    (shards / "s1.tar").write_bytes(world.tar({**bad, "b [red]é.jpg": b"no image either"}))
    (shards / "s2.tar").write_bytes(b"no tar")
    return shards


@pytest.fixture
def output(place: Path, tmp_path: Path, weights: Path) -> Store:
    config = world.config(place, tmp_path / "out", weights, **LENIENT)
    assert run(config).exit_code == 4
    return Store(str(tmp_path / "out"))


def test_every_quarantined_image_is_listed_with_its_shard(output: Store) -> None:
    found = list(quarantined(output, read_status(output)))
    assert [(f.shard, f.key, f.error) for f in found] == [
        ("s1", "b [red]é", "ImageError"),
        ("s1", "x/bad\t1", "SampleError"),
        ("s1", "~", "ImageError"),
    ]
    assert all("s1.tar#" in f.location and f.reason for f in found)


def test_the_command_lists_images_and_failed_shards(output: Store, fcnseg) -> None:
    code, stdout, stderr = fcnseg("failed", output.url)
    lines = stdout.splitlines()
    assert code == 0 and lines[0].split("\t") == ["shard", "key", "error", "reason", "location"]
    assert [line.split("\t")[1] for line in lines[1:4]] == ["b [red]é", "x/bad\\t1", "~"]
    shard, key, error, reason, location = lines[4].split("\t")
    assert (shard, key, error, location) == ("s2", "", "", "") and "s2.tar" in reason
    assert len(lines) == 5
    assert stderr == ("3 images quarantined, 1 shard failed, whose bad images are listed too\n")
    code, stdout, stderr = fcnseg("failed", output.url, "--limit", 2)
    assert len(stdout.splitlines()) == 4 and "the first 2 are listed" in stderr
    code, stdout, _ = fcnseg("failed", output.url, "--json", "--limit", 1)
    document = json.loads(stdout)
    assert (document["quarantined"], list(document["failed_shards"])) == (3, ["s2"])
    assert [image["key"] for image in document["images"]] == ["b [red]é"]


def test_a_failure_is_one_line_whatever_its_key_is(
    tmp_path: Path, weights: Path, fcnseg: Callable[..., tuple[int, str, str]]
) -> None:
    keys = ["a\nb", "a\tb", "a\\b", "a\r\fb", "a\x85b\u2028b", "plain"]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/s.tar").write_bytes(
        world.tar({**world.samples(1, 1), **{f"{key}.jpg": b"" for key in keys}})
    )
    run(world.config(tmp_path / "in", tmp_path / "out", weights, **LENIENT))
    _, stdout, _ = fcnseg("failed", tmp_path / "out")
    rows = [line.split("\t") for line in stdout.splitlines()]
    assert {len(row) for row in rows} == {5} and len(rows) == 1 + len(keys)
    assert sorted(ast.literal_eval(f"'{row[1]}'") for row in rows[1:]) == sorted(keys)


def test_a_quarantine_table_that_is_gone_is_told(output: Store) -> None:
    output.delete(quarantine_path("s1"))
    with pytest.raises(OutputError, match=r"_quarantine/s1.parquet: nothing there"):
        list(quarantined(output, read_status(output)))


def test_a_retry_does_what_can_be_done_now(
    output: Store, place: Path, tmp_path: Path, weights: Path, fcnseg, monkeypatch
) -> None:
    """Fixed shards are segmented, still-bad images are quarantined again, the rest is not read."""
    before = {path: output.stat(path).etag for path in (commit_path("s0"), "masks/s0.parquet")}
    fixed = tmp_path / "in"
    fixed.mkdir()
    for shard in place.iterdir():
        shutil.copy2(shard, fixed)
    document = json.loads(output.read("_run.json"))
    document["input"] = document["config"]["input"]["url"] = str(fixed)
    output.write("_run.json", json.dumps(document).encode())
    members = {**world.samples(1, 2), "~.jpg": b"", "x/bad\t1.jpg": b"", "b [red]é.jpg": b"no"}
    (fixed / "s1.tar").write_bytes(world.tar({**members, "new.jpg": world.samples(9)["img0.jpg"]}))
    (fixed / "s2.tar").write_bytes(world.tar(world.samples(2, 2)))
    (fixed / "s3.tar").write_bytes(world.tar(world.samples(3, 2)))  # pending, but no failure
    monkeypatch.chdir(fixed)
    code, stdout, _ = fcnseg("failed", output.url, "--retry", "--json")
    assert code == 3
    result = json.loads(stdout)
    assert (result["shards_done_now"], result["shards_committed"]) == (2, 3)
    assert [f.key for f in quarantined(output, read_status(output))] == [
        "b [red]é", "x/bad\t1", "~"
    ]  # fmt: skip
    assert {path: output.stat(path).etag for path in before} == before
    assert read_retry_list(output) == {}
    assert result["images"] == 2 + 3 + 2


def changed(place: Path, output: Store, weights: Path, pixels: int) -> object:
    return world.config(
        place,
        output.url,
        weights,
        limits__max_image_pixels=pixels,
        limits__chunk_images=1,
        **LENIENT,
    )


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_shards(tmp_path_factory.mktemp("good"), shards=2, images=3)


@pytest.mark.parametrize("seen", [1, 3, 5])
def test_a_retry_that_is_stopped_is_finished_by_the_next_run(
    good: Path, tmp_path: Path, weights: Path, seen: int
) -> None:
    """Its objects are new and its commits old: such a shard must not count as done."""
    output, undisturbed = Store(str(tmp_path / "out")), Store(str(tmp_path / "all"))
    assert run(changed(good, output, weights, SMALL)).failures == 4
    config = changed(good, output, weights, 10**6)
    count = 0

    def stop(_: Progress) -> None:
        nonlocal count
        count += 1
        assert output.read(commit_path("s0")) and output.read(commit_path("s1"))
        if count > seen:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, stop, find_retry_list(read_status(output)))
    old = read_retry_list(output)
    assert set(old) == {"s0", "s1"}
    left = [shard for shard, tag in old.items() if output.stat(commit_path(shard)).etag == tag]
    assert len(left) == 2 if seen < 3 else 1 <= len(left) <= 2
    assert [shard.id for shard in plan(config).pending] == left
    assert run(config).done_now == len(left)
    assert read_retry_list(output) == {} and run(config).done_now == 0
    assert run(changed(good, undisturbed, weights, 10**6)).exit_code == 0
    assert world.tree(tmp_path / "out") == world.tree(tmp_path / "all")


def test_what_a_retry_cannot_read_keeps_its_commit_and_stays_pending(
    output: Store, place: Path, tmp_path: Path
) -> None:
    commit = output.read(commit_path("s1"))
    there = place / "s1.tar"
    data = there.read_bytes()
    there.write_bytes(b"no tar either")
    try:
        config = retry_config(output, read_manifest(output), None, [], {})
        result = run(config, retry_list=find_retry_list(read_status(output)))
        assert [failure.shard for failure in result.failed] == ["s1", "s2"]
        assert output.read(commit_path("s1")) == commit
        assert set(read_retry_list(output)) == {"s1"} and result.committed == 1
    finally:
        there.write_bytes(data)


def test_the_configuration_is_kept_without_working_directory_and_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = world.config("in", "s3://b/out", "sftp://me:secret@host/w", input__limit_shards=3)
    kept = saved_config(config)
    assert kept["input"] == {"url": str(tmp_path / "in")}
    assert kept["model"] == {"weights": "sftp://me@host/w"}
    assert "secret" not in json.dumps(kept)
    assert saved_config(world.config("in", "o", "demo"))["model"] == {"weights": "demo"}
    signed = "https://me:secret@host/w?X-Amz-Signature=abc"  # a worker elsewhere needs all of it
    assert absolute(signed) == signed and absolute("w") == str(tmp_path / "w")
    assert not {"secret", "abc"} & set(re.split(r"\W", anywhere(signed)))
    (tmp_path / "ca.pem").touch()
    kept = saved_config(world.config("in", "o", "demo", output__store={"ca_bundle": "ca.pem"}))
    assert kept["output"]["store"] == {"ca_bundle": str(tmp_path / "ca.pem")}


def test_the_latest_configuration_is_kept(output: Store, place: Path, weights: Path) -> None:
    config = world.config(place, output.url, weights, limits__max_bad_fraction_per_shard=0.9)
    run(config)
    kept = retry_config(output, read_manifest(output), None, [], {})
    assert kept == config
    given = retry_config(
        output, read_manifest(output), "compute: {workers: 3}", ["limits.max_bad_fraction=0.5"],
        {"model.weights": "demo"},
    )  # fmt: skip
    assert (given.compute.workers, given.limits.max_bad_fraction) == (3, 0.5)
    assert given.compute.threads_per_worker == 1 and given.model.weights == "demo"


def test_an_output_without_a_configuration_says_what_to_add(
    output: Store, place: Path, weights: Path, fcnseg
) -> None:
    document = json.loads(output.read("_run.json"))
    del document["config"]
    output.write("_run.json", json.dumps(document).encode())
    code, _, stderr = fcnseg("failed", output.url, "--retry")
    assert code == 2 and "no configuration" in stderr and "--weights W" in stderr
    identity = read_manifest(output)
    config = retry_config(output, identity, None, [], {"model.weights": str(weights)})
    assert config.input.url == str(place)
    assert run(config, retry_list=find_retry_list(read_status(output))).exit_code == 4


def test_a_record_of_retries_that_is_damaged_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    write_retry_list(store, {"a": "1"})
    assert read_retry_list(store) == {"a": "1"}
    store.write("_retry.json", b"[]")
    with pytest.raises(OutputError, match=r"_retry.json: unreadable"):
        read_retry_list(store)


def test_an_empty_shard_is_committed_with_a_warning(
    tmp_path: Path, weights: Path, fcnseg, good: Path
) -> None:
    world.write_shards(tmp_path / "in", shards=1, images=1)
    (tmp_path / "in/none.tar").write_bytes(world.tar({"readme.txt": b""}))
    flags = ("--weights", weights, "--set", "compute.threads_per_worker=1")
    code, stdout, stderr = fcnseg("run", tmp_path / "in", tmp_path / "out", *flags)
    assert code == 0 and "2 of 2 in all" in stdout
    assert "warning: no images in 1: none" in stderr
    assert "warning" not in fcnseg("run", tmp_path / "in", tmp_path / "out", *flags)[2]


def test_ordered_results_with_few_items_in_flight() -> None:
    taken = 0
    lock = threading.Lock()

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(100):
            with lock:
                taken += 1
            yield item

    for count, result in enumerate(map_ordered(lambda n: n * n, items(), 3)):
        assert result == count**2 and taken <= count + 6
    with pytest.raises(ZeroDivisionError):
        list(map_ordered(lambda n: 1 // n, [1, 0], 2))
