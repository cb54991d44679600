"""Laws of the verbs, the same on files, in memory and on S3."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.driver import run
from pipeline.errors import ConfigError, MissingError, StoreError
from pipeline.output.verify import verify
from pipeline.storage.local import LocalBackend
from pipeline.storage.store import Store, read_url
from tests.conftest import use_s3
from tests.support import world
from tests.support.s3_server import S3Server, User

KINDS = ("file", "memory", *(pytest.param(kind, marks=pytest.mark.s3) for kind in ("s3", "moto")))
ODD_NAMES = (
    "été/日本 ☃.bin",
    "a b+c%20d#e?f.bin",
    "x[1]*{2}.bin",
    "quote'\"&<>=;,@!$().bin",
    "n" * 196 + ".bin",
    "a.b/c.d/e",
)


@pytest.fixture(scope="module")
def moto_server() -> Iterator[str]:
    """The address of a second S3 server, of this process: checks no signature, quotes its tags."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def moto(moto_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket there."""
    use_s3(monkeypatch, User("somebody", "key", "secret").environment(moto_server))
    bucket = f"bucket-{uuid.uuid4().hex}"
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    place = {
        "file": lambda: str(tmp_path / "place"),
        "memory": lambda: f"memory:/{tmp_path}/place",
        "s3": lambda: f"{request.getfixturevalue('s3')}/place",
        "moto": lambda: f"{request.getfixturevalue('moto')}/place",
    }
    return Store(place[request.param]())


def names(store: Store, prefix: str = "") -> list[str]:
    return [info.path for info in store.objects(prefix)]


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_what_is_written_is_read(store: Store) -> None:
    for data in (b"", b"one", b"another", bytes(range(256)) * 5000):
        store.write("a/b.bin", data)
        assert store.read("a/b.bin") == data
        assert store.stat("a/b.bin").size == len(data)
        with store.open("a/b.bin") as handle:
            assert handle.read() == data


def test_ranges_are_half_open_slices(store: Store) -> None:
    data = bytes(range(200))
    store.write("x", data)
    for start, end in ((0, 1), (3, 150), (199, 200), (100, None), (None, 7), (0, 200), (-5, None)):
        assert store.read("x", start, end) == data[start:end]
    with store.open("x") as handle:
        assert handle.seek(190) == 190
        assert (handle.read(4), handle.tell(), handle.read(), handle.read()) == (
            data[190:194], 194, data[194:], b"",
        )  # fmt: skip
        assert handle.seek(-1, os.SEEK_END) == 199
        handle.seek(5)
        assert handle.read(2) == data[5:7]


def test_create_never_overwrites(store: Store) -> None:
    assert store.create("a/x", b"first")
    assert not store.create("a/x", b"second")
    assert store.read("a/x") == b"first"
    store.write("a/x", b"third")
    assert not store.create("a/x", b"fourth")
    store.delete("a/x")
    assert store.create("a/x", b"fifth")
    assert names(store) == ["a/x"]


def test_exactly_one_of_sixteen_creators_wins(tmp_path: Path) -> None:
    for n in range(10):
        start = threading.Barrier(16)

        def race(me: int, n: int = n, start: threading.Barrier = start) -> bool:
            store = Store(str(tmp_path))
            start.wait()
            return store.create(f"x{n}", b"%d" % me)

        with ThreadPoolExecutor(16) as pool:
            won = [me for me, first in enumerate(pool.map(race, range(16))) if first]
        assert [Store(str(tmp_path)).read(f"x{n}")] == [b"%d" % me for me in won]
    assert files(tmp_path) == {f"x{n}" for n in range(10)}


