"""Laws of the collector's threads: as many commits at once as wait, none after a failure."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import committer as collect
from pipeline.committer import COMMITTERS, MAX_WAITING, Committer
from pipeline.errors import StoreError
from pipeline.inputs.shard import Shard
from pipeline.output.commit_index import CommitIndex
from pipeline.storage.store import Store
from tests.pipeline.output.test_commits import receipt
from tests.support import world

SHARDS = [Shard(f"s{n:03d}", "tar", f"s{n:03d}.tar", 9, "tag") for n in range(200)]


def collector(url: str | None = None) -> Committer:
    output = Store(url or f"memory://{uuid.uuid4().hex}")
    spec = world.spec(images=Store("memory://in"), output=output, run="r", masks=("parquet",))
    plan: Any = SimpleNamespace(commit_index=CommitIndex(), retry_commits={})
    made = Committer(plan, spec)
    made.expect(SHARDS)
    return made


def feed(collector: Committer) -> None:
    for shard in SHARDS:
        collector.add(receipt(0, 1, shard=shard.id))


def slow(monkeypatch: pytest.MonkeyPatch, then: Callable[[str], None]) -> list[int]:
    """Commits that take a while; how many were under way at the start of each."""
    original, lock, now, seen = collect.write_commit, threading.Lock(), [0], []

    def write(output: Store, commit: Any, **more: Any) -> str:
        with lock:
            now[0] += 1
            seen.append(now[0])
        time.sleep(0.01)
        then(commit.shard)
        with lock:
            now[0] -= 1
        return original(output, commit, **more)

    monkeypatch.setattr(collect, "write_commit", write)
    return seen


def test_threads_commit_every_shard_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = slow(monkeypatch, lambda _: None)
    with collector() as made:
        feed(made)
        made.settle()
    assert made.committed == len(made.plan.commit_index) == len(seen) == len(SHARDS)
    assert len(made.spec.output.objects("_commits")) == len(SHARDS)
    assert 2 <= max(seen) <= COMMITTERS


def test_a_commit_that_fails_is_told_and_few_more_are_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(shard: str) -> None:
        if shard == "s003":
            raise StoreError("here", "no", "yes", "Try.")

    slow(monkeypatch, fail)
    with pytest.raises(StoreError), collector() as made:
        feed(made)
        made.settle()
    there = made.spec.output.objects("_commits")
    assert len(there) <= MAX_WAITING + 4 < len(SHARDS)
    time.sleep(0.05)
    assert made.spec.output.objects("_commits") == there


def test_only_tables_that_an_earlier_run_left_are_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    output = Store(url)
    for name in ("s003", "s999"):
        output.write(f"_quarantine/{name}.parquet", b"old")
    deleted: list[str] = []
    original = Store.delete
    monkeypatch.setattr(
        Store, "delete", lambda self, path: (deleted.append(path), original(self, path))[1]
    )
    with collector(url) as made:
        feed(made)
        made.settle()
    assert deleted == ["_quarantine/s003.parquet"]
    assert [info.path for info in output.objects("_quarantine")] == ["_quarantine/s999.parquet"]


def test_in_a_local_output_progress_tells_of_a_commit_at_once(tmp_path: Any) -> None:
    with collector(str(tmp_path)) as made:
        for number, shard in enumerate(SHARDS[:5]):
            made.add(receipt(0, 1, shard=shard.id))
            assert made.finished == number + 1
