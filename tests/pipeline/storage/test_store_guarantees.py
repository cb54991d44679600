"""What a store promises when several write, and when requests fail on their way."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LeaseError, StoreError
from pipeline.storage import retry
from pipeline.storage.options import StoreOptions
from pipeline.storage.s3 import S3Backend
from pipeline.storage.store import Guarantees, Store, preflight
from tests.conftest import use_s3
from tests.support.faulty_proxy import Faults, FaultyProxy, Rule
from tests.support.s3_server import S3Server

KINDS = ("file", "memory", pytest.param("s3", marks=pytest.mark.s3))


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    place = {
        "file": lambda: str(tmp_path / "place"),
        "memory": lambda: f"memory:/{tmp_path}/place",
        "s3": lambda: f"{request.getfixturevalue('s3')}/place",
    }
    return Store(place[request.param]())


# Tags and compare-and-swap


def test_every_put_tells_the_tag_that_a_look_would(store: Store) -> None:
    created = store.create("a/x", b"1")
    assert created == store.stat("a/x").etag == store.read_tagged("a/x")[1]
    time.sleep(0.02)  # file times have ticks of a few milliseconds
    replaced = store.replace("a/x", b"2", created or "")
    assert replaced == store.stat("a/x").etag != created
    time.sleep(0.02)
    written = store.write("a/x", b"3")
    assert written == store.stat("a/x").etag not in (created, replaced)
    assert [info.etag for info in store.listing()] == [written]


def test_replace_takes_the_version_that_is_meant_and_no_other(store: Store) -> None:
    assert store.replace("x", b"1", "any") is None  # nothing there
    assert store.objects() == []
    old = store.write("x", b"1")
    time.sleep(0.02)
    new = store.replace("x", b"2", old)
    assert new is not None
    assert store.replace("x", b"3", old) is None
    assert store.read("x") == b"2"
    time.sleep(0.02)
    assert store.replace("x", b"3", new) is not None
    assert store.read("x") == b"3"


def test_delete_takes_the_version_that_is_meant_and_no_other(store: Store) -> None:
    old = store.write("x", b"1")
    time.sleep(0.02)
    new = store.write("x", b"2")
    store.delete("x", old)
    assert store.read("x") == b"2"
    store.delete("x", new)
    store.delete("x", new)
    assert store.objects() == []


def test_a_put_that_went_through_unheard_is_ones_own(store: Store) -> None:
    tag = store.create("x", b"1, of mine")
    assert store.create("x", b"1, of mine") == tag
    assert store.create("x", b"1, of another") is None
    time.sleep(0.02)
    new = store.replace("x", b"2, of mine", tag or "")
    assert store.replace("x", b"2, of mine", tag or "") == new
    assert store.replace("x", b"2, of another", tag or "") is None


def test_the_probe_finds_the_guarantees_and_leaves_nothing(store: Store) -> None:
    assert store.probe() == Guarantees(create_only=True, compare_and_swap=True)
    assert store.objects() == []


RACE = """
import sys
from pipeline.storage.store import Store
url, me, *tags = sys.argv[1:]
store, won = Store(url), []
store.objects()
print("ready", flush=True)
sys.stdin.readline()
for n, tag in enumerate(tags):
    if store.create(f"create{n}", f"{me} {n}".encode()):
        won.append(f"create{n}")
    if store.replace(f"swap{n}", f"{me} {n}".encode(), tag):
        won.append(f"swap{n}")
