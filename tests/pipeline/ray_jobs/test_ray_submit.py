"""Runs as jobs of a real Ray cluster with a token: submit, attach, stop, resume."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.driver import run
from pipeline.errors import LeaseError
from pipeline.formats import read_yaml
from pipeline.output.lease import Holder, read_lease
from pipeline.ray_jobs.ray_client import Jobs
from pipeline.ray_jobs.ray_follow import JobReading, PollInterval, follow, stop
from pipeline.ray_jobs.ray_submit import JobOptions, find_job, submit_or_attach
from pipeline.storage.store import Store
from tests.support import poison, world
from tests.support.ray_head import RayHead, Relay, ray_head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs/ray.md").read_text()


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    """A cluster for all tests of this module."""
    with ray_head() as running:
        yield running


@pytest.fixture(autouse=True)
def client(head: RayHead, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process and its children have the token."""
    head.admit(monkeypatch)


@pytest.fixture(autouse=True)
def secrecy(head: RayHead, tmp_path: Path) -> Iterator[None]:
    """No file that a test wrote (output of commands included) holds the token."""
    yield
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or head.token.encode() not in path.read_bytes(), path


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "pipeline", *map(str, words)]


def run_command(words: list[str], folder: Path, **more: object) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a command; keep them in a file for `secrecy`."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, **more)  # type: ignore[call-overload]
    (folder / f"output-{time.monotonic_ns()}").write_text(done.stdout + done.stderr)
    return done.returncode, done.stdout, done.stderr


def flags(weights: Path) -> list[str]:
    return ["--weights", str(weights), "--masks", "parquet,png,tar", "--workers", "1",
            "--set", "compute.threads_per_worker=1"]  # fmt: skip


def wait_until(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def poison_environment(tmp_path: Path) -> Path:
    """A runtime environment in which poisoned images take effect."""
    site = poison.install(tmp_path / "site")
    path = tmp_path / "environment.yaml"
    path.write_text(f"env_vars: {{PYTHONPATH: '{site}{os.pathsep}{ROOT}'}}\n")
    return path


def shards_with_a_bad_image(root: Path, gate: Path) -> Path:
    """Write three shards, one with a bad image; the last one waits at a gate, see `gated`."""
    world.write_shards(root)
    for number, name, member in [
        (1, "bad.jpg", b"no image"),
        (2, "slow.jpg", poison.image(f"gate {gate}")),
    ]:
        members = {**world.samples(number), name: member}
        (root / f"s{number}.tar").write_bytes(world.tar(members))
    return root


def test_two_submit_at_once_a_third_attaches_over_a_bad_connection_and_all_see_exit_code_3(
    head: RayHead, poison_environment: Path, weights: Path, tmp_path: Path
) -> None:
    gate, out = tmp_path / "gate", tmp_path / "out"
    source = shards_with_a_bad_image(tmp_path / "in", gate)
    calm = run(world.config(source, tmp_path / "calm", weights))
    config = world.config(source, out, weights)
    options = JobOptions(runtime_env=read_yaml(poison_environment.read_text()))
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: submit_or_attach(config, head.dashboard, options), range(2)))
    assert {job.submission_id for job in both} == {both[0].submission_id}
    assert sorted(job.attached for job in both) == [False, True]
    other = world.config(source, out, weights, compute__workers=2)
    with pytest.raises(LeaseError, match=r"compute\.workers = 1.*here compute\.workers = 2"):
        submit_or_attach(other, head.dashboard)
    # A client that stops a run stops only the job of its own configuration.
    assert find_job(other, head.dashboard) is None
    job = find_job(config, head.dashboard)
    assert job is not None and job.submission_id == both[0].submission_id
    with Relay(head.dashboard) as relay:
        words = command("submit", source, out, *flags(weights), "--address", relay.url, "--json")
        log = tmp_path / "stderr"
        with log.open("w") as stderr:
            third = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, text=True)
        readings = follow(head.dashboard, both[0].submission_id, PollInterval(interval=0.2))
        seen = [next(reading for reading in readings if reading.run is not None)]
        wait_until(lambda: "attached" in log.read_text() or third.poll() is not None)
        relay.cut()
        wait_until(lambda: relay.refused > 1 or third.poll() is not None)
        relay.mend()
        gate.touch()
        seen += readings
        stdout, _ = third.communicate(timeout=300)
    (tmp_path / "output").write_text(stdout)
    assert stdout, log.read_text()
    document = json.loads(stdout)
    assert (third.returncode, document["exit_code"], document["status"]) == (3, 3, "FAILED")
    assert document["attached"] and document["submission_id"] == both[0].submission_id
    assert (seen[-1].status, seen[-1].exit_code) == ("FAILED", 3)
    assert [reading.is_over for reading in seen].index(True) == len(seen) - 1
    lines = [line for reading in seen for line in reading.lines]
    assert "3 shards done now, 3 of 3 in all, 13 images, 1 quarantined" in "\n".join(lines)
    assert [line for line in log.read_text().splitlines() if line in lines][-3:] == lines[-3:]
    assert calm.exit_code == 3 and world.tree(out) == world.tree(tmp_path / "calm")