def test_readers_see_the_old_or_the_new_and_no_temporary_name(tmp_path: Path) -> None:
    store, versions = Store(str(tmp_path)), [b"a" * 100_000, b"b" * 50_000]
    store.write("x", versions[0])
    stop = threading.Event()

    def overwrite() -> None:
        while not stop.is_set():
            for data in reversed(versions):
                store.write("x", data)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(overwrite)
        seen = [(store.read("x"), names(store)) for _ in range(300)]
        stop.set()
        writer.result()
    assert {data for data, _ in seen} <= set(versions)
    assert all(listed == ["x"] for _, listed in seen)


@pytest.mark.parametrize("failing", ["fsync", "replace", "link"])
def test_failed_put_leaves_the_old_object_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    store = Store(str(tmp_path))
    store.write("a/x", b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    put = store.create if failing == "link" else store.write
    with pytest.raises(StoreError, match="No space left on device") as caught:
        put("a/x", b"new")
    assert caught.value.where == f"{tmp_path}/a/x"
    assert "Run the same command again" in caught.value.remedy
    assert store.read("a/x") == b"old"
    assert files(tmp_path) == {"a/x"}


def test_listing_is_recursive_sorted_and_relative(store: Store) -> None:
    wanted = ["B", "a/b/c", "a/b-", "a/b.d", "a/b/d", "é", "ab/x", "a.b"]
    for number, name in enumerate(wanted):
        store.write(name, b"x" * number)
    assert names(store) == sorted(wanted)
    assert {info.path: info.size for info in store.objects()} == {
        name: number for number, name in enumerate(wanted)
    }
    below = [name for name in sorted(wanted) if name.startswith("a/")]
    assert names(store, "a") == names(store, "a/") == below
    assert names(store, "a/b") == ["a/b/c", "a/b/d"]  # a folder, not a beginning of names
    assert store.objects("none") == store.objects("a/none") == []


def test_listing_of_nothing_is_empty(store: Store) -> None:
    assert store.objects() == store.objects("x") == []


def test_listing_sees_what_others_wrote_and_deleted(store: Store) -> None:
    other = Store(store.url)
    assert names(store) == []
    other.write("a/x", b"1")
    assert names(store) == ["a/x"]
    other.write("a/y", b"2")
    other.delete("a/x")
    assert names(store) == names(store, "a") == ["a/y"]


def test_listing_and_stat_agree(store: Store) -> None:
    for name in ("x", "a/y", "a/b/z"):
        store.write(name, name.encode())
    assert [store.stat(name) for name in names(store)] == store.objects()


def test_tag_changes_with_the_content_and_only_then(store: Store) -> None:
    store.write("x", b"one")
    store.write("y", b"one")
    first = store.stat("x").etag
    time.sleep(0.02)  # file times have ticks of a few milliseconds
    assert store.stat("x").etag == first
    store.write("y", b"new")
    assert store.stat("x").etag == first
    tags = {first}
    for data in (b"two", b"longer", b""):
        time.sleep(0.02)
        store.write("x", data)
        tags.add(store.stat("x").etag)
    assert len(tags) == 4


def test_deleting_nothing_is_no_error(store: Store) -> None:
    store.delete("none")
    store.delete("a/none")
    store.write("a/x", b"1")
    for _ in range(2):
        store.delete("a/x")
    assert names(store) == []


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_taken_as_they_are(store: Store, name: str) -> None:
    assert store.create(name, b"first")
    assert not store.create(name, b"second")
    store.write(name, b"third")
    assert names(store) == [name]
    assert store.stat(name) == store.objects()[0]
    assert (store.read(name), store.read(name, 1, 3)) == (b"third", b"hi")
    with store.open(name) as handle:
        assert handle.read() == b"third"
    assert read_url(store.location(name)) == b"third"
    store.delete(name)
    assert names(store) == []


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_store_may_have_an_odd_url(store: Store, name: str) -> None:
    inner = Store(store.location(name))
    inner.write("a/x", b"1")
    assert names(inner) == names(inner, "")
    assert names(inner) == ["a/x"] and inner.read("a/x") == b"1"
    assert names(store) == [f"{name}/a/x"]


def test_only_the_url_travels(store: Store) -> None:
    store.write("x", b"1")
    carried = pickle.dumps(store)
    assert len(carried) < 1000 + len(store.url) and b"Backend" not in carried
    copy = pickle.loads(carried)
    assert copy == store
    assert copy.read("x") == b"1"


def test_what_does_not_exist_is_missing_and_named(store: Store) -> None:
    for verb in (store.read, store.stat, store.open):
        with pytest.raises(MissingError) as caught:
            verb("a/none")
        assert str(caught.value).startswith(f"{store.url}/a/none: nothing there; ")
        assert caught.value.remedy


@pytest.mark.parametrize("verb", ["read", "open", "stat", "write", "create", "delete", "objects"])
def test_permission_denied_says_where_and_what_to_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    store = Store(str(tmp_path))
    store.write("a/x", b"1")

    def denied(path: object, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    for name in ("scandir", "stat", "link", "replace", "remove"):
        monkeypatch.setattr(os, name, denied)
    monkeypatch.setattr("builtins.open", denied)
    args = {"write": ("a/x", b"2"), "create": ("a/x", b"2"), "objects": ("a",)}
    with pytest.raises(StoreError, match="permission denied") as caught:
        getattr(store, verb)(*args.get(verb, ("a/x",)))
    monkeypatch.undo()
    assert caught.value.where.startswith(f"{tmp_path}/a")
    assert "ls -ld" in caught.value.remedy


def test_an_open_object_that_fails_is_explained_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    store = Store(str(tmp_path))
    store.write("x", b"1")
    monkeypatch.setattr(LocalBackend, "open", lambda *_: Failing())
    with store.open("x") as handle, pytest.raises(StoreError, match="/x: the store"):
        handle.read(1)


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    store.write("a/x", b"1")
    store.write("closed/y", b"1")
    scandir = os.scandir

    def guarded(path: Any = ".") -> Any:
        if os.fsdecode(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(StoreError, match="permission denied"):
        store.objects()


def test_a_listing_survives_folders_that_vanish_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    store.write("a/x", b"1")
    store.write("gone/y", b"1")
    scandir = os.scandir

    def vanishing(path: Any = ".") -> Any:
        if os.fsdecode(path).endswith("gone"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert names(store) == ["a/x"]


def test_links_are_followed(tmp_path: Path) -> None:
    elsewhere, store = Store(str(tmp_path / "elsewhere")), Store(str(tmp_path / "place"))
    elsewhere.write("x", b"1")
    elsewhere.write("b/y", b"22")
    (tmp_path / "place").mkdir()
    (tmp_path / "place/x").symlink_to(tmp_path / "elsewhere/x")
    (tmp_path / "place/b").symlink_to(tmp_path / "elsewhere/b")
    (tmp_path / "place/broken").symlink_to(tmp_path / "none")
    (tmp_path / "place/round").symlink_to(tmp_path / "place")
    assert names(store) == ["b/y", "x"]
    assert [store.stat(name) for name in names(store)] == store.objects()
    before = store.stat("x").etag
    time.sleep(0.02)
    elsewhere.write("x", b"2")
    assert store.stat("x").etag != before


def test_a_store_is_whole_before_a_second_thread_sees_it(tmp_path: Path) -> None:
    class Slow(Store):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "_backend" and value:
                time.sleep(0.05)

    store = Slow(str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: (time.sleep(n * 0.02), store._open())[1], range(4)))
    assert {objects.root for objects in found} == {str(tmp_path)}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("file:///a/b", "/a/b"),
        ("/a/b/", "/a/b"),
        ("file:///a/../b", "/b"),
        ("local:///a/b", "/a/b"),
        ("~/x", os.path.expanduser("~/x")),
        ("rel", f"{os.getcwd()}/rel"),
        ("memory://a/", "memory://a"),
        ("s3://bucket/a/", "s3://bucket/a"),
    ],
)
def test_one_place_has_one_url(url: str, where: str) -> None:
    assert Store(url).url == where


def test_unknown_protocols_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"ftpx://a/b: protocol 'ftpx'; file, s3, gs"):
        Store("ftpx://a/b")


