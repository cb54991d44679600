"""What a run says reaches Prefect at a bounded rate, and a job is stopped by whom it should."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.exceptions import TerminationSignal

from flows import execution as work
from flows import prefect_reporter as relay
from flows.prefect_reporter import LINES, SECONDS, PrefectReporter
from pipeline import concurrency
from pipeline.monitoring.progress import Progress
from pipeline.ray_jobs import ray_follow, ray_submit
from pipeline.ray_jobs.ray_follow import JobReading
from pipeline.ray_jobs.ray_submit import SubmittedJob
from tests.support import world

JOB = SubmittedJob("fcnseg-1", False, "http://h/#/jobs/fcnseg-1", "s3://b/out")


class Told:
    """What Prefect was told, and a clock that stands still until it is moved."""

    def __init__(self, patch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        self.caplog = caplog
        self.now = 1000.0
        self.bars: list[float] = []
        self.artifacts = 0
        self.is_away = False
        caplog.set_level(logging.INFO)
        logger = logging.getLogger("a run")
        patch.setattr(concurrency, "time", SimpleNamespace(monotonic=lambda: self.now))
        patch.setattr(relay, "create_progress_artifact", self.create)
        patch.setattr(relay, "update_progress_artifact", self.update)
        for module in (relay, work):
            patch.setattr(module, "get_run_logger", lambda: logger)

    def create(self, progress: float, **_: Any) -> str:
        if self.is_away:
            raise OSError("no server")
        self.artifacts += 1
        self.bars.append(progress)
        return "an id"

    def update(self, progress: float, **_: Any) -> None:
        self.bars.append(progress)

    @property
    def log(self) -> list[str]:
        return self.caplog.messages


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Told:
    return Told(monkeypatch, caplog)


def progress(done: int, of: int = 1000) -> Progress:
    return Progress(done, of, images=4 * done, failures=0, seconds=1.0)


def test_a_chatty_job_costs_so_many_lines_per_interval_and_the_others_are_counted(
    told: Told,
) -> None:
    found = PrefectReporter("k")
    for tick in range(30):  # a look per second, for half a minute
        found.lines([f"{tick}-{n}" for n in range(200)], 7)
        told.now += 1
    assert len(told.log) <= (LINES + 1) * 30 / SECONDS
    found.flush()
    passed = [line for line in told.log if "left out" not in line]
    assert passed[-1] == "job: 29-199"  # the newest
    left_out = sum(int(line.split()[2]) for line in told.log if "left out" in line)
    assert len(passed) + left_out == 30 * (200 + 7)


def test_a_bar_moves_once_per_interval_and_at_the_end(told: Told) -> None:
    found = PrefectReporter("k")
    for done in range(101):
        found.progress(progress(done, 100))
        told.now += 0.1 * SECONDS
    assert told.artifacts == 1
    assert told.bars == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    found.progress(progress(100, 100))  # nothing new
    assert len(told.bars) == len(told.log) == 11


def test_without_a_server_the_work_goes_on_and_the_bar_comes_later(told: Told) -> None:
    found = PrefectReporter("k")
    told.is_away = True
    found.progress(progress(1))
    assert told.bars == [] and "not reported to Prefect: no server" in told.log
    told.is_away = False
    found.done()
    assert told.bars == [100.0]


def test_a_silent_cluster_is_told_once_per_interval(told: Told) -> None:
    found = PrefectReporter("k")
    for _ in range(25):
        found.warn_unreachable()
        told.now += 1
    assert len(told.log) == 3


# --- Who stops a job, and who lets it go on ---------------------------------------------------


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of jobs that were stopped."""
    found: list[str] = []

    def stop(address: str, submission_id: str, *_: float) -> Any:
        found.append(submission_id)
        return SimpleNamespace(status="STOPPED")

    monkeypatch.setattr(ray_follow, "stop", stop)
    return found


def following(*looks: JobReading, error: BaseException | None = None) -> Callable[..., Any]:
    def follow(*_: Any) -> Iterator[JobReading]:
        yield from looks
        if error is not None:
            raise error

    return follow


@pytest.mark.parametrize(
    ("error", "is_stopped"),
    [
        (TerminationSignal(15), True),
        (KeyboardInterrupt(), True),
        (TimeoutError(), True),
        (asyncio.CancelledError(), False),  # a slot that was lost while the server is away
        (SystemExit(1), False),  # a log that no process reads: the worker is gone
        (RuntimeError("Prefect's own"), False),
    ],
)
def test_a_job_is_stopped_by_the_process_that_cancels_it_and_outlives_prefect(
    told: Told,
    stopped: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    is_stopped: bool,
) -> None:
    look = JobReading("RUNNING", None, "", None, ("a line",), 0)
    monkeypatch.setattr(ray_follow, "follow", following(look, error=error))
    with pytest.raises(type(error)):
        work.follow_job.fn("http://h:8265", JOB, "s3://b/out")
    assert stopped == (["fcnseg-1"] if is_stopped else [])
    assert "job: a line" in told.log  # what waited is told


@pytest.mark.parametrize(("limit", "is_stopped"), [(0.0, True), (3600.0, False), (None, False)])
def test_a_lost_slot_is_no_timeout_until_the_time_is_over(
    told: Told,
    stopped: list[str],
    monkeypatch: pytest.MonkeyPatch,
    limit: float | None,
    is_stopped: bool,
) -> None:
    monkeypatch.setattr(ray_follow, "follow", following(error=asyncio.CancelledError()))
    context = SimpleNamespace(task=SimpleNamespace(timeout_seconds=limit))
    monkeypatch.setattr(work.TaskRunContext, "get", lambda: context)
    with pytest.raises(asyncio.CancelledError):
        work.follow_job.fn("http://h:8265", JOB, "key")
    assert bool(stopped) is is_stopped


@pytest.mark.parametrize("code", [0, 3, 4, 143])
def test_the_end_of_a_job_is_the_end_of_its_driver(
    told: Told, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    status = "SUCCEEDED" if code == 0 else "FAILED"
    end = JobReading(status, code, "why", None, (), 0)
    monkeypatch.setattr(ray_follow, "follow", following(end))
    state = work.follow_job.fn("http://h:8265", JOB, "s3://b/out")
    assert state.data.exit_code == code and state.is_completed() is (code in (0, 3))
    assert told.bars == ([100.0] if code in (0, 3) else [])


def test_the_hook_of_a_worker_stops_the_job_of_that_night_and_no_other(
    stopped: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def find_job(config: Any, address: str) -> SubmittedJob | None:
        asked.append((config.output.url, address))
        return JOB if config.compute.workers == 1 else None

    monkeypatch.setattr(ray_submit, "find_job", find_job)
    monkeypatch.setattr(work, "is_flow_process", False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    night = SimpleNamespace(expected_start_time=datetime(2026, 11, 23, 2, tzinfo=UTC))

    def hook(**changes: Any) -> None:
        config = world.config("s3://b/{date}/in", "s3://b/{date}/out", "demo", **changes)
        night.parameters = {"config": config.model_dump(mode="json")}
        work.stop_job(None, night, None)  # type: ignore[arg-type]

    hook()  # embedded: it went with its process
    hook(compute__ray_address="http://h:8265", compute__workers=2)  # another one's job
    assert stopped == []
    hook(compute__ray_address="http://h:8265")
    assert stopped == ["fcnseg-1"]
    assert set(asked) == {("s3://b/2026-11-23/out", "http://h:8265")}
    work.mark_flow_process()  # the flow's own process has decided already
    hook(compute__ray_address="http://h:8265")
    assert stopped == ["fcnseg-1"]