def test_the_job_submit_command_of_the_docs_leaves_the_tree_of_a_local_run(
    head: RayHead, weights: Path, tmp_path: Path
) -> None:
    source, out = world.write_shards(tmp_path / "in"), tmp_path / "out"
    run(world.config(source, tmp_path / "calm", weights, output__masks=["parquet"]))
    block = re.search(r"```sh\n(ray job submit .*?)```", DOCS, re.DOTALL)
    assert block is not None
    line = block.group(1).replace("\\\n", " ")
    for word, value in {
        "http://HEAD:8265": head.dashboard,
        "s3://bucket/images": str(source),
        "s3://bucket/masks": str(out),
        "--weights demo": f"--weights {weights} --workers 1 --set compute.threads_per_worker=1",
    }.items():
        assert word in line
        line = line.replace(word, value)
    code, stdout, _ = run_command(shlex.split(line), tmp_path)
    assert code == 0, stdout
    assert "3 shards done now, 3 of 3 in all" in stdout
    assert world.tree(out) == world.tree(tmp_path / "calm")


@pytest.fixture
def gated(tmp_path: Path) -> tuple[Path, Path]:
    """Ten shards and a gate: an image of the last shard waits until the gate file exists.

    Only workers with the runtime environment `poison_environment` wait.
    """
    gate = tmp_path / "gate"
    source = world.write_shards(tmp_path / "in", shards=10)
    members = {**world.samples(9), "slow.jpg": poison.image(f"gate {gate}")}
    (source / "s9.tar").write_bytes(world.tar(members))
    return source, gate


def wait_for_gate(gate: Path, readings: Iterator[JobReading]) -> Holder:
    """Return the driver as soon as its workers wait at the gate."""
    for reading in readings:
        assert not reading.is_over, reading
        if reading.run is not None and Path(f"{gate}.reached").exists():
            return reading.run.holder
    raise AssertionError


