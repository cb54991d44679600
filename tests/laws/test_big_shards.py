"""Laws of large and odd tars: read in few ranges, whatever is in them, as tarfile reads them."""

from __future__ import annotations

import gzip
import io
import posixpath
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ShardError
from pipeline.inputs import range_reader as ranged
from pipeline.inputs import tar as tar_input
from pipeline.inputs.range_reader import RangedObject, WalkedFile, read_ranges
from pipeline.inputs.shard import ChunkLimits, Shard, Sources
from pipeline.stages.read import count_images, read_chunks
from pipeline.storage.store import Store
from tests.support import world

WHOLE = ChunkLimits(10**6, 2**30)


def read(data: bytes, limits: ChunkLimits, url: str = "memory://big") -> tuple[list, list]:
    """(samples, failures) of a tar, as (key, image, label) and (key, reason)."""
    store = Store(url)
    store.write("s.tar", data)
    shard = Shard("s", "tar", "s.tar", len(data), "")
    chunks = list(read_chunks(shard, Sources(store, store), limits))
    assert [(c.seq, c.count) for c in chunks] == [(n, len(chunks)) for n in range(len(chunks))]
    for chunk in chunks:
        sizes = [len(s.image) + len(s.label or b"") for s in chunk.samples]
        assert len(sizes) <= limits.images and (len(sizes) <= 1 or sum(sizes) <= limits.bytes)
    return (
        [(s.key, s.image, s.label) for c in chunks for s in c.samples],
        [(f.key, f.reason) for c in chunks for f in c.failures],
    )


# Any tar, against tarfile

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
PARTS = st.sampled_from(["a", "é", "e\u0301", "b c", "x+%20", "q?#'\"", "v1.2", "long" * 45])
KEYS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
SUFFIXES = st.sampled_from([".jpg", ".JPEG", ".webp", ".png", ".PNG", ".seg.png", ".json", ""])


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    """A tar with files of all sizes, folders, links to files and to nothing, repeated names."""
    buffer = io.BytesIO()
    names: list[str] = []
    with tarfile.open(fileobj=buffer, mode="w", format=draw(st.sampled_from(FORMATS))) as tar:
        for number in range(draw(st.integers(0, 12))):
            info = tarfile.TarInfo(draw(st.sampled_from(["", "./"])) + draw(KEYS) + draw(SUFFIXES))
            kind = draw(st.integers(0, 9))
            if kind == 9:
                info.type = tarfile.DIRTYPE
            elif kind == 8 and names:
                info.type, info.linkname = tarfile.LNKTYPE, draw(st.sampled_from(names))
            elif kind == 7:
                info.type, info.linkname = tarfile.SYMTYPE, "gone.jpg"
            else:
                info.size = draw(st.sampled_from([0, 1, 511, 512, 513, 1500, 5000]))
                if info.name not in names:
                    names.append(info.name)
            content = np.random.default_rng(number).bytes(info.size)
            try:
                tar.addfile(info, io.BytesIO(content))
            except ValueError:  # USTAR has no room for this name
                continue
    return buffer.getvalue() + draw(st.sampled_from([b"", bytes(3000), b"appended"]))


def obvious(data: bytes) -> tuple[list, set]:
    """Samples as a person would find them: all members by tarfile, then by key."""
    groups: dict[str, list[tuple[str, bytes | None]]] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        last = {m.name: m for m in tar.getmembers() if m.isfile()}
        for member in tar.getmembers():
            if member.isdir():
                continue
            name = member.name.removeprefix("./")
            suffix = next((s for s in (".seg.png", ".jpg", ".jpeg", ".webp", ".png")
                           if name.lower().endswith(s)), None)  # fmt: skip
            if suffix is None or posixpath.basename(name)[: -len(suffix)] == "":
                continue
            there: tarfile.TarInfo | None = member
            if member.islnk():
                same = {n.removeprefix("./"): m for n, m in last.items()}
                there = same.get(posixpath.normpath(member.linkname))
            elif member.issym():
                there = None
            handle = tar.extractfile(there) if there is not None else None
            content = handle.read() if handle else None
            groups.setdefault(name[: -len(suffix)], []).append((suffix, content))
    good, bad = [], set()
    for key, files in groups.items():
        photo = any(suffix not in (".png", ".seg.png") for suffix, _ in files)
        label = [c for s, c in files if s == ".seg.png" or (s == ".png" and photo)]
        images = [c for s, c in files if not (s == ".seg.png" or (s == ".png" and photo))]
        if not images or len(label) > 1 or images[0] is None or None in label:
            bad.add(key)
        else:
            good.append((key, images[0], label[0] if label else None))
        if len(images) > 1:
            bad.add(key)
    nested = {key for key, *_ in good for other in groups if key.startswith(f"{other}.png/")}
    return [sample for sample in good if sample[0] not in nested], bad | nested