def test_a_protocol_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec, "url_to_fs", lacking)
    with pytest.raises(StoreError, match=r"gcsfs.*pip install 'fcn-pipeline\[gcs\]'"):
        Store("gs://bucket/a").read("x")


@pytest.mark.s3
def test_missing_bucket(s3: str) -> None:
    store = Store("s3://no-such-bucket/place")
    verbs: list[Callable[[], object]] = [
        store.objects,
        lambda: store.read("x"),
        lambda: store.stat("x"),
        lambda: store.write("x", b"1"),
        lambda: store.create("x", b"1"),
    ]
    for verb in verbs:
        with pytest.raises(MissingError, match=r"^s3://no-such-bucket/place.*: .* bucket"):
            verb()


@pytest.mark.s3
def test_an_object_that_vanishes_while_open_is_missing(s3: str) -> None:
    store = Store(s3)
    store.write("x", b"1")
    with store.open("x") as handle:
        store.delete("x")
        with pytest.raises(MissingError, match=f"^{s3}/x: "):
            handle.read()


@pytest.mark.s3
def test_folder_markers_are_no_objects(s3: str, s3_server: S3Server) -> None:
    for marker in ("place/", "place/a/"):
        s3_server.client().put_object(Bucket=s3.removeprefix("s3://"), Key=marker, Body=b"")
    store = Store(f"{s3}/place")
    assert names(store) == []
    store.write("a/x", b"1")
    assert names(store) == names(store, "a") == ["a/x"]


