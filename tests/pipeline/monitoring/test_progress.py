"""Laws of watching: what a driver tells is shown while it works, and nothing else is."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from pipeline import concurrency
from pipeline.cli import console
from pipeline.cli.output_commands import status
from pipeline.driver import run
from pipeline.errors import StoreError
from pipeline.monitoring import progress as progress_module
from pipeline.monitoring.progress import Progress, ProgressReading, ProgressRecord, watch
from pipeline.output.lease import Holder, Lease
from pipeline.paths import PROGRESS
from pipeline.storage.store import Store
from tests.support import world

HOLDER = Holder("me", "host", "", 7, 0.0, 0.0)


def told(done: int, seconds: float, pending: int = 10) -> Progress:
    return Progress(done, pending, 4 * done, 0, seconds)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "SECONDS", 0.0)


def hold(store: Store, owner: str = "me", seconds: float = 30.0) -> None:
    holder = Holder(owner, "host", "", 7, 0.0, time.time() + seconds)
    store.write("_lease.json", json.dumps(asdict(holder)).encode())


def test_progress_is_written_now_and_then(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(concurrency.time, "monotonic", lambda: clock[0])
    heard: list[Progress] = []
    record = ProgressRecord(store, "me", heard.append)
    written = []
    with record:
        for second in range(12):
            clock[0] = 100.0 + second
            record(told(second, float(second)))
            written.append(json.loads(store.read(PROGRESS))["shards_done"])
    assert written == [0] * 5 + [5] * 5 + [10] * 2
    assert len(heard) == 12
    assert store.objects() == []


def test_a_store_that_cannot_take_it_ends_no_run(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise StoreError("x", "full", "room")

    monkeypatch.setattr(Store, "write", full)
    heard: list[Progress] = []
    ProgressRecord(store, "me", heard.append)(told(1, 1.0))
    assert heard == [told(1, 1.0)]


def looks(store: Store, steps: list[Progress | None]) -> Iterator[ProgressReading]:
    """Watch while a driver tells these one by one, and then lets go."""
    hold(store)
    record = ProgressRecord(store, "me")
    for look, step in zip(watch(store, 0.0), [*steps, None], strict=False):
        yield look
        if step is not None:
            record(step)


def test_speed_and_end_are_of_lately(store: Store, quick: None) -> None:
    steps = [told(0, 1.0), told(1, 3.0), told(3, 4.0), told(3, 4.0)]
    found = list(looks(store, steps))
    assert found[0].progress is None and found[0].seconds_left is None
    assert found[1].progress == steps[0] and found[1].seconds_left is None
    assert (found[2].images_per_second, found[2].seconds_left) == (4 / 2, 9 * 2.0)
    assert (found[3].images_per_second, found[3].seconds_left) == (12 / 3, 7 * 1.0)
    assert found[4] == found[3]


def test_the_first_look_knows_the_whole_run(store: Store, quick: None) -> None:
    hold(store)
    ProgressRecord(store, "me")(told(5, 10.0))
    look = next(iter(watch(store, 0.0)))
    assert (look.images_per_second, look.seconds_left) == (2.0, 10.0)


def test_another_drivers_progress_is_not_shown(store: Store, quick: None) -> None:
    hold(store, "me")
    ProgressRecord(store, "a dead one")(told(5, 10.0))
    assert next(iter(watch(store, 0.0))).progress is None
    store.write(PROGRESS, b"half a docu")
    assert next(iter(watch(store, 0.0))).progress is None


def test_watching_ends_where_no_driver_works(store: Store) -> None:
    assert list(watch(store, 0.0)) == []
    hold(store, seconds=-1.0)
    assert list(watch(store, 0.0)) == []


def test_a_run_is_watched_to_its_end(tmp_path: Path, weights: Path, fcnseg, quick: None) -> None:
    """From another thread, as if from another machine."""
    shards, output = world.write_shards(tmp_path / "in"), tmp_path / "out"
    going = threading.Event()
    results = []

    def slowly(progress: Progress) -> None:
        going.set()
        time.sleep(5 if progress.shards_done == 1 else 0.3)

    thread = threading.Thread(
        target=lambda: results.append(run(world.config(shards, output, weights), slowly))
    )
    thread.start()
    try:
        assert going.wait(60)
        code, stdout, _ = fcnseg("status", output, "--watch", "--interval", "0.1")
    finally:
        thread.join()
    lines = stdout.splitlines()
    assert code == 0 and results[0].exit_code == 0
    seen = [line for line in lines if "/3 shards, " in line]
    assert len(seen) >= 3 and all("; process " in line for line in seen)
    end = lines.index("no driver; _SUCCESS")
    assert lines[end - 1].startswith("3 shards committed of 3, 12 images")
    assert not [line for line in lines[end:] if "/3 shards" in line]
    assert not (output / PROGRESS).exists()


def test_watching_what_is_no_output_is_an_error(tmp_path: Path, fcnseg) -> None:
    code, _, stderr = fcnseg("status", tmp_path, "--watch")
    assert code == 2 and "no _run.json" in stderr


def test_watching_can_be_left(store: Store, fcnseg, monkeypatch, weights, shards) -> None:
    run(world.config(shards, store.url, weights))
    before = store.objects()

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    with Lease(store):
        monkeypatch.setattr(progress_module.time, "sleep", interrupted)
        code, stdout, _ = fcnseg("status", store.url, "--watch", "--json")
    assert code == 130
    assert json.loads(stdout.splitlines()[0])["progress"] is None
    assert store.objects() == before


@pytest.mark.parametrize(
    ("reading", "line"),
    [
        (ProgressReading(HOLDER, None, 0.0, None), "no image segmented yet; process 7"),
        (ProgressReading(HOLDER, told(3, 4.0), 2.0, 3723.4),
         "3/10 shards, 12 images, 2.0/s, 1:02:03 left; "),
        (ProgressReading(HOLDER, Progress(0, 4, 2, 1, 1.0), 2.0, None),
         "0/4 shards, 2 images, 1 quarantined, 2.0/s; process 7 on host"),
    ],
)  # fmt: skip
def test_a_reading_is_a_line(reading: ProgressReading, line: str) -> None:
    assert status.describe_reading(reading).startswith(line)


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    shown = io.StringIO()
    monkeypatch.setattr(console.out, "rich", Console(file=shown, force_terminal=True, width=120))
    with status.watch_display(as_json=False) as show:
        show(ProgressReading(HOLDER, None, 0.0, None))
        show(ProgressReading(HOLDER, told(3, 4.0), 2.0, 3.0))
    assert "3/10 shards" in shown.getvalue() and "━" in shown.getvalue()
