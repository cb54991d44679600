"""Laws of verification: what differs from its commit is found and named, and nothing else is."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fcn_core.images import decode_label, encode_mask
from pipeline.driver import run
from pipeline.errors import OutputError, StoreError
from pipeline.inputs.sample import Failure
from pipeline.output import verify as verify_module
from pipeline.output.commits import Commit
from pipeline.output.quarantine import quarantine_table
from pipeline.output.verify import Verification, verify
from pipeline.paths import commit_path
from pipeline.stages.records import record
from pipeline.storage.store import Store
from tests.support import world

FILES = (
    "masks/s0.parquet",
    "png/s1/img2.png",
    "tar/s2.tar",
    "_previews/s0.parquet",
    "_quarantine/s1.parquet",
)


@pytest.fixture(scope="module")
def finished(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The objects of a run over three shards, one with a quarantined image."""
    root = tmp_path_factory.mktemp("verify")
    shards = world.write_shards(root / "in")
    (shards / "s1.tar").write_bytes(world.tar({**world.samples(1), "bad.jpg": b"no image"}))
    assert run(world.config(shards, root / "out", weights)).exit_code == 3
    output = Store(str(root / "out"))
    return {info.path: output.read(info.path) for info in output.objects()}


@pytest.fixture
def output(finished: dict[str, bytes], tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "out"))
    for path, data in finished.items():
        store.write(path, data)
    return store


def problems(output: Store, *, deep: bool = False) -> list[tuple[str, str]]:
    return list(verify(output, deep=deep).problems)


def recommit(output: Store, shard: str, change: Callable[[Commit], Commit]) -> None:
    path = commit_path(shard)
    output.write(path, change(Commit.from_json(output.read(path), path)).to_json())


def rewrite(output: Store, shard: str, path: str, data: bytes) -> None:
    """Another object with a commit that agrees: only looking into it tells."""
    output.write(path, data)
    recommit(output, shard, lambda made: replace(
        made, files=tuple(record(path, data) if f.path == path else f for f in made.files)
    ))  # fmt: skip


def spoilt(png: bytes, value: int) -> bytes:
    mask = decode_label(png).astype(np.uint8)
    mask[0, 0] = value
    return encode_mask(mask, world.TINY.palette)


@pytest.mark.parametrize("deep", [False, True])
def test_a_finished_output_is_without_fault(
    output: Store, finished: dict[str, bytes], deep: bool
) -> None:
    before = output.objects()
    found = verify(output, deep=deep)
    tops = ("masks/", "png/", "tar/", "_previews/", "_quarantine/")
    named = [data for path, data in finished.items() if path.startswith(tops)]
    assert found == Verification(3, len(named), sum(len(data) for data in named))
    assert output.objects() == before  # writes nothing


@pytest.mark.parametrize("path", FILES)
def test_a_missing_object_is_found(output: Store, path: str) -> None:
    output.delete(path)
    for deep in (False, True):
        assert problems(output, deep=deep) == [(path, "missing")]


@pytest.mark.parametrize("path", FILES)
def test_a_truncated_object_is_found(output: Store, path: str) -> None:
    data = output.read(path)
    output.write(path, data[:-1])
    assert problems(output) == [(path, f"{len(data) - 1} bytes, its commit says {len(data)}")]


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_flipped_byte_is_found(output: Store, path: str, place: float) -> None:
    whole = output.read(path)
    data = bytearray(whole)
    data[int(place * (len(data) - 1))] ^= 1
    output.write(path, bytes(data))
    now, then = record(path, bytes(data)).sha256, record(path, whole).sha256
    assert problems(output) == [(path, f"sha256 {now}, its commit says {then}")]


def test_every_problem_is_told(output: Store) -> None:
    for path in FILES:
        output.delete(path)
    assert sorted(problems(output)) == sorted((path, "missing") for path in FILES)


def test_another_fingerprint_is_found(output: Store) -> None:
    recommit(output, "s1", lambda made: replace(made, fingerprint="beef"))
    fingerprint = json.loads(output.read("_run.json"))["fingerprint"]
    expected = f"fingerprint beef, the output has {fingerprint}"
    assert problems(output) == [("_commits/s1.json", expected)]