def test_terminated_and_stopped_in_the_middle_it_resumes_to_the_undisturbed_tree(
    head: RayHead, gated: tuple[Path, Path], poison_environment: Path, weights: Path, tmp_path: Path
) -> None:
    source, gate = gated
    out = tmp_path / "out"
    config = world.config(source, out, weights)
    submit = command("submit", source, out, *flags(weights), "--address", head.dashboard)
    submit += ["--runtime-env", str(poison_environment)]
    # SIGTERM to the driver: Ray keeps the exit code.
    options = JobOptions(runtime_env=read_yaml(poison_environment.read_text()))
    first = submit_or_attach(config, head.dashboard, options)
    readings = follow(head.dashboard, first.submission_id, PollInterval(interval=0.2))
    os.kill(wait_for_gate(gate, readings).pid, signal.SIGTERM)
    rest = list(readings)
    assert (rest[-1].status, rest[-1].exit_code) == ("FAILED", 143)
    lines = [line for reading in rest for line in reading.lines]
    assert "terminated: run the same command again to resume" in lines
    assert read_lease(Store(str(out))) is None and not (out / "_SUCCESS").exists()
    # `--stop`: Ray keeps no exit code; the client that follows gets 143 as well.
    Path(f"{gate}.reached").unlink()
    follower = subprocess.Popen(submit, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(Path(f"{gate}.reached").exists)
    code, stdout, _ = run_command([*submit, "--stop", "--json"], tmp_path)
    stopped = json.loads(stdout)
    assert (code, stopped["status"], stopped["exit_code"]) == (0, "STOPPED", 143)
    assert stopped["lease_is_free"] and stopped["submission_id"] != first.submission_id
    assert read_lease(Store(str(out))) is None and not (out / "_SUCCESS").exists()
    _, relayed = follower.communicate(timeout=120)
    assert follower.returncode == 143, relayed
    assert "terminated: run the same command again to resume" in relayed
    # Stopping a job that has ended changes nothing.
    again = stop(head.dashboard, first.submission_id)
    assert (again.status, again.exit_code, again.lease_is_free) == ("FAILED", 143, True)
    _, stdout, _ = run_command([*submit, "--stop"], tmp_path)
    assert stdout == f"no job of this cluster works on {out}\n"
    # The third job finishes the run.
    gate.touch()
    code, stdout, stderr = run_command(submit, tmp_path)
    assert code == 0 and stdout.endswith("SUCCEEDED: exit code 0: all done\n"), stderr
    run(world.config(source, tmp_path / "calm", weights))
    assert world.tree(out) == world.tree(tmp_path / "calm")


def test_ctrl_c_stops_following_and_not_the_job(
    head: RayHead, gated: tuple[Path, Path], poison_environment: Path, weights: Path, tmp_path: Path
) -> None:
    source, gate = gated
    submit = command("submit", source, tmp_path / "out", *flags(weights))
    submit += ["--address", head.dashboard, "--runtime-env", str(poison_environment)]
    follower = subprocess.Popen(submit, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(Path(f"{gate}.reached").exists)
    follower.send_signal(signal.SIGINT)
    _, stderr = follower.communicate(timeout=60)
    assert follower.returncode == 130
    name = re.search(r"submitted job (\S+):", stderr)
    assert name is not None and f"stopped following job {name[1]}, which is still running" in stderr
    assert Jobs(head.dashboard).info(name[1]).status == "RUNNING"  # type: ignore[union-attr]
    gate.touch()
    *_, last = follow(head.dashboard, name[1], PollInterval(interval=0.2))
    assert (last.status, last.exit_code) == ("SUCCEEDED", 0)


@pytest.mark.parametrize("token", ["wrong", None])
@pytest.mark.parametrize("words", [["submit"], ["run"]])
def test_a_wrong_token_is_one_line_that_says_what_to_do(
    head: RayHead, token: str | None, words: list[str], weights: Path, tmp_path: Path
) -> None:
    environment = {**head.environment(), "HOME": str(tmp_path)}
    environment.pop("RAY_AUTH_TOKEN")
    if token is not None:
        environment["RAY_AUTH_TOKEN"] = token
    source = world.write_shards(tmp_path / "in", shards=1)
    address = head.dashboard if words == ["submit"] else head.address
    line = command(*words, source, tmp_path / "out", *flags(weights), "--address", address)
    code, stdout, stderr = run_command(line, tmp_path, env=environment)
    last = stderr.splitlines()[-1]
    assert (code, stdout) == (1, "") and last.startswith("error: ") and "RAY_AUTH_TOKEN" in last
    assert "Traceback" not in stderr
    assert len(stderr.splitlines()) == 1 or words == ["run"]  # Ray's core writes its own lines


def test_every_form_of_address_leads_to_the_dashboard(
    head: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    for address in (head.dashboard, head.dashboard.removeprefix("http://"), head.address, None):
        assert Jobs(address).dashboard == head.dashboard
    # The argument wins over the environment.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert Jobs(head.dashboard).dashboard == head.dashboard


def test_a_runtime_environment_that_ray_cannot_use_is_refused(
    head: RayHead, fcnseg: Callable[..., tuple[int, str, str]], weights: Path, tmp_path: Path
) -> None:
    source = world.write_shards(tmp_path / "in", shards=1)
    submit = ("submit", source, tmp_path / "out", *flags(weights), "--address", head.dashboard)
    code, _, stderr = fcnseg(*submit, "--working-dir", tmp_path / "nothing")
    assert code == 2 and stderr.count("\n") == 1
    assert "nothing" in stderr and "--working-dir" in stderr