@contextmanager
def tiny_ranges(hop: int, ahead: int, gap: int, span: int) -> Iterator[None]:
    sizes = {"HOP": hop, "AHEAD": ahead, "BREAK_EVEN": 2 * hop, "GAP": gap, "SPAN": span}
    with mock.patch.multiple(ranged, **sizes):
        yield


@given(
    tars(),
    st.integers(1, 4),
    st.sampled_from([1, 600, 3000]),
    st.sampled_from([(1, 1, 0, 1), (513, 700, 600, 3000), (3000, 1000, 10**6, 10**6)]),
)
@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
def test_any_tar_is_read_as_tarfile_reads_it(
    data: bytes, images: int, size: int, sizes: tuple[int, int, int, int]
) -> None:
    good, bad = obvious(data)
    with tiny_ranges(*sizes):
        ranges = read(data, ChunkLimits(images, size))
    assert ranges[0] == good and {key for key, _ in ranges[1]} == bad
    assert read(data, WHOLE) == ranges


@given(
    st.binary(max_size=3000),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 900)), max_size=30),
    st.integers(0, 500),
    st.integers(1, 2000),
)
@settings(deadline=None)
def test_ranges_are_slices(data: bytes, wanted: list, gap: int, span: int) -> None:
    ranges = [(min(start, len(data)), 0) for start, _ in wanted]
    ranges = [(s, min(n, len(data) - s)) for (s, _), (_, n) in zip(ranges, wanted, strict=True)]
    store = Store("memory://ranges")
    store.write("o", data)
    with tiny_ranges(1, 1, gap, span):
        found = read_ranges(RangedObject(store, "o", len(data)), ranges)
    assert found == [data[start : start + size] for start, size in ranges]


@given(
    st.binary(max_size=4000),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 700)), max_size=30),
    st.integers(1, 900),
    st.integers(1, 900),
)
@settings(deadline=None)
def test_a_walked_file_is_a_file(data: bytes, steps: list, hop: int, ahead: int) -> None:
    """Whichever way one goes."""
    store = Store("memory://walked")
    store.write("o", data)
    plain = io.BytesIO(data)
    with (
        tiny_ranges(hop, ahead, 0, 1),
        WalkedFile(RangedObject(store, "o", len(data))) as walked,
    ):
        for place, size in steps:
            assert walked.seek(place) == plain.seek(place)
            assert walked.read(size) == plain.read(size)
            assert walked.tell() == min(plain.tell(), max(place, len(data))) or size == 0