def test_objects_that_no_commit_names_are_no_problem(output: Store) -> None:
    output.write("masks/other.parquet", b"")
    output.delete("_commits/s2.json")
    found = verify(output, deep=True)
    assert (found.problems, found.shards) == ((), 2)


@pytest.mark.parametrize("value", [3, 254])
def test_a_value_that_is_no_class_is_found_in_a_png(output: Store, value: int) -> None:
    path = "png/s1/img2.png"
    rewrite(output, "s1", path, spoilt(output.read(path), value))
    assert problems(output) == []
    assert problems(output, deep=True) == [(path, f"{path}: value {value} is not a class")]


def test_a_value_that_is_no_class_is_found_in_a_tar(output: Store) -> None:
    members = dict(_tar_members(output.read("tar/s2.tar")))
    members["img1.png"] = spoilt(members["img1.png"], 3)
    rewrite(output, "s2", "tar/s2.tar", world.tar(members))
    assert problems(output) == []
    assert problems(output, deep=True) == [("tar/s2.tar", "img1: value 3 is not a class")]


def _tar_members(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            handle = tar.extractfile(member)
            assert handle is not None
            yield member.name, handle.read()


def _change_rows(output: Store, change: Callable[[dict], None]) -> None:
    path = "masks/s0.parquet"
    table = pq.ParquetFile(pa.BufferReader(output.read(path))).read()
    rows = table.to_pylist()
    change(rows[1])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), buffer)
    rewrite(output, "s0", path, buffer.getvalue())


ROW_CHANGES: dict[str, tuple[Callable[[dict], None], str]] = {
    "value": (
        lambda row: row["mask"].update(bytes=spoilt(row["mask"]["bytes"], 9)),
        "img1: value 9 is not a class",
    ),
    "shape": (lambda row: row.update(height=1), "img1: mask is (23, 17), its row says otherwise"),
    "counts": (
        lambda row: row.update(class_pixels=[1, 2, 3]),
        "img1: class counts differ from its row",
    ),
    "damage": (
        lambda row: row["mask"].update(bytes=row["mask"]["bytes"][:60]),
        "does not decode: img1: 60 bytes that do not decode",
    ),
}


@pytest.mark.parametrize("name", ROW_CHANGES)
def test_a_row_that_differs_from_its_mask_is_found(output: Store, name: str) -> None:
    change, expected = ROW_CHANGES[name]
    _change_rows(output, change)
    assert problems(output) == []
    found = problems(output, deep=True)
    assert {path for path, _ in found} == {"masks/s0.parquet"}
    assert found[0][1].startswith(expected)


@pytest.mark.parametrize("path", ["masks/s0.parquet", "png/s0/img0.png", "tar/s0.tar"])
def test_an_object_that_does_not_decode_is_found(output: Store, path: str) -> None:
    rewrite(output, "s0", path, b"neither of them")
    assert problems(output) == []
    ((where, what),) = problems(output, deep=True)
    assert where == path and what.startswith("does not decode: ")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"images": 5}, {"5 images, masks/ has 4", "5 images, png/ has 4", "5 images, tar/ has 4"}),
        ({"class_pixels": (1, 2, 3)},
         {f"class counts differ from those of {form}/" for form in ("masks", "png", "tar")}),
    ],
)  # fmt: skip
def test_a_commit_that_counts_otherwise_than_its_masks_is_found(
    output: Store, change: dict, found: set[str]
) -> None:
    recommit(output, "s0", lambda made: replace(made, **change))
    assert problems(output) == []
    assert set(problems(output, deep=True)) == {("_commits/s0.json", what) for what in found}


def test_a_commit_that_forgot_an_object_is_found(output: Store) -> None:
    recommit(output, "s0", lambda made: replace(
        made, files=tuple(f for f in made.files if f.path != "png/s0/img3.png")
    ))  # fmt: skip
    found = problems(output, deep=True)
    assert ("_commits/s0.json", "4 images, png/ has 3") in found


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"format": 99}', b"\xff"])
def test_an_unreadable_commit_is_a_problem_like_others(output: Store, data: bytes) -> None:
    output.write("_commits/s1.json", data)
    output.delete("tar/s2.tar")
    found = verify(output)
    assert [path for path, _ in found.problems] == ["_commits/s1.json", "tar/s2.tar"]
    assert re.match("no readable commit|commit format 99", found.problems[0][1])
    assert (found.shards, found.problem_count) == (3, 2)


