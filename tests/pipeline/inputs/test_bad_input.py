"""Bad input: a clear message, the right exit code, the rest of the work done, nothing harmed."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fcn_core.images import decode_label
from fcn_core.networks.model import FCN
from pipeline.config import RunConfig
from pipeline.driver import run
from pipeline.errors import ConfigError
from pipeline.formats import add_to_tar
from pipeline.storage.store import Store
from tests.support import networks, world

Fcnseg = Callable[..., tuple[int, str, str]]


def quarantine(output: Path, shard: str = "s0") -> list[dict[str, str]]:
    return pq.ParquetFile(output / f"_quarantine/{shard}.parquet").read().to_pylist()


GOOD = world.jpeg(world.image(5))
BAD_SAMPLES = {
    "truncated JPEG": ({"x.jpg": GOOD[: len(GOOD) * 7 // 8]}, "ImageError", "do not decode"),
    "zero bytes": ({"x.jpg": b""}, "ImageError", "0 bytes"),
    "not an image": ({"x.jpg": b"<html>moved</html>"}, "ImageError", "JPEG, PNG or WebP"),
    "label of another size": (
        {"x.jpg": GOOD, "x.png": world.png(world.label(5, (18, 23)))},
        "LabelError",
        "label is 23x18, image is 23x17; labels must match the image size",
    ),
    "label out of range": (
        {"x.jpg": GOOD, "x.png": world.png(np.full((17, 23), 7, np.uint8))},
        "LabelError",
        "label value 7 in 391 pixels",
    ),
    "label in colours": (
        {"x.jpg": GOOD, "x.png": world.png(world.image(5))},
        "LabelError",
        "class indices",
    ),
    "unreadable label": ({"x.jpg": GOOD, "x.png": b"\x89PNG"}, "ImageError", "4 bytes"),
    "key with ..": ({"../x.jpg": GOOD}, "SampleError", "'..'"),
    "absolute key": ({"/x.jpg": GOOD}, "SampleError", "absolute"),
    "label without image": (
        {"x.seg.png": world.png(world.label(5))}, "SampleError", "a label without an image",
    ),
    "two labels": (
        {"x.jpg": GOOD, "x.png": world.png(world.label(5)), "x.seg.png": world.png(world.label(5))},
        "SampleError", "2 labels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_bad_sample_is_quarantined_with_its_reason_and_the_rest_goes_on(
    shards: Path, weights: Path, tmp_path: Path, name: str, fcnseg: Fcnseg
) -> None:
    members, error, reason = BAD_SAMPLES[name]
    (shards / "s0.tar").write_bytes(world.tar({**world.samples(0), **members}))
    out = tmp_path / "out"
    code, _, _ = fcnseg("run", shards, out, "--weights", weights, "--masks", "png")
    assert code == 3
    assert len(list((out / "png").rglob("*.png"))) == 12
    (row,) = quarantine(out)
    assert row["error"] == error and reason in row["reason"]
    assert "s0.tar#" in row["location"]
    assert json.loads((out / "_commits/s0.json").read_text())["failures"] == 1
    assert (out / "_SUCCESS").exists()
    assert not list(tmp_path.rglob("x.png"))


def test_duplicate_key_keeps_the_first_and_quarantines_the_second(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    calm = tmp_path / "calm"
    fcnseg("run", shards, calm, "--weights", weights, "--masks", "png")
    other = world.jpeg(world.image(99))
    doubled = [*world.samples(0).items(), ("img0.jpg", other)]
    (shards / "s0.tar").write_bytes(world.tar(doubled))
    out = tmp_path / "out"
    assert fcnseg("run", shards, out, "--weights", weights, "--masks", "png")[0] == 3
    (row,) = quarantine(out)
    assert row["key"] == "img0" and "a second sample with the key 'img0'" in row["reason"]
    assert (out / "png/s0/img0.png").read_bytes() == (calm / "png/s0/img0.png").read_bytes()


@pytest.mark.parametrize("cut", [100, 1500, 5000, 512])
def test_truncated_tar_fails_its_shard_and_no_other(
    shards: Path, weights: Path, tmp_path: Path, cut: int, fcnseg: Fcnseg
) -> None:
    whole = (shards / "s1.tar").read_bytes()
    (shards / "s1.tar").write_bytes(whole[:cut])
    out = tmp_path / "out"
    code, _, stderr = fcnseg("run", shards, out, "--weights", weights)
    assert code == 4
    assert (
        f"failed: {shards}/s1.tar" in stderr and "the run continues with the other shards" in stderr
    )
    assert sorted(p.name for p in (out / "_commits").iterdir()) == ["s0.json", "s2.json"]
    marker = json.loads((out / "_PARTIAL").read_text())
    assert list(marker["failed_shards"]) == ["s1"]
    (shards / "s1.tar").write_bytes(whole)  # mended: the same command finishes
    assert fcnseg("run", shards, out, "--weights", weights)[0] == 0


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, bytes(300)])
def test_unreadable_tar_fails_its_shard(
    shards: Path, weights: Path, tmp_path: Path, content: bytes, fcnseg: Fcnseg
) -> None:
    (shards / "s1.tar").write_bytes(content)
    code, _, stderr = fcnseg("run", shards, tmp_path / "out", "--weights", weights)
    assert code == 4 and "s1.tar" in stderr


def test_tar_cut_between_two_members_is_not_taken_for_whole(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    one = world.tar(dict(list(world.samples(1).items())[:2]))
    body = one[: one.rindex(b"\0" * 1024)]
    end = -(-len(body.rstrip(b"\0")) // 512) * 512
    (shards / "s1.tar").write_bytes(one[:end])
    code, _, stderr = fcnseg("run", shards, tmp_path / "out", "--weights", weights)
    assert code == 4 and "an end-of-archive marker" in stderr


@pytest.mark.parametrize("damage", ["truncated", "no image column"])
def test_bad_parquet_fails_its_shard(
    tmp_path: Path, weights: Path, damage: str, fcnseg: Fcnseg
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    images = [world.jpeg(world.image(i)) for i in range(3)]
    pq.write_table(pa.table({"image": images}), source / "good.parquet")
    pq.write_table(pa.table({"text": ["a"]}), source / "bad.parquet")
    if damage == "truncated":
        (source / "bad.parquet").write_bytes((source / "good.parquet").read_bytes()[:-20])
    code, _, stderr = fcnseg("run", source, tmp_path / "out", "--weights", weights)
    assert code == 4 and "bad.parquet" in stderr
    assert (tmp_path / "out/masks/good.parquet").exists()


def test_shard_over_its_limit_is_listed_and_not_committed(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    bad = {f"bad{i}.jpg": b"x" for i in range(3)}
    (shards / "s0.tar").write_bytes(world.tar({**world.samples(0), **bad}))
    out = tmp_path / "out"
    code, _, stderr = fcnseg("run", shards, out, "--weights", weights)
    assert code == 4
    assert "shard s0: 3 of 7 images (43%) are bad" in stderr and "s0.tar#bad0.jpg" in stderr
    assert not (out / "_commits/s0.json").exists() and (out / "_commits/s1.json").exists()
    assert len(quarantine(out)) == 3


def test_run_over_its_limit_exits_4_with_every_shard_committed(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    for shard in range(3):
        members = {**world.samples(shard), "bad.jpg": b"x"}
        (shards / f"s{shard}.tar").write_bytes(world.tar(members))
    out = tmp_path / "out"
    code, _, stderr = fcnseg("run", shards, out, "--weights", weights)
    assert code == 4 and "limits exceeded: 3 of 15 images could not be segmented" in stderr
    assert len(list((out / "_commits").iterdir())) == 3
    relaxed = ("--set", "limits.max_bad_fraction=0.5")
    assert fcnseg("run", shards, out, "--weights", weights, *relaxed)[0] == 3


def test_missing_and_empty_prefix(weights: Path, tmp_path: Path, fcnseg: Fcnseg) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty"):
        code, _, stderr = fcnseg("run", tmp_path / name, tmp_path / "out", "--weights", weights)
        assert code == 1
        assert f"{tmp_path}/{name}: no objects: the folder or prefix is empty or missing" in stderr
    assert not (tmp_path / "out").exists()


def test_folder_without_images_says_what_is_there(
    weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.tif").write_bytes(b"x")
    code, _, stderr = fcnseg("run", tmp_path / "in", tmp_path / "out", "--weights", weights)
    assert code == 1 and "1 .tif" in stderr and "jpg, jpeg, png, webp" in stderr


def _denied(*_: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_input_without_permission(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.setattr(os, "scandir", lambda *_: _denied())
    code, _, stderr = fcnseg("run", shards, tmp_path / "out", "--weights", weights)
    assert code == 1 and "permission denied" in stderr and "Check the owner and the mode" in stderr


def test_unwritable_output(shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, stderr = fcnseg("run", shards, tmp_path / "file/out", "--weights", weights)
    assert code == 1 and str(tmp_path / "file/out") in stderr
    assert (tmp_path / "file").read_text() == "in the way"


def test_output_inside_input_is_refused(shards: Path, weights: Path, fcnseg: Fcnseg) -> None:
    code, _, stderr = fcnseg("run", shards, shards / "out", "--weights", weights)
    assert code == 2 and "overlap" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "limits.chunk_image=3"), "known here: max_bad_fraction"),
        (("--set", "nosection=3"), "not section.field=value"),
        (("--set", "limits.chunk_images=many"), "config limits.chunk_images: 'many'"),
        (("--masks", "jpeg"), "config output.masks.0: 'jpeg'"),
        (("--label-set", "martian"), "built-in sets are scenes, voc, camvid"),
        (("--label-set", "missing.yaml"), "no such file"),
        (("--executor", "spark"), "config compute.executor: 'spark'"),
        (("--config", "missing.yaml"), "nothing there"),
    ],
)
def test_bad_configuration(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg, arguments: tuple[str, str],
    message: str,
) -> None:  # fmt: skip
    code, _, stderr = fcnseg("run", shards, tmp_path / "out", "--weights", weights, *arguments)
    assert code in (1, 2) and message in stderr
    assert not (tmp_path / "out").exists()


def test_weights_are_required(shards: Path, tmp_path: Path, fcnseg: Fcnseg) -> None:
    code, _, stderr = fcnseg("run", shards, tmp_path / "out")
    assert code == 2 and "--weights demo" in stderr


@pytest.mark.parametrize("content", [None, b"", b"junk" * 100, "truncated"])
def test_wrong_weights_file(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg, content: bytes | str | None
) -> None:
    path = tmp_path / "w.safetensors"
    if content == "truncated":
        path.write_bytes(weights.read_bytes()[:-7])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    code, _, stderr = fcnseg("run", shards, tmp_path / "out", "--weights", path)
    assert code == 1 and f"weights {path}" in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("variant", "channels"), [("fcn32s-color-d", 4), ("fcn32s-color-hha", 6)])
def test_a_network_for_other_than_rgb_images_is_refused(
    shards: Path, tmp_path: Path, fcnseg: Fcnseg, random_fcn: Callable[..., FCN],
    variant: str, channels: int,
) -> None:  # fmt: skip
    path, image = tmp_path / "w.safetensors", tmp_path / "p.png"
    path.write_bytes(world.weights_bytes(random_fcn(variant, num_classes=3, width=1 / 32)))
    image.write_bytes(world.png(world.image(1)))
    found = f"weights {path}: {variant} reads {channels} channels; a network for RGB images"
    code, _, stderr = fcnseg("run", shards, tmp_path / "out", "--weights", path)
    assert code == 1 and found in " ".join(stderr.split())
    assert not (tmp_path / "out").exists()
    code, _, stderr = fcnseg("predict", image, "--output", tmp_path / "p", "--weights", path)
    assert code == 1 and found in " ".join(stderr.split())


def test_label_set_of_another_size_is_refused(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    code, _, stderr = fcnseg(
        "run", shards, tmp_path / "out", "--weights", weights, "--label-set", "voc"
    )
    assert code == 1 and "3 classes (tiny)" in stderr and "'voc' has 21" in stderr


def test_output_of_other_weights_is_refused(
    shards: Path, weights: Path, tmp_path: Path, random_fcn, fcnseg: Fcnseg  # type: ignore[no-untyped-def]
) -> None:  # fmt: skip
    out = tmp_path / "out"
    fcnseg("run", shards, out, "--weights", weights)
    other = tmp_path / "other.safetensors"
    other.write_bytes(world.weights_bytes(random_fcn(num_classes=3, width=1 / 32, seed=9)))
    before = world.tree(out)
    code, _, stderr = fcnseg("run", shards, out, "--weights", other)
    assert code == 2 and "weights_sha256" in stderr and "Nothing was changed" in stderr
    assert world.tree(out) == before


def test_held_lease_exits_75(shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg) -> None:
    from pipeline.output.lease import Lease

    with Lease(Store(str(tmp_path / "out"))):
        code, _, stderr = fcnseg("run", shards, tmp_path / "out", "--weights", weights)
    assert code == 75 and "held by process" in stderr


def test_store_failure_in_the_middle_exits_1_and_a_rerun_finishes(
    shards: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.errors import StoreError

    config: RunConfig = world.config(shards, tmp_path / "out", weights)
    original = Store.write

    def full(self: Store, path: str, data: bytes) -> None:
        if path.startswith("masks/s1"):
            raise StoreError("disk", "full", "room", "Free space.")
        original(self, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", full)
        with pytest.raises(StoreError, match="Free space"):
            run(config)
    assert run(config).exit_code == 0


def test_shard_named_like_a_chunk_of_another_is_refused(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    (shards / "s0-00000-of-00002.tar").write_bytes((shards / "s1.tar").read_bytes())
    code, _, stderr = fcnseg("run", shards, tmp_path / "out", "--weights", weights)
    assert code == 1 and "may be split into chunks" in stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["img0.png/x", "/".join(["d" * 200] * 5)])
def test_key_that_cannot_become_a_path_is_quarantined(
    shards: Path, weights: Path, tmp_path: Path, key: str, fcnseg: Fcnseg
) -> None:
    (shards / "s0.tar").write_bytes(world.tar({**world.samples(0), f"{key}.jpg": GOOD}))
    code, _, _ = fcnseg("run", shards, tmp_path / "out", "--weights", weights, "--masks", "png")
    assert code == 3
    (row,) = quarantine(tmp_path / "out")
    assert row["key"] == key and row["error"] == "SampleError"


def test_links_in_a_tar_are_followed(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        add_to_tar(archive, "d/a.jpg", GOOD)
        for name, kind, target in (
            ("hard.jpg", tarfile.LNKTYPE, "d/a.jpg"),
            ("d/soft.jpg", tarfile.SYMTYPE, "a.jpg"),
            ("gone.jpg", tarfile.SYMTYPE, "nowhere.jpg"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
    (shards / "s0.tar").write_bytes(buffer.getvalue())
    out = tmp_path / "out"
    assert fcnseg("run", shards, out, "--weights", weights, "--masks", "png")[0] == 3
    masks = {name: (out / f"png/s0/{name}.png").read_bytes() for name in ("d/a", "hard", "d/soft")}
    assert len(set(masks.values())) == 1
    assert [row["key"] for row in quarantine(out)] == ["gone"]


def test_output_without_its_run_record_is_not_taken_over(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    out = tmp_path / "out"
    fcnseg("run", shards, out, "--weights", weights)
    (out / "_run.json").unlink()
    code, _, stderr = fcnseg("run", shards, out, "--weights", weights)
    assert code == 2 and "commits, but no _run.json" in stderr


def test_config_that_is_no_text(shards: Path, tmp_path: Path, fcnseg: Fcnseg) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    code, _, stderr = fcnseg("run", shards, tmp_path / "out", "--config", tmp_path / "c.yaml")
    assert code == 2 and "not valid UTF-8" in stderr


def test_ignored_files_are_counted(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    (shards / "notes.txt").write_text("x")
    (shards / "old.tif").write_bytes(b"x")
    for name in ("_one.tar", "_two.tar", ".hidden.jpg"):
        (shards / name).write_bytes(b"x")
    _, _, stderr = fcnseg("run", shards, tmp_path / "out", "--weights", weights)
    assert "ignored: 1 .txt, 1 .tif" in stderr or "1 .tif, 1 .txt" in stderr
    assert "2 named _…, 1 named .…" in stderr


@pytest.mark.parametrize("empty", ["input", "output"])
def test_an_empty_address_is_not_this_folder(
    empty: str, shards: Path, weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    places = ("", tmp_path / "out") if empty == "input" else (shards, "")
    code, _, stderr = fcnseg("run", *places, "--weights", weights)
    assert code == 2 and "an address: an empty string; a path or URL" in stderr


def test_a_server_that_does_not_run_is_no_empty_folder(
    weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    quick = ("--set", "input.store.attempts=1")
    code, _, stderr = fcnseg(
        "run", "http://127.0.0.1:9/x", tmp_path / "out", "--weights", weights, *quick
    )
    assert code == 1 and "127.0.0.1" in stderr and "the folder or prefix is" not in stderr


def test_packing_never_overwrites_other_shards(tmp_path: Path, fcnseg: Fcnseg) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(world.jpeg(world.image(seed)))
    assert fcnseg("shard", tmp_path / "a", tmp_path / "tars")[0] == 0
    assert fcnseg("shard", tmp_path / "a", tmp_path / "tars")[0] == 0  # the same again
    before = (tmp_path / "tars/shard-000000.tar").read_bytes()
    code, _, stderr = fcnseg("shard", tmp_path / "b", tmp_path / "tars")
    assert code == 2 and "Nothing was overwritten" in stderr
    assert (tmp_path / "tars/shard-000000.tar").read_bytes() == before


@pytest.mark.parametrize("names", [("real", "link/out"), ("link", "real"), ("real/out", "link")])
def test_a_link_hides_no_overlap(names: tuple[str, str], weights: Path, tmp_path: Path) -> None:
    world.write_shards(tmp_path / "real")
    (tmp_path / "real/out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    source, output = (tmp_path / name for name in names)
    with pytest.raises(ConfigError, match="overlap"):
        run(world.config(source, output, weights))


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """Weights that are finite, and give scores that are not."""
    model = networks.random_fcn(num_classes=3, width=1 / 32, biases=0.3)
    with torch.no_grad():
        model.score_fr.weight.fill_(3e38)
    path = tmp_path / "overflowing.safetensors"
    path.write_bytes(world.weights_bytes(model))
    return path


def test_scores_that_are_no_numbers_end_a_run_as_bad_input_does(
    shards: Path, overflowing: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    out = tmp_path / "out"
    code, text, err = fcnseg("run", shards, out, "--weights", overflowing)
    assert code == 4, text + err
    rows = quarantine(out)
    assert len(rows) == 4 and all("scores are NaN or infinite" in row["reason"] for row in rows)
    assert not list((out / "png").rglob("*.png"))
    image = tmp_path / "p.jpg"
    image.write_bytes(GOOD)
    words = ("predict", image, "--output", tmp_path / "one", "--weights", overflowing)
    code, _, err = fcnseg(*words)
    assert code == 1 and f"{image}: the network's scores are NaN or infinite" in err
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize(("others", "is_asked"), [(0, True), (1, False)])
def test_where_no_label_fits_the_label_set_it_is_asked_about_first(
    others: int, is_asked: bool, tmp_path: Path, weights: Path, fcnseg: Fcnseg
) -> None:
    """Labels 0-20 for a network of three classes: no user wants to fix or drop all of them."""
    members = world.samples(0, 4)
    for place, name in enumerate([name for name in members if name.endswith(".png")]):
        shape = decode_label(members[name]).shape
        members[name] = world.png(np.full(shape, 20 if place >= others else 1, np.uint8))
        if place < others:
            members[name.replace(".seg.png", ".jpg")] = b"cut"
    (tmp_path / "in").mkdir()
    (tmp_path / "in/s.tar").write_bytes(world.tar(members))
    result = run(world.config(tmp_path / "in", tmp_path / "out", weights))
    _, out, err = fcnseg("evaluate", tmp_path / "in", "--weights", weights)
    for said in (result.failed[0].reason, out + err):
        assert ("(--label-set), fix or drop them, or raise the limit" in said) is is_asked
        assert (". Fix or drop them, or raise the limit" in said) is not is_asked