# How much is fetched


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of every read."""
    original, sizes = Store.read_tagged, []

    def counted(self: Store, *args: Any) -> tuple[bytes, str]:
        found = original(self, *args)
        sizes.append(len(found[0]))
        return found

    monkeypatch.setattr(Store, "read_tagged", counted)
    return sizes


def count(root: Path, members: dict[str, bytes]) -> int:
    (root / "s.tar").write_bytes(world.tar(members))
    store = Store(str(root))
    shard = Shard("s", "tar", "s.tar", (root / "s.tar").stat().st_size, "")
    return count_images(shard, Sources(store, store))


def test_small_members_are_indexed_by_reading_on(tmp_path: Path, requests: list[int]) -> None:
    """Not one request per member."""
    assert count(tmp_path, {f"k{n}.jpg": bytes(20_000) for n in range(1000)}) == 1000
    assert len(requests) <= ranged.MIN_JUMPS + 2 + 1000 * 20_992 // ranged.AHEAD + ranged.STREAMS


def test_large_members_are_indexed_by_jumping(tmp_path: Path, requests: list[int]) -> None:
    """Not the whole tar."""
    with mock.patch.multiple(ranged, HOP=1024, BREAK_EVEN=50_000, AHEAD=200_000):
        members = {f"k{n}.{s}": bytes(size) for n in range(200)
                   for s, size in (("jpg", 100_000), ("png", 300))}  # fmt: skip
        assert count(tmp_path, members) == 200
    assert len(requests) <= 2 * 200 + 3 and sum(requests) < 500_000


def test_indexing_changes_its_way_where_the_members_change(
    tmp_path: Path, requests: list[int]
) -> None:
    with mock.patch.multiple(ranged, HOP=1024, BREAK_EVEN=50_000, AHEAD=200_000):
        members = {f"a{n}.jpg": bytes(1000) for n in range(500)}
        members |= {f"b{n}.jpg": bytes(100_000) for n in range(200)}
        members |= {f"c{n}.jpg": bytes(1000) for n in range(500)}
        assert count(tmp_path, members) == 1200
    assert len(requests) < 350 and sum(requests) < 8_000_000


def test_neighbours_are_fetched_in_one_request(tmp_path: Path, requests: list[int]) -> None:
    members = {f"k{n}.{s}": bytes(2000) for n in range(300) for s in ("jpg", "json", "png")}
    data = world.tar(members)
    samples, _ = read(data, ChunkLimits(100, 500_000), str(tmp_path))
    index = len(data) // ranged.HOP + 1
    assert len(samples) == 300 and len(requests) <= index + 4


def test_memory_is_bounded_by_the_chunk_not_the_tar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for number in range(600):
            info = tarfile.TarInfo(f"k{number}.jpg")
            info.size = 100_000
            tar.addfile(info, io.BytesIO(bytes(100_000)))
    store = Store(str(tmp_path))
    shard = Shard("s", "tar", "s.tar", (tmp_path / "s.tar").stat().st_size, "")
    seen = 0
    with mock.patch.multiple(ranged, AHEAD=2**19, SPAN=2**19):
        tracemalloc.start()
        try:
            for chunk in read_chunks(shard, Sources(store, store), ChunkLimits(1000, 2 * 2**20)):
                seen += len(chunk.samples)
                del chunk
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert seen == 600
    assert peak < 8 * 2**20, f"{peak / 2**20:.1f} MiB of 58"


def test_an_index_is_small(tmp_path: Path) -> None:
    members = {f"folder/of/images/{n:08d}.{s}": b"" for n in range(2000) for s in ("jpg", "png")}
    (tmp_path / "s.tar").write_bytes(world.tar(members))
    shard = Shard("s", "tar", "s.tar", (tmp_path / "s.tar").stat().st_size, "")
    tracemalloc.start()
    try:
        index = tar_input.TarIndex(shard, Store(str(tmp_path)), in_memory=False)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(index.keys) == 2000
    assert kept < 2000 * 300 + 200_000


def test_an_object_that_is_replaced_while_it_is_read_fails_as_a_shard(tmp_path: Path) -> None:
    data = world.tar({f"k{n}.jpg": bytes(1000) for n in range(100)})
    (tmp_path / "s.tar").write_bytes(data)
    store = Store(str(tmp_path))
    shard = Shard("s", "tar", "s.tar", len(data), "")
    chunks = read_chunks(shard, Sources(store, store), ChunkLimits(50, 10_000))
    next(chunks)
    store.write("s.tar", data + bytes(512))
    with pytest.raises(ShardError, match="replaced while it was read"):
        list(chunks)
    with pytest.raises(ShardError, match=rf"it ends at {len(data) + 512}; the 999999 bytes"):
        RangedObject(store, "s.tar", 999_999).read(0, 999_999)


# Odd tars


@pytest.fixture(params=["in memory", "ranged"])
def limits(request: pytest.FixtureRequest) -> ChunkLimits:
    return WHOLE if request.param == "in memory" else ChunkLimits(512, 1)


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_sparse_members_are_read_with_their_holes(
    tmp_path: Path, limits: ChunkLimits, form: str
) -> None:
    files = {"a.jpg": b"A" * 5000, "b.jpg": b"1" * 4096 + bytes(2**20) + b"2" * 100 + bytes(2**19),
             "c.jpg": bytes(2**18), "d.jpg": b"D"}  # fmt: skip
    for name, data in files.items():
        with open(tmp_path / name, "wb") as handle:
            for start in range(0, len(data), 4096):
                block = data[start : start + 4096]
                if any(block):
                    handle.seek(start)
                    handle.write(block)
            handle.truncate(len(data))
    command = ["tar", "--sparse", f"--format={form}", "-cf", "s.tar", *files]
    subprocess.run(command, cwd=tmp_path, check=True)
    data = (tmp_path / "s.tar").read_bytes()
    assert len(data) < 2**18  # there are holes
    found, failures = read(data, limits)
    assert found == [(name[0], content, None) for name, content in files.items()] and not failures


def test_a_member_that_unfolds_to_too_much_fails_alone(
    tmp_path: Path, limits: ChunkLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_input, "MAX_MEMBER", 1000)
    found, failures = read(world.tar({"a.jpg": bytes(1001), "b.jpg": bytes(1000)}), limits)
    assert [key for key, *_ in found] == ["b"]
    assert failures == [("a", "1001 bytes; at most 1000")]


@pytest.mark.parametrize(
    ("pack", "name"),
    [(gzip.compress, "gzip"), (lambda d: b"BZh9" + d, "bzip2"), (lambda d: b"PK\3\4" + d, "zip")],
)
def test_packed_tars_are_named(
    limits: ChunkLimits, pack: Callable[[bytes], bytes], name: str
) -> None:
    with pytest.raises(ShardError, match=f"{name} data; an uncompressed tar. Decompress it"):
        read(pack(world.tar({"a.jpg": b"A"})), limits)


def test_an_archive_behind_the_end_of_another_is_refused(limits: ChunkLimits) -> None:
    first, second = world.tar({"a.jpg": b"A"}), world.tar({"b.jpg": b"B"})
    with pytest.raises(ShardError, match=f"another archive at {len(first)}, after the end"):
        read(first + second, limits)


@pytest.mark.parametrize("more", [b"signature", bytes(5000), bytes(600) + b"x" * 5000])
def test_what_is_appended_is_not_looked_at(limits: ChunkLimits, more: bytes) -> None:
    assert read(world.tar({"a.jpg": b"A"}) + more, limits) == ([("a", b"A", None)], [])


def test_the_files_that_macos_adds_are_passed_over(limits: ChunkLimits) -> None:
    members = {"./._a.jpg": b"resource fork", "./a.jpg": b"A", "x/._b.png": b"", "x/b.png": b"B"}
    found = read(world.tar(members), limits)
    assert found == ([("a", b"A", None), ("x/b", b"B", None)], [])


def test_a_header_of_impossible_length_is_a_damaged_tar() -> None:
    data = bytearray(world.tar({"a.jpg": bytes(1000)}))
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**33
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT)) + data
    with pytest.raises(ShardError, match="not a complete tar"):
        read(bytes(data), ChunkLimits(512, 1))
    with (
        mock.patch.multiple(ranged, _MOST=100),
        pytest.raises(ShardError, match="a header of 512 bytes"),
    ):
        read(world.tar({"a.jpg": b""}), ChunkLimits(512, 1))


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_twenty_thousand_images_in_one_tar(tmp_path: Path, weights: Path) -> None:
    """Segmented, committed and verified; the commit stays small."""
    from pipeline.driver import run
    from pipeline.output.verify import verify

    image = world.jpeg(world.image(1, (8, 8)))
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/s.tar", "w") as tar:
        for number in range(20_000):
            info = tarfile.TarInfo(f"{number % 100:02d}/{number:06d}.jpg")
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
    config = world.config(
        tmp_path / "in", tmp_path / "out", weights, output__masks=("parquet",),
        limits__chunk_images=4096, limits__chunk_bytes=2**20,
    )  # fmt: skip
    result = run(config)
    assert (result.exit_code, result.images, result.shards) == (0, 20_000, 1)
    assert (tmp_path / "out/_commits/s.json").stat().st_size < 20_000
    assert verify(Store(str(tmp_path / "out"))).problems == ()