print(" ".join(won))
"""


@pytest.mark.parametrize("kind", ["file", pytest.param("s3", marks=pytest.mark.s3)])
def test_of_racing_processes_exactly_one_wins(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    store = Store(request.getfixturevalue("s3") if kind == "s3" else str(tmp_path))
    rounds, racers = 25, 4
    tags = [store.write(f"swap{n}", b"go%d" % n) for n in range(rounds)]
    command = [sys.executable, "-c", RACE, store.url]
    processes = [
        subprocess.Popen([*command, f"racer{k}", *tags], text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for k in range(racers)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    won = {f"racer{k}": p.communicate()[0].split() for k, p in enumerate(processes)}
    assert all(process.returncode == 0 for process in processes)
    names_won = sorted(name for names in won.values() for name in names)
    assert names_won == sorted(f"{verb}{n}" for verb in ("create", "swap") for n in range(rounds))
    for who, names in won.items():
        for name in names:
            number = name.removeprefix("create").removeprefix("swap")
            assert store.read(name) == f"{who} {number}".encode()


@pytest.mark.s3
def test_sixteen_threads_race_on_s3(s3: str) -> None:
    store = Store(s3)
    tag = store.write("swap", b"0")
    with ThreadPoolExecutor(16) as pool:
        for n in range(10):
            created = list(pool.map(lambda k, n=n: store.create(f"x{n}", b"%d" % k), range(16)))
            assert sum(put is not None for put in created) == 1
            old = tag
            puts = list(
                pool.map(
                    lambda k, n=n, old=old: store.replace("swap", b"%d %d" % (n, k), old),
                    range(16),
                )
            )
            (tag,) = [put for put in puts if put is not None]


# Requests that fail on their way


@pytest.fixture
def proxy(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3_server.url) as proxy:
        use_s3(monkeypatch, s3_server.owner.environment(proxy.url))
        yield proxy


KINDS_OF_FAULTS = ("drop", "reset", "throttle", "error", "lose", "truncate", "delay")


@pytest.mark.s3
@pytest.mark.parametrize("kind", KINDS_OF_FAULTS)
def test_each_verb_survives_each_fault(s3_server: S3Server, proxy: FaultyProxy, kind: str) -> None:
    store = Store(f"s3://{s3_server.new_bucket()}/place")
    big = os.urandom(300_000)
    retry.drain()
    verbs: list[tuple[str, Callable[[], Any], Callable[[Any], bool]]] = [
        ("PUT", lambda: store.create("x", big), lambda tag: tag == store.stat("x").etag),
        ("GET", lambda: store.read("x"), lambda data: data == big),
        ("GET", lambda: store.read("x", 5, 200_000), lambda data: data == big[5:200_000]),
        ("HEAD", lambda: store.stat("x").size, lambda size: size == len(big)),
        ("GET", store.objects, lambda infos: [i.path for i in infos] == ["x"]),
        ("PUT", lambda: store.create("x", b"other"), lambda tag: tag is None),
        ("PUT", lambda: store.replace("x", b"2", store.stat("x").etag), lambda tag: bool(tag)),
        ("PUT", lambda: store.replace("x", b"3", "0" * 32), lambda tag: tag is None),
        ("PUT", lambda: store.write("x", b"4"), lambda tag: store.read("x") == b"4"),
        ("DELETE", lambda: store.delete("x"), lambda _: store.objects() == []),
    ]
    for method, verb, holds in verbs:
        before = proxy.counters[kind]
        proxy.add(Rule(kind, method, seconds=0.05))
        assert holds(verb()), (kind, method)
        assert proxy.counters[kind] == before + 1
    if kind in ("throttle", "error"):  # aiohttp hides what happens to connections
        assert retry.drain() == len(verbs)


@pytest.mark.s3
@pytest.mark.parametrize("seed", range(2))
def test_a_bad_day_changes_nothing(s3_server: S3Server, proxy: FaultyProxy, seed: int) -> None:
    store = Store(f"s3://{s3_server.new_bucket()}", StoreOptions(attempts=20))
    proxy.faults, proxy.seed = Faults(0.05, 0.05, 0.05, 0.05, 0.1, 0.05, 0.0), seed

    def work(n: int) -> bool:
        tag = store.create(f"a/{n}", b"first %d" % n)
        assert tag is not None and store.create(f"a/{n}", b"no") is None
        assert store.replace(f"a/{n}", b"second %d" % n, tag) is not None
        return store.read(f"a/{n}") == b"second %d" % n

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40)))
    assert len(store.objects()) == 40
    assert sum(proxy.counters[kind] for kind in KINDS_OF_FAULTS) > 30


@pytest.mark.s3
def test_a_store_that_stays_bad_is_given_up_in_time(
    s3_server: S3Server, proxy: FaultyProxy
) -> None:
    store = Store(f"s3://{s3_server.new_bucket()}", StoreOptions(attempts=4, retry_seconds=600))
    proxy.add(Rule("throttle", times=None))
    with pytest.raises(StoreError, match=r"503 SlowDown.*gave up after 4 tries"):
        store.write("x", b"1")
    assert proxy.counters["requests"] == 4  # no other layer tries again


@pytest.mark.s3
def test_a_server_that_stops_answering_is_given_up_in_time(
    s3_server: S3Server, proxy: FaultyProxy
) -> None:
    options = StoreOptions(attempts=2, read_timeout=0.3)
    store = Store(f"s3://{s3_server.new_bucket()}", options)
    proxy.add(Rule("stall", times=None))
    started = time.monotonic()
    with pytest.raises(StoreError, match="gave up after 2 tries"):
        store.read("x")
    assert proxy.counters["stall"] == 2
    assert time.monotonic() - started < 30  # read_timeout is 60 by default, for each try


@pytest.mark.s3
def test_a_put_that_lands_after_its_writer_gave_up_is_known_again(
    s3_server: S3Server, proxy: FaultyProxy
) -> None:
    """As with a gateway whose disk hangs: the put times out, and appears."""
    store = Store(f"s3://{s3_server.new_bucket()}", StoreOptions(read_timeout=3))
    proxy.add(Rule("stall-after", "PUT"))
    assert store.create("commit", b"id 1") is not None
    proxy.add(Rule("stall-after", "PUT"))
    assert store.create("commit", b"id 2") is None


# Stores with fewer guarantees


class Forgetful(S3Backend):
    """As servers that do not know the conditions answer: they overwrite."""

    def _put(self, path: str, data: bytes, **condition: str) -> str:
        return super()._put(path, data)


@pytest.mark.s3
def test_a_store_without_conditions_is_found_out_and_used_as_well_as_can_be(
    s3: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.storage.s3.S3Backend", Forgetful)
    store = Store(s3)
    monkeypatch.setattr(logging.getLogger("fcnseg"), "propagate", True)
    preflight(store)
    assert "overwrites an object that should only be created" in caplog.text
    assert "cannot replace only one version" in caplog.text
    assert store.objects() == []
    # By looking first: right as long as no other process writes in that moment.
    tag = store.create("x", b"1")
    assert tag and store.create("x", b"2") is None
    assert store.replace("x", b"2", "0" * 32) is None and store.read("x") == b"1"
    assert store.replace("x", b"2", tag) and store.read("x") == b"2"


def test_a_file_system_without_hard_links_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    store = Store(str(tmp_path))
    assert store.probe() == Guarantees(create_only=False, compare_and_swap=True)
    assert store.create("x", b"1") and store.create("x", b"2") is None
    assert store.read("x") == b"1" and [info.path for info in store.objects()] == ["x"]


def test_a_good_store_is_worth_no_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("fcnseg").addHandler(caplog.handler)
    preflight(Store(str(tmp_path)))
    logging.getLogger("fcnseg").removeHandler(caplog.handler)
    assert not caplog.records


# Who lost the right to write


def test_a_guarded_store_asks_before_every_change_and_never_for_a_look(store: Store) -> None:
    tag = store.write("x", b"1")

    def refuse() -> None:
        raise LeaseError("a", "lost", "held")

    guarded = store.guarded(refuse)
    changes: list[Callable[[], object]] = [
        lambda: guarded.write("x", b"2"),
        lambda: guarded.create("y", b"2"),
        lambda: guarded.replace("x", b"2", tag),
        lambda: guarded.delete("x"),
    ]
    for change in changes:
        with pytest.raises(LeaseError):
            change()
    assert guarded.read("x") == b"1" and [i.path for i in guarded.listing()] == ["x"]
    store.write("x", b"2")  # the store itself is as free as before
    pickle.loads(pickle.dumps(guarded)).write("x", b"3")  # the check stays in its process


# Listings

NAMES = st.text(st.sampled_from("ab./-0é☃\U0001f600￿"), min_size=1, max_size=8).filter(
    lambda name: all(part not in ("", ".", "..") for part in name.split("/"))
)


@settings(max_examples=60, deadline=None)
@given(st.sets(NAMES, max_size=12))
def test_files_are_listed_in_byte_order_as_a_store_of_objects_would(
    tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    folders = {n.rsplit("/", k)[0] for n in names for k in range(1, n.count("/") + 1)}
    names -= folders  # a path is a file or a folder
    root = tmp_path_factory.mktemp("names")
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    listed = [info.path for info in Store(str(root)).listing()]
    assert listed == sorted(names, key=os.fsencode)


@pytest.mark.s3
def test_s3_lists_all_pages_in_the_same_order_as_files(s3: str, tmp_path: Path) -> None:
    tops, middles = ("a/", "a.", "é"), ("", "b/", "☃")
    names = [f"{a}{b}{n:03d}" for n in range(90) for a in tops for b in middles]
    store, files = Store(f"{s3}/x"), Store(str(tmp_path))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: (store.write(name, b""), files.write(name, b"")), names))
    Store(s3).write("x.other", b"")
    listed = [info.path for info in store.listing()]
    assert listed == [info.path for info in files.listing()] == sorted(names, key=os.fsencode)
    below = [name for name in listed if name.startswith("a/b/")]
    assert [info.path for info in store.listing("a/b")] == below


@pytest.mark.s3
def test_listing_is_a_stream_of_pages(s3_server: S3Server, proxy: FaultyProxy) -> None:
    bucket = s3_server.new_bucket()
    put = s3_server.client().put_object
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: put(Bucket=bucket, Key=f"{n:04d}", Body=b""), range(1100)))
    store = Store(f"s3://{bucket}")
    before = proxy.counters["requests"]
    listing = store.listing()
    assert next(listing).path == "0000"
    assert proxy.counters["requests"] == before + 1
    proxy.add(Rule("truncate", "GET"))  # the second page, which is then asked for again
    assert sum(1 for _ in listing) == 1099
    assert proxy.counters["requests"] >= before + 3


# Options


@pytest.mark.s3
def test_options_reach_the_server_and_travel(
    s3: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Store(s3).write("x", b"1")
    user = s3_server.owner
    credentials = tmp_path / "credentials"
    credentials.write_text(
        f"[me]\naws_access_key_id = {user.access_key}\naws_secret_access_key = {user.secret_key}\n"
    )
    use_s3(monkeypatch, {"AWS_SHARED_CREDENTIALS_FILE": str(credentials)})
    options = StoreOptions(endpoint_url=s3_server.url, region="us-east-1", profile="me")
    store: Store = pickle.loads(pickle.dumps(Store(s3, options)))
    assert store.read("x") == b"1" and store.options == options
    with pytest.raises(StoreError, match="permission denied"):
        Store(s3, StoreOptions(endpoint_url=s3_server.url, anonymous=True)).read("x")


@pytest.mark.s3
def test_anonymous_reads_what_is_public(s3: str, s3_server: S3Server) -> None:
    Store(s3).write("x", b"1")
    bucket = s3.removeprefix("s3://")
    s3_server.client().put_object_acl(Bucket=bucket, Key="x", ACL="public-read")
    assert Store(s3, StoreOptions(anonymous=True)).read("x") == b"1"


def test_a_named_endpoint_means_path_style(monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, {})
    assert StoreOptions().resolved_addressing == "virtual"
    assert StoreOptions(addressing="path").resolved_addressing == "path"
    named = StoreOptions(endpoint_url="https://s3.example.org")
    assert named.resolved_addressing == "path"
    amazon = StoreOptions(endpoint_url="https://s3.eu-west-1.amazonaws.com")
    assert amazon.resolved_addressing == "virtual"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:7480")
    assert StoreOptions().resolved_addressing == "path"


def test_what_botocore_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    use_s3(monkeypatch, {})
    options = StoreOptions(
        region="r", verify_tls=False, connect_timeout=1, read_timeout=2, endpoint_url="http://h"
    )
    client: Any = Store("s3://bucket/a", options)._open()
    client.fs.connect()
    config = client.fs.s3.meta.config
    assert (config.region_name, config.connect_timeout, config.read_timeout) == ("r", 1, 2)
    assert config.retries["total_max_attempts"] == 1 and client.fs.retries == 1
    assert client.fs.s3.meta.endpoint_url == "http://h"
    assert config.s3["addressing_style"] == "path"


def test_a_forked_child_makes_its_own_client(store: Store) -> None:
    store.write("x", b"1")
    mine = store._open()
    pid = os.getpid()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pid + 1)
        assert store._open() is not mine
