"""Laws of the lease: one driver at a time, and a dead one blocks no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.driver import run
from pipeline.errors import LeaseError, StoreError
from pipeline.monitoring.progress import Progress
from pipeline.output import lease as lease_module
from pipeline.output.lease import Holder, Lease, read_lease
from pipeline.paths import LEASE
from pipeline.storage.store import Store
from tests.support import world

HOLD = """
import sys, time
from pipeline.output.lease import Lease
from pipeline.storage.store import Store
with Lease(Store(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "out"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases renewed every 20 ms, and not lost because a disk is slow."""
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.02)


def put(output: Store, holder: Holder) -> None:
    output.write(LEASE, json.dumps(asdict(holder)).encode())


def this_process(**changes: object) -> Holder:
    return replace(Holder.this_process(time.time()), **changes)


def wait_until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_free(output: Store) -> bool:
    try:
        with Lease(output):
            return True
    except LeaseError:
        return False


def lease_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lease"]


def test_a_second_driver_is_refused_and_told_who_and_until_when(output: Store) -> None:
    with Lease(output) as first:
        with pytest.raises(LeaseError) as caught, Lease(output):
            pass
        until = time.strftime("%H:%M:%S", time.gmtime(first.holder.expires))
        since = time.strftime("%H:%M:%S", time.gmtime(first.holder.since))
        who = f"process {os.getpid()} on {first.holder.host} since {since} UTC, until {until} UTC"
        assert f"held by {who}" in str(caught.value)
        assert caught.value.exit_code == 75 and not first.is_lost
        assert read_lease(output) == first.holder


def test_it_is_given_back_on_leaving(output: Store) -> None:
    for _ in range(2):
        with Lease(output):
            assert [info.path for info in output.objects()] == [LEASE]
        assert output.objects() == [] and not lease_threads()


def test_it_is_given_back_on_an_exception(output: Store) -> None:
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), Lease(output):
            raise error
        assert output.objects() == [] and not lease_threads()


def test_a_killed_driver_is_taken_over_from_at_once(output: Store) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, output.url], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        held, refused = child.stdout.readline(), not is_free(output)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert held == "held\n" and refused
    holder = read_lease(output)
    assert holder is not None and holder.pid == child.pid and holder.expires > time.time() + 5
    assert holder.is_known_dead() and is_free(output)


def test_a_zombie_is_dead(output: Store) -> None:
    child = subprocess.Popen(["sleep", "600"])
    started = lease_module.process_start_time(child.pid)
    put(output, this_process(pid=child.pid, started=started))
    refused = not is_free(output)
    child.kill()
    assert refused
    wait_until(lambda: lease_module.process_start_time(child.pid) is None)
    assert Path(f"/proc/{child.pid}").exists()  # the parent has not asked for its exit code yet
    assert is_free(output)
    child.wait()


def test_another_process_under_the_same_number_is_not_the_holder(output: Store) -> None:
    put(output, this_process(started=Holder.this_process(0).started - 1))
    assert is_free(output)


ELSEWHERE = ({"host": "elsewhere"}, {"boot": "earlier"}, {"boot": ""}, {"boot": "x pid:[1]"})


@pytest.mark.parametrize("where", ELSEWHERE)
def test_a_holder_elsewhere_is_waited_for_until_it_expires(
    output: Store, where: dict[str, str]
) -> None:
    gone = this_process(pid=2**22 + 1, **where)  # past the largest process number
    put(output, gone)
    assert not gone.is_known_dead() and not is_free(output)
    put(output, replace(gone, expires=time.time() - 0.01))
    assert is_free(output)


def test_containers_that_share_a_host_are_told_apart() -> None:
    # They share host name and boot, but not the numbers of their processes.
    assert os.readlink("/proc/self/ns/pid") in this_process().boot


def test_an_expired_lease_of_a_living_process_is_free(output: Store) -> None:
    put(output, this_process(expires=time.time() - 0.01))
    assert is_free(output)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"3", b"{}", b'{"owner": "x"}'])
def test_a_damaged_lease_has_no_owner(output: Store, data: bytes) -> None:
    output.write(LEASE, data)
    assert read_lease(output) is None
    assert is_free(output)


def test_taking_over_removes_what_the_dead_left_half_written(output: Store) -> None:
    put(output, this_process(started=-1.0))
    leftover = Path(output.url, "masks/.fcnseg-tmp-0")
    leftover.parent.mkdir()
    leftover.touch()
    with Lease(output):
        assert not leftover.exists()


def test_one_of_several_takes_over(output: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(output, this_process(started=-1.0))
    taken: list[Lease] = []
    replace_ = Store.replace

    def slower(self: Store, path: str, data: bytes, tag: str) -> str | None:
        if not taken:  # between our look and our put
            taken.append(Lease(output))
            taken[0].__enter__()
        return replace_(self, path, data, tag)

    monkeypatch.setattr(Store, "replace", slower)
    with pytest.raises(LeaseError, match="taken by another driver just now"), Lease(output):
        pass
    assert read_lease(output) == taken[0].holder
    taken[0].__exit__(None, None, None)


def test_a_lost_answer_to_taking_it_is_no_other_driver(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Store.create

    def answer_lost(self: Store, path: str, data: bytes) -> str | None:
        create(self, path, data)
        return create(self, path, data)

    monkeypatch.setattr(Store, "create", answer_lost)
    with Lease(output) as held:
        assert read_lease(output) == held.holder
    assert output.objects() == []


def test_it_is_renewed_while_held(output: Store, quick: None) -> None:
    with Lease(output) as held:
        seen = [held.holder.expires]

        def renewed() -> bool:
            holder = read_lease(output)
            assert holder is not None and holder.expires > time.time() and not held.is_lost
            if holder.expires > seen[-1]:
                seen.append(holder.expires)
            return len(seen) > 3

        wait_until(renewed, 60)
        holder = read_lease(output)
        assert holder is not None
        assert replace(holder, expires=0) == replace(held.holder, expires=0)
    assert output.objects() == []


def test_one_that_was_taken_over_is_lost_and_left_to_its_new_holder(
    output: Store, quick: None
) -> None:
    with Lease(output) as held:
        held.check()
        another = this_process(owner="another")
        wait_until(lambda: put(output, another) or held.is_lost)  # a renewal may be under way
        with pytest.raises(LeaseError, match="this driver lost its lease"):
            held.check()
    holder = read_lease(output)
    assert holder is not None and holder.owner == "another"


def test_one_that_was_deleted_is_lost(output: Store, quick: None) -> None:
    with Lease(output) as held:
        wait_until(lambda: output.delete(LEASE) or held.is_lost)
    assert output.objects() == []


def test_a_store_that_fails_for_a_while_costs_nothing(
    output: Store, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def failing(*_: object) -> None:
        failed.set()
        raise StoreError("x", "the store failed", "a working store")

    with Lease(output) as held:
        first = held.holder.expires
        with monkeypatch.context() as patch:
            patch.setattr(Store, "replace", failing)
            assert failed.wait(10)
        wait_until(lambda: held.holder.expires > first)
        assert not held.is_lost


def test_a_store_that_fails_until_the_lease_runs_out_loses_it(
    output: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise StoreError("x", "the store failed", "a working store")

    clock, ahead = lease_module.lease_clock, 0.0
    monkeypatch.setattr(lease_module, "lease_clock", lambda: clock() + ahead)
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.02)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "replace", failing)
        with Lease(output) as held:
            ahead = lease_module.SECONDS / 2
            assert not held.is_lost
            # Shortly before others may take it: clocks differ.
            ahead = lease_module.SECONDS - lease_module.MARGIN_SECONDS + 1
            assert held.is_lost and held.holder.expires > time.time()
    assert output.objects() == []


@pytest.mark.parametrize("commits", [0, 1, 2])
def test_a_driver_that_lost_its_lease_commits_nothing_more(
    output: Store,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    shards: Path,
    weights: Path,
    commits: int,
) -> None:
    def take_over(progress: Progress) -> None:
        if progress.shards_done == commits:
            another = this_process(owner="another")
            wait_until(lambda: put(output, another) or not lease_threads())

    with pytest.raises(LeaseError, match="lost its lease"):
        run(world.config(shards, output.url, weights), take_over)
    names = [info.path for info in output.objects()]
    assert len([name for name in names if name.startswith("_commits/")]) == commits
    assert not {"_SUCCESS", "_PARTIAL", "stats/scores.json"} & set(names)
    assert LEASE in names  # the other's
    output.delete(LEASE)
    assert run(world.config(shards, output.url, weights)).done_now == 3 - commits
