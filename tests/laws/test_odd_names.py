"""Names are taken as they are: in shards and keys, in and out, on every kind of store."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.driver import plan, run
from pipeline.formats import read_parquet
from pipeline.output.gc import collect_garbage, find_garbage
from pipeline.output.verify import verify
from pipeline.storage.store import Store
from pipeline.text import plural
from tests.support import world

ODD = (
    "plain",
    "sp ace",
    "plus+and%20percent%",
    "hash#query?x=1&y",
    "quote'\"`",
    "caf\u00e9",  # é in one character,
    "cafe\u0301",  # and in two: other names
    "\u96ea/\u2603 deep/er",
    "[br]{ack}*~!$^(;),@:=|<>",
    "v1.2..x",
    "-leading",
)


@pytest.fixture(params=["file", "file url", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty place whose own name is odd too."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/pre fix+%41é"
    if request.param == "memory":
        for info in (store := Store("memory://odd names")).objects():
            store.delete(info.path)
        return "memory://odd names/pre+%41é"
    place = tmp_path / "pre fix+%41é#?"
    return f"file://{place}" if request.param == "file url" else str(place)


def fill(root: str, kind: str) -> tuple[set[str], set[tuple[str, str]]]:
    """An input with one image per odd key; (shards, (shard, key) of all images)."""
    store = Store(f"{root}/in")
    image = world.jpeg(world.image(1, (9, 7)))
    truth = world.png(world.label(1, (9, 7)))
    if kind == "folder":
        for key in ODD:
            store.write(f"images/{key}.jpg", image)
            store.write(f"labels/{key}.png", truth)
        return {"images-000000"}, {("images-000000", key) for key in ODD}
    for name in ODD[::3]:
        if kind == "tar":
            files = {f"{k}{s}": d for k in ODD for s, d in ((".jpg", image), (".png", truth))}
            store.write(f"{name}/of {name}.tar", world.tar(files))
            continue
        buffer = io.BytesIO()
        columns = {"key": list(ODD), "image": [image] * len(ODD), "mask": [truth] * len(ODD)}
        pq.write_table(pa.table(columns), buffer)
        store.write(f"{name}/of {name}.parquet", buffer.getvalue())
    shards = {f"{name}/of {name}" for name in ODD[::3]}
    return shards, {(shard, key) for shard in shards for key in ODD}


@pytest.mark.parametrize("kind", ["tar", "parquet", "folder"])
def test_odd_names_go_in_and_come_out(root: str, kind: str, weights: Path, fcnseg) -> None:
    shards, images = fill(root, kind)
    config = world.config(f"{root}/in", f"{root}/out", weights)
    result = run(config)
    assert (result.exit_code, result.failures, result.images) == (0, 0, len(images))
    assert result.scores["labeled_images"] == len(images)
    output = Store(f"{root}/out")
    found = {info.path for info in output.objects()}
    assert {f"_commits/{shard}.json" for shard in shards} == {p for p in found if "_commits" in p}
    assert {f"png/{s}/{k}.png" for s, k in images} == {p for p in found if p[:4] == "png/"}
    rows = {
        (row["shard"], row["key"])
        for shard in shards
        for row in read_parquet(output.read(f"masks/{shard}.parquet")).to_pylist()
    }
    assert rows == images
    assert verify(output, deep=True).problems == ()
    assert list(find_garbage(output, 0)) == []
    assert len(plan(config).pending) == 0
    code, stdout, _ = fcnseg("status", f"{root}/out")
    assert code == 0 and f"{plural(len(shards), 'shard')} committed of {len(shards)}" in stdout


def test_garbage_with_odd_names_goes(root: str, weights: Path) -> None:
    fill(root, "folder")
    run(world.config(f"{root}/in", f"{root}/out", weights))
    output = Store(f"{root}/out")
    before = {info.path for info in output.objects()}
    extra = {f"{form}/x {odd}{end}" for odd in ODD
             for form, end in (("masks", ".parquet"), ("png/s", ".png"))}  # fmt: skip
    for path in extra:
        output.write(path, b"x")
    assert {g.path for g in find_garbage(output, 0)} == extra
    assert list(find_garbage(output, 60)) == []
    assert collect_garbage(output, 0) == len(extra)
    assert {info.path for info in output.objects()} == before


@pytest.mark.s3
def test_multipart_uploads_that_no_program_ended_are_garbage(
    s3: str, s3_server, weights: Path
) -> None:
    bucket = s3.removeprefix("s3://")
    source, output = Store(f"{s3}/in"), Store(f"{s3}/out")
    source.write("s.tar", world.tar(world.samples(0, 1)))
    run(world.config(source.url, output.url, weights))
    client = s3_server.client()
    inside = client.create_multipart_upload(Bucket=bucket, Key="out/masks/é +%.parquet")
    client.create_multipart_upload(Bucket=bucket, Key="elsewhere/x")
    (left,) = output.leftovers()
    assert (left.path, left.handle) == ("masks/é +%.parquet", inside["UploadId"])
    assert list(find_garbage(output, 0)) == []  # younger than a minute
    output.discard(left)
    output.discard(left)  # gone already
    assert list(output.leftovers()) == []
    assert len(client.list_multipart_uploads(Bucket=bucket)["Uploads"]) == 1
