"""Laws of reading: every kind of input yields the samples that an obvious reader finds."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ShardError, StoreError
from pipeline.inputs import parquet as parquet_input
from pipeline.inputs.folder import assign_shards
from pipeline.inputs.listing import list_input
from pipeline.inputs.parquet import list_ignored_columns
from pipeline.inputs.shard import ChunkLimits, Shard, Sources
from pipeline.output.quarantine import quarantine_table
from pipeline.stages.read import Chunk, count_images, read_chunks, split
from pipeline.storage.remote_file import RangeReader
from pipeline.storage.store import Store
from tests.support import world

Triple = tuple[str, bytes, bytes | None]
WHOLE = ChunkLimits(images=512, bytes=64 * 2**20)
RANGED = ChunkLimits(images=512, bytes=1)  # a tar over the limit is read member by member
ODD_KEYS = ("a b", "été/☃", "x+y%20z", "a#b?c[1]*", "deep/er/still/k", "v1.2.x", "n" * 200)


def chunks(root: Path, limits: ChunkLimits = WHOLE) -> list[Chunk]:
    source = Store(str(root))
    shards = list_input(source, None).shards
    return [c for s in shards for c in read_chunks(s, Sources(source, source), limits)]


def samples(found: Sequence[Chunk]) -> list[Triple]:
    return [(s.key, s.image, s.label) for chunk in found for s in chunk.samples]


def failures(found: Sequence[Chunk]) -> list[tuple[str, str]]:
    return [(f.key, f.reason) for chunk in found for f in chunk.failures]


def from_tar(root: Path, members: Any, limits: ChunkLimits = WHOLE) -> list[Chunk]:
    root.mkdir(exist_ok=True)
    (root / "s.tar").write_bytes(members if isinstance(members, bytes) else world.tar(members))
    return chunks(root, limits)


def from_table(root: Path, table: pa.Table | dict[str, Any], **options: Any) -> list[Chunk]:
    root.mkdir(exist_ok=True)
    table = pa.table(table) if isinstance(table, dict) else table
    pq.write_table(table, root / "s.parquet", **options)
    return chunks(root)


@pytest.fixture(params=["in memory", "ranged"])
def limits(request: pytest.FixtureRequest) -> ChunkLimits:
    return WHOLE if request.param == "in memory" else RANGED


# Tars


def obvious_tar(path: Path) -> dict[str, dict[str, bytes]]:
    """Bytes by key and suffix, read the way a person would."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar.getmembers():
            handle = tar.extractfile(member)
            assert handle is not None
            key, _, suffix = member.name.partition(".")
            found.setdefault(key, {})[suffix] = handle.read()
    return found


def test_a_tar_yields_what_tarfile_finds(shards: Path, limits: ChunkLimits) -> None:
    found = chunks(shards, limits)
    expected = [
        (key, files["jpg"], files["png"])
        for n in range(3)
        for key, files in obvious_tar(shards / f"s{n}.tar").items()
    ]
    assert samples(found) == expected and not failures(found)
    assert len(expected) == 12


def test_ranges_and_whole_tars_give_the_same_samples(shards: Path) -> None:
    whole, ranged = chunks(shards, ChunkLimits(1, 2**26)), chunks(shards, RANGED)
    assert [(c.shard, c.seq, c.count, c.samples) for c in whole] == [
        (c.shard, c.seq, c.count, c.samples) for c in ranged
    ]
    assert [c.count for c in whole] == [4] * 12


