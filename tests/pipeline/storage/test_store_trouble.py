"""Whatever ails a store: a clear message, exit 1, nothing half-committed, no secret told."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.driver import run
from pipeline.errors import ConfigError, MissingError, StoreError
from pipeline.output.verify import verify
from pipeline.redact import masked
from pipeline.storage.errors import explain
from pipeline.storage.options import StoreOptions
from pipeline.storage.store import Store
from tests.conftest import use_s3
from tests.support import world
from tests.support.faulty_proxy import FaultyProxy, Rule
from tests.support.s3_server import S3Server

Fcnseg = Callable[..., tuple[int, str, str]]
TOKEN = "FwoGZXIvYXdzEBYaDKz-a-session-token-that-nobody-may-see"


@pytest.fixture
def source(s3: str, shards: Path) -> str:
    """Three shards in a bucket."""
    store = Store(f"{s3}/in")
    for path in shards.iterdir():
        store.write(path.name, path.read_bytes())
    return store.url


@pytest.fixture
def label(
    fcnseg: Fcnseg, weights: Path, s3_server: S3Server, caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[int, str]]:
    """`fcnseg run` with more arguments: (exit code, everything that was said)."""

    def call(source: str, output: str | Path, *more: str) -> tuple[int, str]:
        fixed = ("--executor", "local", "--workers", 1, "--set", "compute.threads_per_worker=1")
        code, out, err = fcnseg("run", source, output, "--weights", weights, *fixed, *more)
        said = out + err + caplog.text
        for secret in (s3_server.owner.secret_key, s3_server.reader.secret_key, TOKEN, "wrong-key"):
            assert secret not in said
        return code, said

    return call


def objects(url: str) -> dict[str, bytes]:
    store = Store(url)
    return {info.path: store.read(info.path) for info in store.listing()}


def owner(server: S3Server, monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    """The owner's environment, but for some names and values."""
    use_s3(monkeypatch, {**server.owner.environment(server.url), **changes})


WRONG = {
    "unknown access key": (
        {"AWS_ACCESS_KEY_ID": "NOBODY"},
        "an access key unknown to the store",
    ),
    "wrong secret key": (
        {"AWS_SECRET_ACCESS_KEY": "wrong-key"},
        "a secret key that does not match the access key",
    ),
    "half of the keys": ({"AWS_SECRET_ACCESS_KEY": ""}, "credentials"),
    "no keys": ({"AWS_SECRET_ACCESS_KEY": "", "AWS_ACCESS_KEY_ID": ""}, "no credentials"),
    "no such profile": ({"AWS_PROFILE": "nobody"}, "a profile that does not exist"),
    "nobody listens": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "no connection"),
    "unknown host": ({"AWS_ENDPOINT_URL": "http://no.such.host.invalid"}, "no connection"),
}


@pytest.mark.s3
@pytest.mark.parametrize("what", WRONG)
def test_a_store_that_cannot_be_used_is_said_at_once(
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    label: Callable[..., tuple[int, str]],
    what: str,
    tmp_path: Path,
) -> None:
    changes, found = WRONG[what]
    output = source.replace("/in", "/out")
    owner(s3_server, monkeypatch, **{k: v for k, v in changes.items() if v})
    for name, value in changes.items():
        if not value:
            monkeypatch.delenv(name)
    for place, target in ((source, tmp_path / "out"), (str(tmp_path / "in"), output)):
        world.write_shards(tmp_path / "in")
        code, said = label(place, str(target))
        assert (code, found in said) == (1, True), said
        assert said.count("error: ") == 1 and "Traceback" not in said
    assert not (tmp_path / "out").exists()
    owner(s3_server, monkeypatch)
    assert objects(output) == {}


def test_a_web_server_that_does_not_run_is_no_missing_file() -> None:
    with pytest.raises(StoreError, match=r"Cannot connect to host 127.*gave up after 3 tries") as e:
        Store("http://127.0.0.1:9/shards").read("a.tar")
    assert not isinstance(e.value, MissingError)


@pytest.mark.s3
@pytest.mark.parametrize("side", ["input", "output"])
def test_a_missing_bucket(
    source: str, label: Callable[..., tuple[int, str]], side: str, tmp_path: Path
) -> None:
    missing = "s3://no-such-bucket-here/place"
    places = (missing, str(tmp_path / "out")) if side == "input" else (source, missing)
    code, said = label(*places)
    assert code == 1 and f"error: {missing}" in said and "no such bucket" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.s3
