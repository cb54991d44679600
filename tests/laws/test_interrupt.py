"""Ctrl-C: once finishes what is under way, twice stops at once; either way a run resumes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.driver import run
from pipeline.executors import local
from pipeline.monitoring.progress import Progress
from pipeline.signals import finish_on_ctrl_c
from pipeline.storage.store import Store
from tests.support import world


def press() -> None:
    """Ctrl-C, handled before this returns."""
    signal.raise_signal(signal.SIGINT)


def pressing(times: int, when: Callable[[Progress], bool]) -> Callable[[Progress], None]:
    """Presses Ctrl-C so often at the first such progress."""
    left = [times]

    def look(progress: Progress) -> None:
        while left[0] and when(progress):
            left[0] -= 1
            press()

    return look


def test_pressed_once_a_run_commits_what_is_under_way_and_resumes(
    weights: Path, tmp_path: Path
) -> None:
    source = world.write_shards(tmp_path / "in", shards=20)
    run(world.config(source, tmp_path / "calm", weights))
    config = world.config(source, tmp_path / "out", weights)
    found = run(config, pressing(1, lambda p: p.shards_done == 1), finish_on_interrupt=True)
    assert found.interrupted and found.exit_code == 130
    assert 1 <= found.committed < 20 and not found.failed
    commits = [path.stem for path in (tmp_path / "out/_commits").iterdir()]
    assert len(commits) == found.committed
    assert (tmp_path / "out/_PARTIAL").exists() and not (tmp_path / "out/_lease.json").exists()
    again = run(config, finish_on_interrupt=True)
    assert (again.exit_code, again.done_now) == (0, 20 - found.committed)
    assert world.tree(tmp_path / "out") == world.tree(tmp_path / "calm")


def test_pressed_while_the_network_works_its_chunk_is_finished_and_no_other_begun(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressed = threading.Event()
    segment = local.WorkerPool.segment
    begun = []

    def press_first(crew: Any, chunk: Any) -> Any:
        begun.append(chunk.shard)
        pressed.set()
        return segment(crew, chunk)

    monkeypatch.setattr(local.WorkerPool, "segment", press_first)
    monkeypatch.setattr(
        "pipeline.driver.finish_on_ctrl_c", lambda *, wanted: _Answers(pressed.is_set)
    )
    source = world.write_shards(tmp_path / "in", shards=8)
    found = run(world.config(source, tmp_path / "out", weights))
    assert len(begun) == 1 and found.committed == 1 and found.exit_code == 130


class _Answers:
    def __init__(self, question: Callable[[], bool]) -> None:
        self.question = question

    def __enter__(self) -> Callable[[], bool]:
        return self.question

    def __exit__(self, *_: object) -> None:
        pass


def test_pressed_before_anything_is_read_nothing_is_segmented(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    look = pressing(1, lambda p: p.shards_done == 0)
    found = run(world.config(shards, tmp_path / "out", weights), look, finish_on_interrupt=True)
    assert (found.exit_code, found.committed) == (130, 0)


@pytest.mark.parametrize(("times", "graceful"), [(2, True), (1, False)])
def test_pressed_twice_or_where_no_grace_was_requested_it_stops_at_once(
    times: int, graceful: bool, shards: Path, weights: Path, tmp_path: Path
) -> None:
    config = world.config(shards, tmp_path / "out", weights)
    with pytest.raises(KeyboardInterrupt):
        run(config, pressing(times, lambda p: p.shards_done == 1), finish_on_interrupt=graceful)
    assert not (tmp_path / "out/_lease.json").exists()
    assert not (tmp_path / "out/_PARTIAL").exists()
    assert run(config).exit_code == 0


def test_pressed_after_the_last_shard_the_run_is_done(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    look = pressing(1, lambda p: p.shards_done == 3)
    found = run(world.config(shards, tmp_path / "out", weights), look, finish_on_interrupt=True)
    assert found.exit_code == 0 and (tmp_path / "out/_SUCCESS").exists()


def test_the_handler_is_there_only_meanwhile_and_says_what_happens(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with finish_on_ctrl_c(wanted=True) as is_stopping:
        assert not is_stopping()
        press()
        assert is_stopping()
        with pytest.raises(KeyboardInterrupt):
            press()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert "Ctrl-C again stops at once" in capfd.readouterr().err


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_other_handlers_are_left_alone(handler: Any) -> None:
    before = signal.signal(signal.SIGINT, handler)
    try:
        with finish_on_ctrl_c(wanted=True):
            assert signal.getsignal(signal.SIGINT) is handler
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_is_changed() -> None:
    seen = []

    def look() -> None:
        with finish_on_ctrl_c(wanted=True) as is_stopping:
            seen.append((signal.getsignal(signal.SIGINT), is_stopping()))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [(signal.default_int_handler, False)]


@pytest.mark.parametrize(
    ("words", "resumes"),
    [
        ("run in out --weights demo", True),
        ("failed out --retry", True),
        ("failed out", False),
        ("status out --watch", False),
        ("predict a.jpg --output out --weights demo", False),
        ("verify out", False),
    ],
)
@pytest.mark.parametrize(
    ("end", "code", "word"),
    [(KeyboardInterrupt(), 130, "interrupted"), (SystemExit(143), 143, "terminated")],
)
def test_only_commands_that_resume_are_said_to(
    words: str, resumes: bool, end: BaseException, code: int, word: str,
    monkeypatch: pytest.MonkeyPatch, fcnseg: Callable[..., tuple[int, str, str]],
) -> None:  # fmt: skip
    def stop(*_: object, **__: object) -> None:
        raise end

    monkeypatch.setattr(Store, "read", stop)
    monkeypatch.setattr(Store, "listing", stop)
    monkeypatch.setattr("pipeline.resolve.load_weights", stop)
    expected = f"{word}: run the same command again to resume\n" if resumes else f"{word}\n"
    found, _, err = fcnseg(*words.split())
    assert (found, err) == (code, expected)