def test_the_commit_of_another_shard_is_a_problem(output: Store) -> None:
    output.write("_commits/s9.json", output.read("_commits/s0.json"))
    assert problems(output) == [("_commits/s9.json", "it is the commit of shard 's0'")]


def test_a_quarantine_table_that_no_commit_names_is_a_problem(output: Store) -> None:
    recommit(output, "s1", lambda made: replace(made, failures=0))
    recommit(output, "s0", lambda made: replace(made, failures=2))
    assert problems(output) == [
        ("_commits/s0.json", "2 failures, and it names no quarantine table"),
        ("_commits/s1.json", "0 failures, and it names a quarantine table"),
    ]


def test_a_wrong_quarantine_table_is_found(output: Store) -> None:
    path = "_quarantine/s1.parquet"
    row = Failure("a", "b", "c", "d")
    rewrite(output, "s1", path, quarantine_table([row, row]))
    assert problems(output) == []
    assert problems(output, deep=True) == [(path, "2 rows, its commit says 1 failures")]
    rewrite(output, "s1", path, output.read("masks/s0.parquet"))
    assert problems(output, deep=True)[0][1].startswith("columns key, shard")


@pytest.mark.parametrize("path", FILES)
def test_large_objects_are_compared_by_pieces(
    output: Store, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "BLOCK_BYTES", 100)
    assert problems(output) == []
    data = bytearray(output.read(path))
    data[-1] ^= 1
    output.write(path, bytes(data))
    output.write("png/s0/img1.png", b"short")
    output.delete("png/s0/img2.png")
    told = dict(problems(output))
    assert set(told) == {path, "png/s0/img1.png", "png/s0/img2.png"}
    assert told[path].startswith("sha256 ") and told["png/s0/img1.png"].startswith("5 bytes, ")


def test_an_object_that_cannot_be_read_is_a_problem_but_a_store_that_is_gone_is_an_error(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: set[str] = {"png/s0/img1.png"}
    original = Store.read_tagged

    def failing(self: Store, path: str, *args: Any) -> tuple[bytes, str]:
        if path in refused:
            raise StoreError(path, "permission denied", "permission for this operation")
        return original(self, path, *args)

    monkeypatch.setattr(Store, "read_tagged", failing)
    assert problems(output) == [
        ("png/s0/img1.png", "cannot be read: permission denied; permission for this operation")
    ]
    refused.update(info.path for info in output.objects() if info.path[0] != "_")
    monkeypatch.setattr(verify_module, "MAX_STORE_FAILURES", 5)
    with pytest.raises(StoreError, match="permission denied"):
        verify(output)


def test_problems_are_told_shard_by_shard_and_not_all_kept(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "MAX_PROBLEMS", 2)
    for path in FILES:
        output.delete(path)
    told: list[tuple[int, list[str]]] = []
    found = verify(output, listen=lambda so_far, wrong: told.append(
        (so_far.problem_count, sorted(path for path, _ in wrong))
    ))  # fmt: skip
    assert (found.problem_count, len(found.problems)) == (5, 2)
    assert told == [
        (2, ["_previews/s0.parquet", "masks/s0.parquet"]),
        (4, ["_quarantine/s1.parquet", "png/s1/img2.png"]),
        (5, ["tar/s2.tar"]),
    ]


def test_the_command_tells_and_exits_one(output: Store, fcnseg) -> None:
    assert fcnseg("verify", output.url)[0] == 0
    output.delete("tar/s2.tar")
    output.write("_commits/s1.json", b"")
    code, stdout, stderr = fcnseg("verify", output.url, "--deep")
    assert code == 1 and stdout.splitlines()[1] == "tar/s2.tar: missing"
    assert stdout.splitlines()[2].endswith(": 2 problems") and "delete its _commits" in stderr
    code, stdout, _ = fcnseg("verify", output.url, "--json")
    document = json.loads(stdout)
    assert (code, document["problem_count"], len(document["problems"])) == (1, 2, 2)


def test_what_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no _run\.json"):
        verify(Store(str(tmp_path)))