def test_a_bucket_that_may_only_be_read(
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    label: Callable[..., tuple[int, str]],
    tmp_path: Path,
) -> None:
    s3_server.share(source.split("/")[2])
    use_s3(monkeypatch, s3_server.reader.environment(s3_server.url))
    output = source.replace("/in", "/out")
    code, said = label(source, output)
    assert code == 1 and "permission denied" in said and "policy of the bucket" in said
    assert objects(output) == {}
    assert label(source, tmp_path / "out")[0] == 0  # as an input it does


@pytest.mark.s3
def test_a_session_that_ends_during_a_run_is_said_and_resumed_from(
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    label: Callable[..., tuple[int, str]],
    weights: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(
        "pipeline.output.lease.SECONDS", 600.0
    )  # else a slow run loses its lease first
    output = source.replace("/in", "/out")
    with FaultyProxy(s3_server.url) as proxy:
        session = {"AWS_ENDPOINT_URL": proxy.url, "AWS_SESSION_TOKEN": TOKEN}
        owner(s3_server, monkeypatch, **session)
        # After the second commit, nothing works any more.
        proxy.add(Rule("expire", "PUT", "*/_commits/*", skip=2, times=1, with_token=True))
        proxy.add(Rule("expire", "PUT", "*/_lease.json", skip=1, times=None, with_token=True))
        code, said = label(source, output)
    assert code == 1 and "the session token has expired" in said and "Get new credentials" in said
    assert proxy.counters["expire"]
    owner(s3_server, monkeypatch)
    left = objects(output)
    assert len([name for name in left if name.startswith("_commits/")]) == 2
    assert verify(Store(output), deep=True).problems == ()
    assert not any(TOKEN.encode() in data for data in left.values())
    assert label(source, output)[0] == 0
    run(world.config(source, tmp_path / "calm", weights, output__masks=("parquet",)))
    calm = objects(str(tmp_path / "calm"))
    tops = ("masks/", "stats/scores.json")
    assert {n: d for n, d in objects(output).items() if n.startswith(tops)} == {
        n: d for n, d in calm.items() if n.startswith(tops)
    }


@pytest.mark.s3
@pytest.mark.parametrize(
    "executor", ["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])]
)
def test_what_was_tried_again_is_counted_wherever_it_happened(
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    weights: Path,
    tmp_path: Path,
    executor: str,
) -> None:
    output = source.replace("/in", "/out")
    with FaultyProxy(s3_server.url) as proxy:
        environment = {**os.environ, **s3_server.owner.environment(proxy.url)}
        proxy.add(Rule("throttle", "GET", "*/in/s0.tar", times=2))  # a reader
        proxy.add(Rule("throttle", "PUT", "*/out/masks/*", times=3))  # a writer
        proxy.add(Rule("throttle", "PUT", "*/out/_commits/*", times=4))  # the driver
        proxy.add(Rule("throttle", "PUT", "*/out/stats/scores.json", times=5))  # at the end
        command = [sys.executable, "-m", "pipeline", "run", source, output, "--json",
                   "--weights", str(weights), "--executor", executor, "--workers", "1",
                   "--set", "compute.threads_per_worker=1"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert proxy.counters["throttle"] == 2 + 3 + 4 + 5
    assert json.loads(done.stdout)["store_retries"] == 2 + 3 + 4 + 5


@pytest.mark.s3
def test_no_object_ever_holds_a_secret(
    s3_server: S3Server, source: str, label: Callable[..., tuple[int, str]]
) -> None:
    output = source.replace("/in", "/out")
    # A damaged shard and a bad image: their errors go into tables and reports.
    Store(source).write("broken.tar", b"no tar")
    Store(source).write("bad.tar", world.tar({"a.jpg": b"no image"}))
    endpoint = f"output.store.endpoint_url={s3_server.url}"
    code, said = label(source, output, "--set", endpoint)
    assert code == 4 and "broken" in said
    found = objects(output)
    assert "report.html" in found and "_quarantine/bad.parquet" in found
    secrets = [s3_server.owner.secret_key.encode(), s3_server.owner.access_key.encode()]
    assert not [n for n, data in found.items() for secret in secrets if secret in data]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(
    tiny_disk: Path, shards: Path, weights: Path, fcnseg: Fcnseg, tmp_path: Path
) -> None:
    filler = tiny_disk / "filler"
    filler.write_bytes(bytes((8192 - 90) * 1024))  # some shards fit, not all
    command = ("run", shards, tiny_disk / "out", "--weights", weights, "--executor", "local",
               "--workers", 1, "--masks", "parquet,png,tar",
               "--set", "compute.threads_per_worker=1")  # fmt: skip
    code, _, err = fcnseg(*command)
    assert code == 1 and "the store is full" in err and "Free space" in err
    names = [path.name for path in tiny_disk.rglob("*") if path.is_file()]
    assert not [name for name in names if name.startswith(".fcnseg-tmp-")]
    assert "_lease.json" not in names and "_SUCCESS" not in names
    assert verify(Store(str(tiny_disk / "out")), deep=True).problems == ()
    filler.unlink()
    code, _, err = fcnseg(*command)
    assert code == 0, err
    run(world.config(shards, tmp_path / "calm", weights))
    assert world.tree(tiny_disk / "out") == world.tree(tmp_path / "calm")


def test_a_file_larger_than_the_system_allows_is_a_full_store(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    """The same without a right to mount: no file over 2 KiB."""
    command = [sys.executable, "-m", "pipeline", "run", str(shards), str(tmp_path / "out"),
               "--weights", str(weights), "--executor", "local", "--workers", "1",
               "--set", "compute.threads_per_worker=1"]  # fmt: skip

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1, done.stderr
    assert "error: " in done.stderr and "the store is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob("_commits/*"))
    assert not list((tmp_path / "out").rglob(".fcnseg-tmp-*"))


@pytest.mark.parametrize(
    "url", ["s3://key:SECRET@bucket/a", "gs://me:SECRET@bucket", "ftp://me:SECRET@host/a"]
)
def test_credentials_in_a_url_are_refused_and_not_repeated(
    url: str, fcnseg: Fcnseg, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="credentials in a URL") as caught:
        Store(url)
    assert "SECRET" not in str(caught.value) and "environment" in caught.value.remedy
    for command in (("run", url, tmp_path / "o"), ("run", tmp_path, url), ("status", url)):
        code, out, err = fcnseg(*command, *(("--weights", "demo") * (command[0] == "run")))
        assert code == 2 and "SECRET" not in out + err


def test_credentials_in_an_endpoint_are_refused_and_not_repeated(
    fcnseg: Fcnseg, tmp_path: Path
) -> None:
    setting = "output.store.endpoint_url=http://me:SECRET@host"
    code, out, err = fcnseg("status", tmp_path, "--set", setting)
    assert code == 2 and "without a user or password" in err and "SECRET" not in out + err
    code, out, err = fcnseg("status", tmp_path, "--set", "output.store.secret=SECRET")
    assert code == 2 and "an unknown key" in err and "endpoint_url" in err
    assert "SECRET" not in out + err


@pytest.mark.parametrize(
    "text",
    [
        "https://h/a?X-Amz-Signature=SECRET&x=1",
        "https://h/a?x=1&X-Amz-Security-Token=SECRET",
        "could not read http://me:SECRET@h/a, nor https://h/b?sig=SECRET",
        "https://h/a?token=SECRET",
    ],
)
def test_what_is_secret_in_an_address_is_masked(text: str) -> None:
    assert "SECRET" not in masked(text) and "***" in masked(text)
    assert masked(masked(text)) == masked(text)


def test_signed_addresses_may_be_read_and_are_told_without_their_signature() -> None:
    store = Store("https://127.0.0.1:9/a", StoreOptions(attempts=1))
    with pytest.raises(Exception, match=r"w\?sig=\*\*\*") as caught:
        store.read("w?sig=SECRET")
    assert "SECRET" not in str(caught.value)


def test_options_hold_no_credentials() -> None:
    names = set(StoreOptions.model_fields)
    assert not {name for name in names if any(w in name for w in ("key", "secret", "token"))}
    assert json.loads(StoreOptions().model_dump_json())


def test_a_path_of_this_machine_is_told_as_one(tmp_path: Path) -> None:
    """No bucket, no policy; and what cannot be written is no object that is not there."""
    with pytest.raises(MissingError) as missing:
        Store(str(tmp_path)).read("no.jpg")
    assert str(missing.value) == (
        f"{tmp_path}/no.jpg: nothing there; an existing file. Check the path."
    )
    for act in (Store("/proc/foo").probe, lambda: Store("/proc/foo").write("a.png", b"")):
        with pytest.raises(StoreError, match=r"^/proc/foo.*its folder is not writable") as error:
            act()
        assert not isinstance(error.value, MissingError) and "_probe" not in str(error.value)
        assert "bucket" not in str(error.value)
    refused = explain("/x", PermissionError(13, "Permission denied", "/x"))
    assert refused is not None and "ls -ld" in refused.remedy and "bucket" not in refused.remedy


def test_what_the_store_says_holds_for_every_command(
    weights: Path, tmp_path: Path, fcnseg: Fcnseg
) -> None:
    """predict commits nothing."""
    with socket.socket() as deaf:  # bound, and no process listens
        deaf.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/a.jpg"
        code, _, err = fcnseg("predict", url, "--output", tmp_path, "--weights", weights)
    assert code == 1 and f"error: {url}: " in err
    assert "Run the same command again when it works." in err and "commit" not in err
