"""Worker processes: which failure ends which process, and that no process is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcn_core.errors import FcnError
from fcn_core.weights.weights_file import read_weights
from pipeline.errors import WorkerError
from pipeline.inputs.sample import Sample
from pipeline.stages.records import SegmentedPart
from pipeline.stages.spec import NetworkSettings
from pipeline.workers import fork_server as fork_server_module
from pipeline.workers.fork_server import close_fork_server, start_fork_server
from pipeline.workers.shared_weights import SharedWeights
from pipeline.workers.supervisor import (
    StoppedError,
    WorkerFailure,
    WorkerLimits,
    WorkerProcess,
    machine_memory,
)
from tests.support import poison, world

SETTINGS = NetworkSettings(world.TINY, "fp32", "cpu", 1, None, 10**6)
LIMITS = WorkerLimits(stall_seconds=60, memory=2**30, is_default_memory=True)


def sample(data: bytes | None = None, key: str = "a") -> Sample:
    return Sample(key, world.jpeg(world.image(1)) if data is None else data, None, f"s.tar#{key}")


@pytest.fixture
def weights_file(weights: Path) -> Iterator[SharedWeights]:
    shared = SharedWeights(read_weights(weights))
    yield shared
    shared.close()


@pytest.fixture
def worker(weights_file: SharedWeights) -> Iterator[WorkerProcess]:
    process = WorkerProcess(SETTINGS, weights_file, LIMITS)
    yield process
    process.close()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # ProcessLookupError: it ended during the read
        return False
    return state != "Z"


def children(pid: int) -> set[int]:
    """Return the pids of all descendants of a process."""
    descendants: set[int] = set()
    with contextlib.suppress(OSError):  # it has ended
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, path.read_text().split()):
                descendants |= {child} | children(child)
    return descendants


def wait_until_gone(pids: set[int], seconds: float = 20) -> set[int]:
    deadline = time.monotonic() + seconds
    while (left := {pid for pid in pids if is_running(pid)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_a_worker_process_segments_and_is_used_again(worker: WorkerProcess) -> None:
    first = worker.run([sample()])
    pid = worker.pid
    second = worker.run([sample(), sample(b"no image", "b")])
    assert (
        isinstance(first, SegmentedPart) and isinstance(second, SegmentedPart) and worker.pid == pid
    )
    assert (first.images[0].mask == second.images[0].mask).all()
    assert [failure.error for failure in second.failures] == ["ImageError"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_process_killed_while_idle_is_noticed_and_replaced(
    worker: WorkerProcess, number: int
) -> None:
    worker.start()
    assert worker.pid is not None
    os.kill(worker.pid, number)
    wait_until_gone({worker.pid})
    failure = worker.run([sample()])
    assert isinstance(failure, WorkerFailure) and signal.Signals(number).name in failure.what
    assert failure.is_killed == (number == signal.SIGKILL)
    assert isinstance(worker.run([sample()]), SegmentedPart)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_only_the_owner_decides_about_interruptions(worker: WorkerProcess, number: int) -> None:
    worker.start()
    assert worker.pid is not None
    server = start_fork_server().process.pid
    for pid in (worker.pid, server):
        os.kill(pid, number)
    assert isinstance(worker.run([sample()]), SegmentedPart)
    assert start_fork_server().process.pid == server


def test_a_killed_fork_server_ends_its_workers_and_is_replaced(worker: WorkerProcess) -> None:
    worker.start()
    pid, server = worker.pid, start_fork_server().process.pid
    os.kill(server, signal.SIGKILL)
    assert pid is not None and wait_until_gone({pid, server}) == set()
    assert isinstance(worker.run([sample()]), WorkerFailure)
    assert isinstance(worker.run([sample()]), SegmentedPart)
    assert start_fork_server().process.pid != server


def test_stopping_frees_the_thread_that_waits(weights_file: SharedWeights, tmp_path: Path) -> None:
    raised: list[BaseException] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(poison.install(tmp_path / "site"))
        worker = WorkerProcess(SETTINGS, weights_file, LIMITS)
        worker.start()
        pid = worker.pid

        def wait() -> None:
            try:
                worker.run([sample(poison.image("hang"))])
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.3)
        started = time.monotonic()
        worker.stop()
        thread.join(10)
        assert time.monotonic() - started < 5 and not thread.is_alive()
        assert [type(error) for error in raised] == [StoppedError]
        assert pid is not None and wait_until_gone({pid}) == set()
        with pytest.raises(StoppedError):
            worker.start()
        worker.close()
    close_fork_server()


def test_the_log_of_a_crash_is_kept(weights_file: SharedWeights, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(poison.install(tmp_path / "site"))
        worker = WorkerProcess(SETTINGS, weights_file, LIMITS)
        fine = [sample(key=f"k{n}") for n in range(3)]
        failure = worker.run([*fine, sample(poison.image("segv"), "bad"), *fine])
        worker.close()
    close_fork_server()
    assert isinstance(failure, WorkerFailure) and failure.suspects == (3,)
    assert "Segmentation fault" in failure.log_tail and "poison.py" in failure.log_tail


def test_a_network_that_cannot_be_built_is_that_error(weights_file: SharedWeights) -> None:
    settings = NetworkSettings(world.TINY, "fp16", "cpu", 1, None, 10**6)
    worker = WorkerProcess(settings, weights_file, LIMITS)
    with pytest.raises(FcnError, match="fp16 on a CPU"):
        worker.start()
    worker.close()


def test_a_fork_server_that_cannot_start_reports_why(
    weights_file: SharedWeights, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('cannot find libcudart')")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        worker = WorkerProcess(SETTINGS, weights_file, LIMITS)
        with pytest.raises(WorkerError, match="cannot find libcudart"):
            worker.start()
        worker.close()
    close_fork_server()


def test_memory_of_the_machine_is_plausible() -> None:
    assert 2**28 < machine_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


ENDS = {"end": 0, "error": 1, "SIGINT": 130, "SIGTERM": 143, "SIGKILL": -9}


@pytest.mark.parametrize("end", ENDS)
def test_no_process_is_left_however_the_driver_ends(
    weights: Path, tmp_path: Path, end: str
) -> None:
    source, out = world.write_shards(tmp_path / "in", 2), tmp_path / "out"
    site = poison.install(tmp_path / "site")
    if end == "error":
        out.mkdir()
        (out / "masks").write_text("a file where a folder should be")
    elif end != "end":  # the signal comes in the middle of the run
        members = world.samples(7) | {"bad.jpg": poison.image("hang")}
        (source / "z.tar").write_bytes(world.tar(members))
    command = [
        sys.executable, "-m", "pipeline", "run", source, out, "--weights", weights, "--workers",
        "2", "--set", "compute.threads_per_worker=1",
    ]  # fmt: skip
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    driver = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
    )  # fmt: skip
    family: set[int] = set()
    while driver.poll() is None and not (end in ("SIGINT", "SIGTERM", "SIGKILL") and _busy(out)):
        family |= children(driver.pid)
        time.sleep(0.01)
    if end.startswith("SIG"):
        family |= children(driver.pid)
        assert len(family) >= 3  # the fork server and two workers
        if (
            end == "SIGINT"
        ):  # as a terminal does: to the whole group; the second one ends the driver
            assert driver.stderr is not None
            os.killpg(driver.pid, signal.SIGINT)
            while "Ctrl-C again stops at once" not in driver.stderr.readline():
                assert driver.poll() is None
            os.killpg(driver.pid, signal.SIGINT)
        else:
            driver.send_signal(signal.Signals[end])
    _, stderr = driver.communicate(timeout=60)
    assert driver.returncode == ENDS[end]
    assert family and wait_until_gone(family) == set()
    assert "Traceback" not in stderr


def _busy(out: Path) -> bool:
    """Return whether all shards are done but the one with the image that hangs."""
    done = [json.loads(path.read_text())["shard"] for path in out.glob("_commits/*.json")]
    return len(done) == 2


@pytest.mark.parametrize(("at_work", "policy"), [(0, None), (99, "passive")])
def test_waiting_threads_sleep_on_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch, at_work: int, policy: str | None
) -> None:
    monkeypatch.setattr(fork_server_module, "count_busy_threads", lambda: at_work)
    assert fork_server_module.wait_policy().get("OMP_WAIT_POLICY") == policy


def test_busy_threads_are_counted() -> None:
    commands = [[sys.executable, "-c", "while True: pass"]] * (os.cpu_count() or 1)
    busy = [subprocess.Popen(command) for command in commands]
    try:
        time.sleep(0.5)
        assert max(fork_server_module.count_busy_threads() for _ in range(20)) >= len(busy) / 2
    finally:
        for process in busy:
            process.kill()
            process.wait()