@pytest.mark.s3
def test_no_credentials_are_a_clear_error(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StoreError, match=r"no credentials.*AWS_ACCESS_KEY_ID"):
        Store(f"{s3}/place").read("x")


@pytest.mark.s3
def test_whole_run_on_s3_gives_what_it_gives_on_files(
    s3: str, shards: Path, weights: Path, tmp_path: Path
) -> None:
    source, output = Store(f"{s3}/in"), Store(f"{s3}/out")
    for name in names(Store(str(shards))):
        source.write(name, (shards / name).read_bytes())
    Store(s3).write("tiny.safetensors", weights.read_bytes())
    run(world.config(shards, tmp_path / "out", weights))
    config = world.config(source.url, output.url, f"{s3}/tiny.safetensors")
    assert run(config).exit_code == 0
    tops = ("masks/", "png/", "tar/", "stats/scores.json")
    local = Store(str(tmp_path / "out"))
    expected = {name: local.read(name) for name in names(local) if name.startswith(tops)}
    assert len(expected) == 3 + 12 + 3 + 1
    assert {n: output.read(n) for n in names(output) if n.startswith(tops)} == expected
    assert verify(output, deep=True).problems == ()
    assert "_lease.json" not in names(output)
    again = run(config)
    assert (again.done_now, again.committed) == (0, 3)
    source.write("s1.tar", world.tar(world.samples(7, images=2)))
    assert run(config).done_now == 1
    assert json.loads(output.read("_commits/s1.json"))["images"] == 2


def test_a_local_file_is_put_whole(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.storage import s3 as store_s3

    monkeypatch.setattr(store_s3, "PART_BYTES", 5 * 2**20)  # the least that S3 takes for a part
    source = tmp_path / "source"
    for size in (0, 10, 11 * 2**20):
        source.write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
        store.write("a/b.bin", b"older")
        store.upload("a/b.bin", source)
        assert store.read("a/b.bin") == source.read_bytes()
    assert names(store) == ["a/b.bin"]


def test_listings_tell_when_objects_were_changed(store: Store) -> None:
    before = time.time()
    store.write("a", b"1")
    (info,) = store.listing()
    assert info.modified is not None and before - 2 < info.modified < time.time() + 2
