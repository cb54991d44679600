"""Runs as jobs of a real Ray cluster with a token: submitted, attached to, stopped, resumed."""

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
from pipeline.ray_jobs.ray_submit import JobOptions, job_of, submit_or_attach
from pipeline.storage.store import Store
from tests.support import poison, world
from tests.support.ray_head import RayHead, Relay, ray_head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs/ray.md").read_text()


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    """A cluster for all tests of this module."""
    with ray_head() as found:
        yield found


@pytest.fixture(autouse=True)
def client(head: RayHead, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, and those it starts, know the token."""
    head.admit(monkeypatch)


@pytest.fixture(autouse=True)
def secrecy(head: RayHead, tmp_path: Path) -> Iterator[None]:
    """What a test wrote, which includes what it heard, does not hold the token."""
    yield
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or head.token.encode() not in path.read_bytes(), path


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "pipeline", *map(str, words)]


def heard(words: list[str], folder: Path, **more: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command; kept in a file for `secrecy`."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, **more)  # type: ignore[call-overload]
    (folder / f"heard-{time.monotonic_ns()}").write_text(done.stdout + done.stderr)
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
def obeying(tmp_path: Path) -> Path:
    """A runtime environment whose workers obey poisonous pictures."""
    site = poison.install(tmp_path / "site")
    path = tmp_path / "environment.yaml"
    path.write_text(f"env_vars: {{PYTHONPATH: '{site}{os.pathsep}{ROOT}'}}\n")
    return path


def shards_with_a_bad_picture(root: Path, gate: Path) -> Path:
    """Three shards, one with a bad picture; the last waits at a gate, see `gated`."""
    world.write_shards(root)
    for number, name, member in [
        (1, "bad.jpg", b"no picture"),
        (2, "slow.jpg", poison.picture(f"gate {gate}")),
    ]:
        members = {**world.samples(number), name: member}
        (root / f"s{number}.tar").write_bytes(world.tar(members))
    return root


def test_two_submit_at_once_a_third_attaches_over_a_bad_line_and_all_see_exit_code_3(
    head: RayHead, obeying: Path, weights: Path, tmp_path: Path
) -> None:
    gate, out = tmp_path / "gate", tmp_path / "out"
    source = shards_with_a_bad_picture(tmp_path / "in", gate)
    calm = run(world.config(source, tmp_path / "calm", weights))
    config = world.config(source, out, weights)
    options = JobOptions(runtime_env=read_yaml(obeying.read_text()))
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: submit_or_attach(config, head.dashboard, options), range(2)))
    assert {job.submission_id for job in both} == {both[0].submission_id}
    assert sorted(job.attached for job in both) == [False, True]
    other = world.config(source, out, weights, compute__workers=2)
    with pytest.raises(LeaseError, match=r"compute\.workers = 1.*here compute\.workers = 2"):
        submit_or_attach(other, head.dashboard)
    # Whoever ends a run ends its own job, and not that of another configuration.
    assert job_of(other, head.dashboard) is None
    mine = job_of(config, head.dashboard)
    assert mine is not None and mine.submission_id == both[0].submission_id
    with Relay(head.dashboard) as relay:
        words = command("submit", source, out, *flags(weights), "--address", relay.url, "--json")
        complaints = tmp_path / "complaints"
        with complaints.open("w") as stderr:
            third = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, text=True)
        looks = follow(head.dashboard, both[0].submission_id, PollInterval(interval=0.2))
        seen = [next(look for look in looks if look.run is not None)]
        wait_until(lambda: "attached" in complaints.read_text() or third.poll() is not None)
        relay.cut()
        wait_until(lambda: relay.refused > 1 or third.poll() is not None)
        relay.mend()
        gate.touch()
        seen += looks
        said, _ = third.communicate(timeout=300)
    (tmp_path / "heard").write_text(said)
    assert said, complaints.read_text()
    document = json.loads(said)
    assert (third.returncode, document["exit_code"], document["status"]) == (3, 3, "FAILED")
    assert document["attached"] and document["submission_id"] == both[0].submission_id
    assert (seen[-1].status, seen[-1].exit_code) == ("FAILED", 3)
    assert [look.is_over for look in seen].index(True) == len(seen) - 1
    lines = [line for look in seen for line in look.lines]
    assert "3 shards done now, 3 of 3 in all, 13 images, 1 quarantined" in "\n".join(lines)
    assert [line for line in complaints.read_text().splitlines() if line in lines][-3:] == lines[
        -3:
    ]
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
    code, said, _ = heard(shlex.split(line), tmp_path)
    assert code == 0, said
    assert "3 shards done now, 3 of 3 in all" in said
    assert world.tree(out) == world.tree(tmp_path / "calm")


@pytest.fixture
def gated(tmp_path: Path) -> tuple[Path, Path]:
    """(ten shards, a gate): the last shard has a picture that nobody gets past while it is shut.

    It shuts for the workers of jobs with the runtime environment `obeying`.
    """
    gate = tmp_path / "gate"
    source = world.write_shards(tmp_path / "in", shards=10)
    members = {**world.samples(9), "slow.jpg": poison.picture(f"gate {gate}")}
    (source / "s9.tar").write_bytes(world.tar(members))
    return source, gate


def at_the_gate(gate: Path, looks: Iterator[JobReading]) -> Holder:
    """The driver, as soon as its workers wait at the gate."""
    for look in looks:
        assert not look.is_over, look
        if look.run is not None and Path(f"{gate}.reached").exists():
            return look.run.holder
    raise AssertionError


def test_terminated_and_stopped_in_the_middle_it_resumes_to_the_undisturbed_tree(
    head: RayHead, gated: tuple[Path, Path], obeying: Path, weights: Path, tmp_path: Path
) -> None:
    source, gate = gated
    out = tmp_path / "out"
    config = world.config(source, out, weights)
    submit = command("submit", source, out, *flags(weights), "--address", head.dashboard)
    submit += ["--runtime-env", str(obeying)]
    # By whoever: SIGTERM to the driver, of which Ray keeps the exit code.
    options = JobOptions(runtime_env=read_yaml(obeying.read_text()))
    first = submit_or_attach(config, head.dashboard, options)
    looks = follow(head.dashboard, first.submission_id, PollInterval(interval=0.2))
    os.kill(at_the_gate(gate, looks).pid, signal.SIGTERM)
    rest = list(looks)
    assert (rest[-1].status, rest[-1].exit_code) == ("FAILED", 143)
    lines = [line for look in rest for line in look.lines]
    assert "terminated: run the same command again to resume" in lines
    assert read_lease(Store(str(out))) is None and not (out / "_SUCCESS").exists()
    # By `--stop`, of which Ray keeps no exit code; the one who follows sees it too.
    Path(f"{gate}.reached").unlink()
    follower = subprocess.Popen(submit, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(Path(f"{gate}.reached").exists)
    code, said, _ = heard([*submit, "--stop", "--json"], tmp_path)
    stopped = json.loads(said)
    assert (code, stopped["status"], stopped["exit_code"]) == (0, "STOPPED", 143)
    assert stopped["lease_is_free"] and stopped["submission_id"] != first.submission_id
    assert read_lease(Store(str(out))) is None and not (out / "_SUCCESS").exists()
    said, relayed = follower.communicate(timeout=120)
    assert follower.returncode == 143, relayed
    assert "terminated: run the same command again to resume" in relayed
    # Stopping what has ended changes nothing.
    again = stop(head.dashboard, first.submission_id)
    assert (again.status, again.exit_code, again.lease_is_free) == ("FAILED", 143, True)
    _, said, _ = heard([*submit, "--stop"], tmp_path)
    assert said == f"no job of this cluster works on {out}\n"
    # And the rest.
    gate.touch()
    code, said, complaints = heard(submit, tmp_path)
    assert code == 0 and said.endswith("SUCCEEDED: exit code 0: all done\n"), complaints
    run(world.config(source, tmp_path / "calm", weights))
    assert world.tree(out) == world.tree(tmp_path / "calm")


def test_ctrl_c_stops_following_and_not_the_job(
    head: RayHead, gated: tuple[Path, Path], obeying: Path, weights: Path, tmp_path: Path
) -> None:
    source, gate = gated
    submit = command("submit", source, tmp_path / "out", *flags(weights))
    submit += ["--address", head.dashboard, "--runtime-env", str(obeying)]
    follower = subprocess.Popen(submit, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(Path(f"{gate}.reached").exists)
    follower.send_signal(signal.SIGINT)
    _, said = follower.communicate(timeout=60)
    assert follower.returncode == 130
    name = re.search(r"submitted job (\S+):", said)
    assert name is not None and f"stopped following job {name[1]}, which is still running" in said
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
    code, said, complaints = heard(line, tmp_path, env=environment)
    last = complaints.splitlines()[-1]
    assert (code, said) == (1, "") and last.startswith("error: ") and "RAY_AUTH_TOKEN" in last
    assert "Traceback" not in complaints
    assert len(complaints.splitlines()) == 1 or words == ["run"]  # Ray's core has its say there


def test_every_form_of_address_leads_to_the_dashboard(
    head: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", head.address)
    for address in (head.dashboard, head.dashboard.removeprefix("http://"), head.address, None):
        assert Jobs(address).dashboard == head.dashboard
    # What is asked for wins over the environment.
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert Jobs(head.dashboard).dashboard == head.dashboard


def test_a_runtime_environment_that_ray_cannot_use_is_refused(
    head: RayHead, fcnseg: Callable[..., tuple[int, str, str]], weights: Path, tmp_path: Path
) -> None:
    source = world.write_shards(tmp_path / "in", shards=1)
    submit = ("submit", source, tmp_path / "out", *flags(weights), "--address", head.dashboard)
    code, _, said = fcnseg(*submit, "--working-dir", tmp_path / "nothing")
    assert code == 2 and said.count("\n") == 1 and "nothing" in said and "--working-dir" in said
