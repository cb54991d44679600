"""`fcnseg doctor` says what is missing before anything is started, and blocks on nothing else."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ComputeConfig, InputConfig
from pipeline.doctor import checks as doctor
from pipeline.doctor import machine as doctor_machine
from pipeline.doctor.checks import clock_skew, examine_input, examine_output, examine_weights
from pipeline.doctor.finding import Finding
from pipeline.doctor.machine import examine_device, examine_machine, examine_packages
from pipeline.driver import plan
from pipeline.errors import InputError
from pipeline.storage.options import StoreOptions
from pipeline.storage.store import Store
from tests.conftest import use_s3
from tests.support import world
from tests.support.ray_head import RayHead, ray_head
from tests.support.s3_server import S3Server

Fcnseg = Callable[..., tuple[int, str, str]]


def levels(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.subject: finding.level for finding in findings}


# Packages


def test_the_packages_of_this_environment_block_nothing() -> None:
    assert not [finding for finding in examine_packages() if finding.blocks]


@pytest.mark.parametrize(
    ("version", "level"), [("2.60.0", None), ("2.59.0", "warning"), (None, "problem")]
)
def test_a_package_of_another_version_is_told(
    version: str | None, level: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = metadata.version

    def pretend(name: str) -> str:
        if name != "ray":
            return really(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", pretend)
    found = {item.subject: item for item in examine_packages()}
    assert ("ray" in found) == (level is not None)
    if level is not None:
        assert found["ray"].level == level
        assert ">=2.60" in found["ray"].remedy
        assert found["ray"].found.startswith(version or "not installed")


def test_another_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.9.2")
    assert levels(examine_packages())["Python"] == "problem"


# The machine


@dataclass(frozen=True)
class Usage:
    total: int
    free: int


def test_a_full_disk_and_a_small_dev_shm_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"/dev/shm": Usage(2**26, 2**26)}
    monkeypatch.setattr("shutil.disk_usage", lambda at: small.get(at, Usage(100 * 2**30, 2**30)))
    alone = {item.subject: item for item in examine_machine(embeds_ray=False)}
    with_ray = {item.subject: item for item in examine_machine(embeds_ray=True)}
    disk = f"disk {tempfile.gettempdir()}"
    assert "TMPDIR" in alone[disk].remedy and "/dev/shm" not in alone
    assert "99% used" in with_ray[disk].found and "OutOfDiskError" in with_ray[disk].remedy
    assert with_ray["/dev/shm"].found == "0.1 GiB free; Ray's object store needs 0.5 GiB"
    assert {item.level for item in with_ray.values()} <= {"ok", "warning"}


@pytest.mark.parametrize(
    ("limits", "level"),
    [((1024, 65536), "warning"), ((1024, 1024), "warning"), ((8192, 8192), "ok"),
     ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), "ok")],
)  # fmt: skip
def test_few_open_files_are_told(
    limits: tuple[int, int], level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    found = {item.subject: item for item in examine_machine(embeds_ray=False)}["open files"]
    assert found.level == level
    if limits == (1024, 65536):
        assert "ulimit -n 8192" in found.remedy


def test_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.workers.supervisor.machine_memory", lambda: 2**30)
    assert levels(examine_machine(embeds_ray=False))["memory"] == "warning"


@pytest.mark.parametrize(
    ("wanted", "driver", "level", "word"),
    [("auto", None, "ok", "CPU cores"), ("cuda", None, "problem", "no NVIDIA driver"),
     ("auto", "NVIDIA L4; driver 535.1", "warning", "Update the driver"),
     ("cuda", "NVIDIA L4; driver 535.1", "problem", "NVIDIA L4")],
)  # fmt: skip
def test_a_missing_device_is_told(
    wanted: str, driver: str | None, level: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor_machine, "nvidia_driver", lambda: driver)
    (found,) = examine_device(wanted)
    assert (found.level, word in str(found)) == (level, True)


# Weights and stores


def test_weights_are_named_or_refused(tmp_path: Path, weights: Path) -> None:
    def look(path: Path | str | None) -> list[Finding]:
        return list(examine_weights(world.config(tmp_path / "in", tmp_path / "out", path)))

    assert look(None) == []
    (shipped,) = look("demo")
    assert shipped.level == "ok" and "fcn8s, 6 classes (scenes)" in shipped.found
    (missing,) = look(tmp_path / "none.safetensors")
    assert missing.blocks and "no such file" in missing.found
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:1000])
    (damaged,) = look(cut)
    assert damaged.blocks and "cut.safetensors" in damaged.subject


def look_at(url: str, options: StoreOptions | None = None) -> list[Finding]:
    return list(examine_input(InputConfig(url=url, store=options or StoreOptions())))


def test_an_input_without_objects_is_a_problem(tmp_path: Path, shards: Path) -> None:
    (there,) = look_at(str(shards))
    assert (there.level, "s0.tar" in there.found) == ("ok", True)
    (empty,) = look_at(str(tmp_path / "none"))
    assert empty.blocks


@pytest.mark.parametrize("name", [b"z\xff.txt", b"sub/\xe9.jpg"])
def test_a_name_that_plan_refuses_is_a_problem_in_the_same_words(
    name: bytes, tmp_path: Path, shards: Path
) -> None:
    there = os.path.join(os.fsencode(shards), name)
    os.makedirs(os.path.dirname(there), exist_ok=True)
    with open(there, "wb"):
        pass
    with pytest.raises(InputError, match="names in UTF-8") as refused:
        plan(world.config(shards, tmp_path / "out", None))
    assert look_at(str(shards)) == [Finding.of(refused.value)]


def test_an_output_is_left_as_it_was(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    store.write("kept", b"1")
    assert {finding.level for finding in examine_output(store)} == {"ok"}
    assert [info.path for info in store.listing()] == ["kept"]
    assert store.read("kept") == b"1"


def test_an_output_that_is_not_there_is_not_there_afterwards(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    assert {finding.level for finding in examine_output(Store(f"{tmp_path}/top/a/b"))} == {"ok"}
    assert list(tmp_path.rglob("*")) == [tmp_path / "top"]


def test_a_store_without_conditions_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"memory://doctor-{os.getpid()}")
    held = store.probe()
    monkeypatch.setattr(Store, "probe", lambda self: replace(held, compare_and_swap=False))
    told = [finding for finding in examine_output(store) if finding.level == "warning"]
    assert [finding.found for finding in told] == [
        "not supported: replaces only the expected version (If-Match)"
    ]


def test_an_output_under_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (found,) = examine_output(Store(str(tmp_path / "file" / "out")))
    assert found.blocks


@pytest.mark.s3
@pytest.mark.parametrize(("off", "level"), [(0.0, "ok"), (-600.0, "warning"), (600.0, "warning")])
def test_a_wrong_clock_is_told(
    off: float, level: str, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    monkeypatch.setattr(
        doctor, "time", type("Clock", (), {"time": staticmethod(lambda: now() - off)})
    )
    store = Store(f"{s3}/out")
    skew = clock_skew(store)
    assert skew is not None and abs(skew - off) < 5 and store.objects() == []
    assert [item.level for item in examine_output(store) if "clock" in item.found] == [level]


@pytest.mark.s3
def test_rights_are_told_apart(
    s3_server: S3Server, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(f"{s3}/in").write("a.tar", world.tar(world.samples(0)))
    assert levels(examine_output(Store(f"{s3}/out")))[f"OUTPUT {s3}/out"] == "ok"
    s3_server.share(s3.removeprefix("s3://"))
    use_s3(monkeypatch, s3_server.reader.environment(s3_server.url))
    assert [item.level for item in look_at(f"{s3}/in")] == ["ok"]
    (refused,) = examine_output(Store(f"{s3}/out"))
    assert refused.blocks and "permission denied" in refused.found
    nowhere = StoreOptions(endpoint_url="http://127.0.0.1:1", attempts=1)
    (silent,) = look_at(f"{s3}/in", nowhere)
    assert silent.blocks and "no connection" in silent.found


# The cluster: what a run asks for, and the token

GPU, CPU = {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}


@pytest.mark.parametrize(
    ("compute", "nodes", "level", "word"),
    [
        ({"device": "cuda"}, [CPU], "problem", "asks for 1 GPU per worker, the cluster has none"),
        ({"device": "cuda"}, [], "problem", "the cluster has none"),
        ({"device": "auto"}, [CPU], "ok", "networks run on CPUs"),
        ({"device": "cpu"}, [GPU], "ok", "networks run on CPUs"),
        ({"gpus_per_worker": 2.0}, [GPU, GPU], "problem", "no node has more than 1"),
        ({"workers": 3}, [GPU, GPU], "warning", "asks for 3 workers of 1 GPU, the cluster has 2"),
        ({"workers": 3, "gpus_per_worker": 0.5}, [GPU, GPU], "ok", "2 on 2 nodes"),
        ({}, [GPU, CPU, CPU], "ok", "1 on 1 node"),
    ],
)
def test_what_the_cluster_lacks_is_told_in_words(
    compute: dict[str, Any], nodes: list[dict[str, float]], level: str, word: str
) -> None:
    from pipeline.doctor.ray_cluster import judge_resources
    from pipeline.executors.placement import Node

    there = [Node(str(i), f"10.0.0.{i}", resources) for i, resources in enumerate(nodes)]
    found = {item.subject: item for item in judge_resources(ComputeConfig(**compute), there)}
    assert (found["GPUs"].level, word in found["GPUs"].found) == (level, True)
    assert found["CPUs"].level == ("ok" if nodes else "warning")


TOKEN = "a-token-that-nobody-may-see-0123456789"


@pytest.mark.parametrize(
    ("environment", "in_home", "level"),
    [
        ({"RAY_AUTH_TOKEN": TOKEN}, False, "ok"),
        ({}, True, "ok"),
        ({}, False, "warning"),
        ({"RAY_AUTH_MODE": "token"}, False, "problem"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": TOKEN}, True, "warning"),
        ({"RAY_AUTH_TOKEN_PATH": "/none"}, True, "problem"),
    ],
)
def test_a_token_is_looked_for_where_ray_does(
    environment: dict[str, str], in_home: bool, level: str, tmp_path: Path
) -> None:
    from pipeline.doctor.ray_cluster import examine_token

    if in_home:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray/auth_token").write_text(TOKEN)
    found = examine_token(environment, tmp_path)
    assert found.level == level and TOKEN not in str(found)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayHead]:
    """A Ray head of its own, which demands a token."""
    with ray_head() as head:
        yield head


def ask(head: RayHead, *arguments: str, token: str = "") -> tuple[int, dict[str, dict[str, str]]]:
    """`fcnseg doctor` in a process of its own: what a process has sent as token, it keeps."""
    environment = head.environment()
    if token:
        environment["RAY_AUTH_TOKEN"] = token
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "doctor", "--json", *arguments],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert environment["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr
    found = json.loads(done.stdout)["findings"]
    return done.returncode, {item["subject"]: item for item in found}


@pytest.mark.ray
def test_a_cluster_is_examined_node_by_node(
    cluster: RayHead, shards: Path, weights: Path, tmp_path: Path
) -> None:
    code, found = ask(
        cluster, "--address", cluster.address, "--input", str(shards), "--weights", str(weights),
        "--output", str(tmp_path / "out"),
    )  # fmt: skip
    assert code == 0, [item for item in found.values() if item["level"] != "ok"]
    nodes = [name for name in found if name.startswith("node ")]
    assert any(f"INPUT {shards}" in name for name in nodes)
    assert any(f"weights {weights}" in name for name in nodes)
    assert any(f"OUTPUT {tmp_path}/out" in name for name in nodes)
    assert found["CPUs"]["found"] == "2 on 1 node"


@pytest.mark.ray
def test_a_cluster_without_gpus_and_a_wrong_token_block(cluster: RayHead) -> None:
    code, found = ask(cluster, "--address", cluster.dashboard, "--set", "compute.device=cuda")
    assert code == 1
    assert found["GPUs"]["found"] == "asks for 1 GPU per worker, the cluster has none"
    assert found[f"ray {cluster.dashboard}"]["level"] == "warning"  # its nodes are out of reach
    code, found = ask(cluster, "--address", cluster.dashboard, token="another-token-0123456789")
    assert code == 1
    assert "Invalid authentication token" in found[f"ray {cluster.dashboard}"]["found"]


# The command


def test_the_command_streams_lines_and_exits_1_on_a_problem(
    fcnseg: Fcnseg, shards: Path, tmp_path: Path
) -> None:
    fine = ("--input", shards, "--output", tmp_path / "out", "--weights", "demo")
    code, out, err = fcnseg("doctor", *fine)
    assert (code, "nothing blocks a run" in err) == (0, True)
    assert all(line.split()[0] in ("ok", "warning") for line in out.splitlines())
    code, out, err = fcnseg("doctor", "--input", tmp_path / "none", "--json")
    document = json.loads(out)
    assert (code, document["ready"]) == (1, False)
    assert [item["subject"] for item in document["findings"] if item["level"] == "problem"] == [
        f"INPUT {tmp_path / 'none'}"
    ]


def test_places_may_come_from_a_file_or_from_set(
    fcnseg: Fcnseg, shards: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"input: {{url: {shards}}}\n")
    code, out, _ = fcnseg("doctor", "--config", file, "--set", f"output.url={tmp_path / 'out'}")
    assert code == 0 and f"INPUT {shards}" in out and f"OUTPUT {tmp_path / 'out'}" in out
    code, out, _ = fcnseg("doctor")
    assert code == 0 and "INPUT" not in out and "OUTPUT" not in out