def test_a_tar_over_the_limit_is_never_fetched_whole(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Store.read_tagged

    def ranged(self: Store, path: str, *range: int | None) -> tuple[bytes, str]:
        assert None not in range and range, "fetched whole"
        return original(self, path, *range)

    monkeypatch.setattr(Store, "read_tagged", ranged)
    assert len(chunks(shards, RANGED)) == 12


def test_members_of_a_sample_need_not_be_adjacent(tmp_path: Path, limits: ChunkLimits) -> None:
    order = ("a.jpg", "b.jpg", "b.png", "c.png", "a.png", "c.jpg")
    members = {name: name.encode() for name in order}
    found = samples(from_tar(tmp_path, members, limits))
    assert found == [(key, f"{key}.jpg".encode(), f"{key}.png".encode()) for key in "abc"]


@pytest.mark.parametrize("label", [".png", ".PNG", ".seg.png", ".mask.png", ".Seg.Png"])
@pytest.mark.parametrize("image", [".jpg", ".JPG", ".jpeg", ".webp"])
def test_labels_stand_beside_photos(tmp_path: Path, image: str, label: str) -> None:
    for members in ([(f"a{image}", b"I"), (f"a{label}", b"L")],
                    [(f"a{label}", b"L"), (f"a{image}", b"I")]):  # fmt: skip
        assert samples(from_tar(tmp_path, members)) == [("a", b"I", b"L")]


@pytest.mark.parametrize("label", [".seg.png", ".mask.png"])
def test_a_png_without_a_photo_is_an_image(tmp_path: Path, label: str) -> None:
    members = {"a.png": b"A", "b.png": b"B", f"b{label}": b"bb"}
    assert samples(from_tar(tmp_path, members)) == [("a", b"A", None), ("b", b"B", b"bb")]


def test_members_of_other_kinds_are_passed_over(tmp_path: Path, limits: ChunkLimits) -> None:
    members = {
        "a.json": b"{}",
        "a.jpg": b"A",
        "a.cls": b"3",
        "README": b"",
        ".jpg": b"?",
        "b.txt": b"",
    }
    found = from_tar(tmp_path, members, limits)
    assert samples(found) == [("a", b"A", None)] and not failures(found)


def test_entries_that_are_no_files_are_passed_over(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (("x.jpg", tarfile.DIRTYPE), ("y.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../../etc/passwd"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("x/a.jpg"))
    assert samples(from_tar(tmp_path, buffer.getvalue())) == [("x/a", b"", None)]


@pytest.mark.parametrize("key", ODD_KEYS)
def test_keys_are_taken_as_they_are(tmp_path: Path, limits: ChunkLimits, key: str) -> None:
    members = {f"{key}.jpg": b"A", f"{key}.png": b"L"}
    assert samples(from_tar(tmp_path, members, limits)) == [(key, b"A", b"L")]
    dotted = {f"./{name}": data for name, data in members.items()}
    assert samples(from_tar(tmp_path, dotted, limits)) == [(key, b"A", b"L")]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_is_read(tmp_path: Path, limits: ChunkLimits, form: int) -> None:
    buffer = io.BytesIO()
    key = "folder/" * 14 + "été"  # too long for the name field of the old header
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in ((f"{key}.jpg", b"A" * 700), (f"{key}.png", b"L")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert samples(from_tar(tmp_path, buffer.getvalue(), limits)) == [(key, b"A" * 700, b"L")]


def test_a_name_that_is_no_text_goes_to_quarantine(tmp_path: Path, limits: ChunkLimits) -> None:
    buffer = io.BytesIO()
    form = {"format": tarfile.GNU_FORMAT, "encoding": "latin-1"}
    with tarfile.open(fileobj=buffer, mode="w", **form) as tar:
        for name in ("café.jpg", "b.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    found = from_tar(tmp_path, buffer.getvalue(), limits)
    assert [key for key, *_ in samples(found)] == ["b"]
    ((key, reason),) = failures(found)
    assert key == r"caf\xe9" and "backslash" in reason
    assert quarantine_table(found[0].failures)  # which needs UTF-8


def test_an_empty_tar_is_one_empty_chunk(tmp_path: Path, limits: ChunkLimits) -> None:
    (found,) = from_tar(tmp_path, {}, limits)
    assert (found.seq, found.count, found.samples, found.failures) == (0, 1, (), ())


def test_a_tar_of_one_image_is_one_chunk(tmp_path: Path, limits: ChunkLimits) -> None:
    (found,) = from_tar(tmp_path, {"a.jpg": b"A"}, limits)
    assert (found.shard, found.seq, found.count) == ("s", 0, 1)
    assert found.samples[0].location == f"{tmp_path}/s.tar#a.jpg"


BAD = {
    "two photos": ({"a.jpg": b"1", "a.webp": b"2"}, ["a"], "a second sample with the key 'a'"),
    "two labels": ({"a.jpg": b"1", "a.png": b"", "a.seg.png": b""}, [], "2 labels (a.png, a.seg"),
    "label alone": ({"a.seg.png": b""}, [], "a label without an image"),
    "same name twice": ([("a.jpg", b"1"), ("a.jpg", b"2")], ["a"], "a second sample"),
    "leaves the folder": ({"../a.jpg": b"1"}, [], "'..'"),
    "absolute": ({"/a.jpg": b"1"}, [], "absolute"),
    "too long": ({"n" * 241 + ".jpg": b"1"}, [], "longer than 240 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_samples_fail_alone(tmp_path: Path, limits: ChunkLimits, name: str) -> None:
    members, kept, reason = BAD[name]
    more = [*(members.items() if isinstance(members, dict) else members), ("good.jpg", b"G")]
    found = from_tar(tmp_path, more, limits)
    assert [key for key, *_ in samples(found)] == [*kept, "good"]
    ((_, told),) = failures(found)
    assert reason in told


def cut(data: bytes) -> dict[str, bytes]:
    return {
        "nothing": b"",
        "no tar": b"<html>" * 1000,
        "gzip": b"\x1f\x8b" + bytes(2000),
        "in a member": data[:1000],
        "between members": data[: 512 * 2],
        "before the end": data[: data.rindex(b"L") + 512 - (data.rindex(b"L") % 512)],
        "zeroed header": data[:1024] + b"\x01" * 512 + data[1536:],
    }


@pytest.mark.parametrize("name", cut(b"L"))
def test_damaged_tars_are_refused_as_a_whole(
    tmp_path: Path, limits: ChunkLimits, name: str
) -> None:
    data = world.tar({"a.jpg": b"A" * 100, "b.jpg": b"B" * 600, "b.png": b"L"})
    with pytest.raises(ShardError, match=rf"^{tmp_path}/s.tar: ") as caught:
        from_tar(tmp_path, cut(data)[name], limits)
    assert "the run continues with the other shards" in caught.value.remedy


def test_tars_of_the_webdataset_library_are_read(tmp_path: Path, limits: ChunkLimits) -> None:
    image, label = world.image(1), world.label(1)
    with webdataset.TarWriter(str(tmp_path / "s.tar")) as writer:
        for key in ("x/0001", "x/0002"):
            writer.write({"__key__": key, "jpg": image, "seg.png": label, "json": {"a": 1}})
        writer.write({"__key__": "raw", "jpg": b"A", "png": b"L", "cls": 3})
    found = samples(chunks(tmp_path, limits))
    obvious = obvious_tar(tmp_path / "s.tar")
    assert found == [
        ("x/0001", obvious["x/0001"]["jpg"], obvious["x/0001"]["seg.png"]),
        ("x/0002", obvious["x/0002"]["jpg"], obvious["x/0002"]["seg.png"]),
        ("raw", b"A", b"L"),
    ]


# Parquet


def hf_table(rows: Sequence[tuple[str | None, bytes | None, bytes | None]]) -> pa.Table:
    """As the datasets library writes images: struct<bytes, path>, features in the metadata."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        "image": pa.array([{"bytes": i, "path": p} for p, i, _ in rows], kind),
        "label": pa.array([m and {"bytes": m, "path": None} for *_, m in rows], kind),
        "caption": pa.array(["x"] * len(rows)),
    }
    features = {"image": {"_type": "Image"}, "label": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table(columns).replace_schema_metadata(metadata)


ROWS = [("x/a.jpg", b"A", b"aa"), ("b.v2.png", b"B", None), ("ét é.webp", b"", b"cc")]


@pytest.mark.parametrize("row_group_size", [1, 2, 100])
def test_a_hugging_face_table_yields_its_rows(tmp_path: Path, row_group_size: int) -> None:
    found = from_table(tmp_path, hf_table(ROWS), row_group_size=row_group_size)
    rows = pq.ParquetFile(tmp_path / "s.parquet").read().to_pylist()
    expected = [
        (row["image"]["path"].rpartition(".")[0], row["image"]["bytes"],
         row["label"] and row["label"]["bytes"])
        for row in rows
    ]  # fmt: skip
    assert samples(found) == expected
    assert [s.location for s in found[0].samples] == [
        f"{tmp_path}/s.parquet#row={n}" for n in range(3)
    ]


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.struct([("bytes", pa.binary())]),
        pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]),
    ],
)
def test_images_may_be_bytes_of_any_kind(tmp_path: Path, kind: pa.DataType) -> None:
    values = [b"A", b"B"]
    wrapped = [{"bytes": v} for v in values] if pa.types.is_struct(kind) else values
    table = {"image": pa.array(wrapped, kind), "mask": pa.array([b"L", None], pa.binary())}
    found = samples(from_table(tmp_path, table))
    assert found == [("00000000", b"A", b"L"), ("00000001", b"B", None)]


@pytest.mark.parametrize(
    ("columns", "image", "label"),
    [
        (["image", "label"], "image", "label"),
        (["label", "image"], "image", "label"),
        (["thumbnail", "jpg", "segmentation"], "jpg", "segmentation"),
        (["picture"], "picture", None),
        (["picture", "mask"], "picture", "mask"),
        (["image", "thumbnail"], "image", None),
        (["img", "annotation", "x", "y"], "img", "annotation"),
    ],
)
def test_columns_are_found_by_name_else_by_being_the_only_one(
    tmp_path: Path, columns: list[str], image: str, label: str | None
) -> None:
    table = {name: pa.array([name.encode()]) for name in columns}
    expected = (image.encode(), label and label.encode())
    assert [found[1:] for found in samples(from_table(tmp_path, table))] == [expected]


def test_the_declared_image_column_is_taken(tmp_path: Path) -> None:
    metadata = {"huggingface": json.dumps({"info": {"features": {"photo": {"_type": "Image"}}}})}
    table = pa.table({"raw": [b"R"], "photo": [b"P"]}).replace_schema_metadata(metadata)
    assert samples(from_table(tmp_path, table)) == [("00000000", b"P", None)]


@pytest.mark.parametrize("columns", [{"n": [1]}, {"a": [b"A"], "b": [b"B"]}, {"image": ["a.jpg"]}])
def test_a_table_without_an_image_column_is_refused(tmp_path: Path, columns: dict) -> None:
    with pytest.raises(ShardError, match=f"columns {', '.join(columns)}; a column of images"):
        from_table(tmp_path, columns)


def keys(root: Path, **columns: Any) -> list[str]:
    table = {"image": pa.array([b"A", b"B"]), **columns}
    return [key for key, *_ in samples(from_table(root, table))]


@pytest.mark.parametrize("name", ["key", "__key__", "id", "image_id", "file_name", "filename"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_keys_come_from_the_key_column(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    assert keys(tmp_path, **{name: pa.array(["x/é 1", "y%20"], kind)}) == ["x/é 1", "y%20"]


def test_the_first_key_column_of_text_wins(tmp_path: Path) -> None:
    assert keys(tmp_path, file_name=["f1", "f2"], id=["i1", "i2"]) == ["i1", "i2"]
    assert keys(tmp_path, file_name=["f1", "f2"], id=[1, 2]) == ["f1", "f2"]
    assert keys(tmp_path, id=[1, 2]) == ["00000000", "00000001"]


def test_rows_without_a_key_are_numbered(tmp_path: Path) -> None:
    assert keys(tmp_path, key=pa.array([None, "b"])) == ["00000000", "b"]
    assert keys(tmp_path, key=["", "b"]) == ["00000000", "b"]


@pytest.mark.parametrize("paths", [["a.jpg", "a.png"], ["a.jpg", None], ["a.jpg", ""]])
def test_paths_that_do_not_tell_rows_apart_are_no_keys(tmp_path: Path, paths: list) -> None:
    found = from_table(tmp_path, hf_table([(path, b"A", None) for path in paths]))
    assert [key for key, *_ in samples(found)] == ["00000000", "00000001"]


def test_equal_keys_keep_the_first_row(tmp_path: Path) -> None:
    table = {"image": [b"A", b"B", b"C"], "key": ["a", "a", "b"]}
    found = from_table(tmp_path, table)
    assert [(key, image) for key, image, _ in samples(found)] == [("a", b"A"), ("b", b"C")]
    assert [key for key, _ in failures(found)] == ["a"]


def test_a_row_without_bytes_fails_alone(tmp_path: Path) -> None:
    rows = [("a.jpg", b"A", None), ("b.jpg", None, None), ("c.jpg", b"C", None)]
    found = from_table(tmp_path, hf_table(rows))
    assert [key for key, *_ in samples(found)] == ["a", "c"]
    assert failures(found) == [
        ("b", "a null image, or a path without bytes; the bytes of the image in the row")
    ]
    null = pa.table({"image": pa.array([b"A", None, b"C"]), "key": ["a", "b", "c"]})
    again = from_table(tmp_path, null)
    assert (samples(again), failures(again)) == (samples(found), failures(found))


def test_an_empty_table_is_one_empty_chunk(tmp_path: Path) -> None:
    (found,) = from_table(tmp_path, {"image": pa.array([], pa.binary())})
    assert (found.seq, found.count, found.samples, found.failures) == (0, 1, (), ())


@pytest.mark.parametrize("buffer", [1, 100, 2**23])
def test_rows_are_read_in_batches_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffer: int
) -> None:
    """A row group may be larger than the memory."""
    batches: list[int] = []
    original = pq.ParquetFile.iter_batches

    def spy(self: pq.ParquetFile, **options: Any) -> Iterator[pa.RecordBatch]:
        for batch in original(self, **options):
            batches.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    monkeypatch.setattr(parquet_input, "BUFFER_BYTES", buffer)
    table = {"image": [b"%03d" % n for n in range(10)], "other": [b"x" * 1000] * 10}
    found = from_table(tmp_path, table, row_group_size=7)
    assert [int(image) for _, image, _ in samples(found)] == list(range(10))
    assert max(batches) == {1: 1, 100: 6, 2**23: 7}[buffer] and sum(batches) == 10


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"label": pa.array([1, 2])}, ["column label (int64)"]),
        ({"mask": pa.array(["a.png", "b.png"])}, ["column mask (string)"]),
        ({"label": pa.array([1, 2]), "mask": [b"a", b"b"]}, []),
        ({"label": [b"a", b"b"]}, []),
        ({"class": pa.array([1, 2])}, []),
        ({"id": pa.array([1, 2])}, ["column id (int64)"]),
        ({"id": pa.array([1, 2]), "file_name": ["a", "b"]}, []),
    ],
)
def test_labels_that_are_no_images_are_told(tmp_path: Path, columns: dict, told: list) -> None:
    found = from_table(tmp_path, {"image": pa.array([b"A", b"B"]), **columns})
    source = Store(str(tmp_path))
    assert len(samples(found)) == 2
    assert list_ignored_columns(list_input(source, None).shards[0], source) == told


def test_labels_of_a_damaged_file_are_not_looked_for(tmp_path: Path) -> None:
    (tmp_path / "s.parquet").write_bytes(b"no table")
    source = Store(str(tmp_path))
    assert list_ignored_columns(list_input(source, None).shards[0], source) == []


def test_a_flipped_byte_of_a_table_is_a_bad_shard_or_no_harm(tmp_path: Path) -> None:
    from_table(tmp_path, {"image": [bytes(range(64))] * 4, "key": list("abcd")}, row_group_size=2)
    path = tmp_path / "s.parquet"
    data = path.read_bytes()
    for place in range(0, len(data), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :])
        try:
            chunks(tmp_path)
        except ShardError as error:
            assert error.where == str(path)


# Folders


def folder(root: Path, files: dict[str, bytes], size: int = 2) -> tuple[list[Shard], Sources]:
    source = Store(str(root / "in"))
    for name, data in files.items():
        source.write(name, data)
    shards = assign_shards(list_input(source, None), Store(str(root / "out")), size).shards
    return list(shards), Sources(source, source)


def test_a_folder_yields_its_files(tmp_path: Path) -> None:
    files = {f"images/{key}.jpg": key.encode() for key in ODD_KEYS}
    files |= {f"labels/{key}.png": b"L" + key.encode() for key in ODD_KEYS[::2]}
    shards, sources = folder(tmp_path, files)
    found = samples([c for shard in shards for c in read_chunks(shard, sources, WHOLE)])
    assert found == [
        (key, files[f"images/{key}.jpg"], files.get(f"labels/{key}.png"))
        for key in sorted(ODD_KEYS)
    ]


def test_files_that_vanished_since_they_were_listed_fail_alone(tmp_path: Path) -> None:
    shards, sources = folder(tmp_path, {"a.jpg": b"A", "b.jpg": b"B"})
    sources.images.delete("a.jpg")
    (found,) = read_chunks(shards[0], sources, WHOLE)
    assert [s.key for s in found.samples] == ["b"]
    assert (found.failures[0].key, found.failures[0].error) == ("a", "MissingError")


def test_files_of_one_key_keep_the_first(tmp_path: Path) -> None:
    shards, sources = folder(tmp_path, {"a.png": b"2", "a.jpg": b"1"})
    (found,) = read_chunks(shards[0], sources, WHOLE)
    assert [(s.key, s.image) for s in found.samples] == [("a", b"1")]
    assert [f.key for f in found.failures] == ["a"]


# All kinds


def make_tar(root: Path, files: dict[str, tuple[bytes, bytes | None]]) -> tuple[Shard, Sources]:
    members = [(f"{key}.jpg", image) for key, (image, _) in files.items()]
    members += [(f"{key}.png", label) for key, (_, label) in files.items() if label is not None]
    source = Store(str(root / "in"))
    source.write("s.tar", world.tar(members))
    return list_input(source, None).shards[0], Sources(source, source)


def make_table(root: Path, files: dict[str, tuple[bytes, bytes | None]]) -> tuple[Shard, Sources]:
    buffer = io.BytesIO()
    table = hf_table([(f"{key}.jpg", *pair) for key, pair in files.items()])
    pq.write_table(table, buffer, row_group_size=2)
    source = Store(str(root / "in"))
    source.write("s.parquet", buffer.getvalue())
    return list_input(source, None).shards[0], Sources(source, source)


def make_folder(root: Path, files: dict[str, tuple[bytes, bytes | None]]) -> tuple[Shard, Sources]:
    flat = {f"images/{key}.jpg": image for key, (image, _) in files.items()}
    flat |= {f"labels/{key}.png": label for key, (_, label) in files.items() if label is not None}
    shards, sources = folder(root, flat, size=100)
    return shards[0], sources


FILES = {f"x/k{n}": (b"i%d" % n * (n + 1), b"l%d" % n if n % 3 else None) for n in range(7)}
Make = Callable[[Path, dict[str, tuple[bytes, bytes | None]]], tuple[Shard, Sources]]


@pytest.mark.parametrize("make", [make_tar, make_table, make_folder])
@pytest.mark.parametrize("images", [1, 3, 7, 100])
def test_all_kinds_yield_the_same_samples_however_they_are_split(
    tmp_path: Path, make: Make, images: int
) -> None:
    shard, sources = make(tmp_path, FILES)
    found = list(read_chunks(shard, sources, ChunkLimits(images, 2**20)))
    assert samples(found) == [(key, *pair) for key, pair in FILES.items()]
    assert [c.seq for c in found] == list(range(len(found)))
    assert {c.count for c in found} == {len(found)} == {-(-7 // images)}
    assert {c.shard for c in found} == {shard.id}
    assert count_images(shard, sources) == 7


@pytest.mark.parametrize("make", [make_tar, make_table, make_folder])
def test_a_shard_that_vanished_is_an_error_of_that_shard(tmp_path: Path, make: Make) -> None:
    shard, sources = make(tmp_path, FILES)
    for info in sources.images.objects():
        sources.images.delete(info.path)
    if shard.kind == "folder":
        (found,) = read_chunks(shard, sources, WHOLE)
        assert len(found.failures) == 7
    else:
        with pytest.raises(StoreError, match="nothing there"):
            list(read_chunks(shard, sources, WHOLE))


@pytest.mark.parametrize("make", [make_tar, make_table])
@pytest.mark.parametrize("reads", [0, 1, 3])
def test_a_store_that_fails_is_no_damaged_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make, reads: int
) -> None:
    left = iter(range(reads))

    def failing(original: Callable[..., Any]) -> Callable[..., Any]:
        def read(*args: Any) -> Any:
            if next(left, None) is None:
                raise StoreError("x", "the store failed", "a working store")
            return original(*args)

        return read

    shard, sources = make(tmp_path, FILES)
    monkeypatch.setattr(Store, "read_tagged", failing(Store.read_tagged))
    monkeypatch.setattr(RangeReader, "read", failing(RangeReader.read))
    with pytest.raises(StoreError, match="the store failed"):
        list(read_chunks(shard, sources, RANGED))


# Splitting

SIZES = st.lists(st.integers(0, 100), max_size=40)
LIMITS = st.builds(ChunkLimits, st.integers(1, 10), st.integers(1, 150))


@given(SIZES, LIMITS)
def test_pieces_cover_everything_in_order(sizes: list[int], limits: ChunkLimits) -> None:
    pieces = split(sizes, limits)
    assert [index for piece in pieces for index in piece] == list(range(len(sizes)))
    assert len(pieces) == 1 or all(pieces)


@given(SIZES, LIMITS)
def test_pieces_are_within_the_limits_unless_one_item_is_not(
    sizes: list[int], limits: ChunkLimits
) -> None:
    for piece in split(sizes, limits):
        assert len(piece) <= limits.images
        assert len(piece) == 1 or sum(sizes[i] for i in piece) <= limits.bytes


@given(SIZES, LIMITS)
def test_no_piece_could_take_the_next_item(sizes: list[int], limits: ChunkLimits) -> None:
    for piece in split(sizes, limits)[:-1]:
        more = sum(sizes[i] for i in piece) + sizes[piece.stop]
        assert len(piece) == limits.images or more > limits.bytes


@given(SIZES, LIMITS, st.lists(st.integers(0, 100), max_size=5))
def test_what_comes_behind_moves_no_earlier_border(
    sizes: list[int], limits: ChunkLimits, more: list[int]
) -> None:
    before, after = split(sizes, limits), split([*sizes, *more], limits)
    assert after[: len(before) - 1] == before[:-1]
