"""Properties of the local executor: every item arrives, nothing hangs, queues stay bounded."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fcn_core.weights.weights_file import WeightsFile
from pipeline.driver import run
from pipeline.errors import StoreError
from pipeline.executors import local
from pipeline.executors.local import QUEUE_DEPTH, run_local, run_stages
from pipeline.inputs.shard import Shard
from pipeline.plan import make_plan
from pipeline.resolve import resolve_run
from pipeline.stages.records import Receipt
from pipeline.stages.spec import RunSpec, ShardFailure
from pipeline.storage.store import Store
from pipeline.workers.segmenter import IsolatedSegmenter
from pipeline.workers.supervisor import machine_memory
from tests.support import world

Work = tuple[RunSpec, WeightsFile, tuple[Shard, ...]]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def work(shards: Path, weights: Path, tmp_path: Path) -> Work:
    """Twelve chunks of one image each, for three replicas of the network."""
    flags = {"limits__chunk_images": 1, "compute__workers": 3}
    spec, file = resolve_run(world.config(shards, tmp_path / "out", weights, **flags))
    return spec, file, make_plan(spec).pending


def test_receipts_of_all_chunks_arrive_once(work: Work) -> None:
    receipts = list(run_local(*work))
    assert all(isinstance(receipt, Receipt) for receipt in receipts)
    arrived = Counter((receipt.shard, receipt.seq) for receipt in receipts)
    assert arrived == {(f"s{shard}", seq): 1 for shard in range(3) for seq in range(4)}
    output = work[0].output
    for receipt in receipts:
        assert receipt.count == 4 and len(receipt.files) == 4
        assert [output.stat(f.path).size for f in receipt.files] == [f.size for f in receipt.files]


def test_an_unreadable_shard_is_a_failure_among_the_receipts(work: Work, shards: Path) -> None:
    (shards / "s1.tar").write_bytes(b"no tar")
    results = list(run_local(*work))
    (failure,) = (result for result in results if isinstance(result, ShardFailure))
    assert (failure.shard, failure.error) == ("s1", "ShardError") and "s1.tar" in failure.reason
    assert {result.shard for result in results} == {"s0", "s1", "s2"} and len(results) == 9


def test_no_shards_are_no_receipts(work: Work) -> None:
    assert list(run_local(work[0], work[1], ())) == []


class BrokenError(Exception):
    pass


def breaks(after: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a stage that works `after` times and then raises BrokenError."""
    calls = iter(range(after))

    def stage(*args: Any) -> Any:
        if next(calls, None) is None:
            raise BrokenError
        return original(*args)

    return stage


STAGES = {
    "read": (local, "read_chunks", 1),
    "segment": (IsolatedSegmenter, "__call__", 5),
    "write": (local, "write_chunk", 5),
    "store": (Store, "write", 7),
}


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("at_once", [True, False])
def test_an_exception_in_any_stage_ends_the_run(
    work: Work, monkeypatch: pytest.MonkeyPatch, name: str, at_once: bool
) -> None:
    owner, attribute, after = STAGES[name]
    stage = breaks(0 if at_once else after, getattr(owner, attribute))
    monkeypatch.setattr(owner, attribute, stage)
    with pytest.raises(BrokenError):
        list(run_local(*work))


def test_a_store_that_fails_in_a_thread_is_that_error_of_the_run(
    shards: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Store.write

    def full(self: Store, path: str, data: bytes) -> None:
        if path == "png/s1/img2.png":
            raise StoreError(path, "No space left on device", "a working store", "Free space.")
        write(self, path, data)

    config = world.config(shards, tmp_path / "out", weights)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", full)
        with pytest.raises(StoreError, match="No space left on device"):
            run(config)
    assert not (tmp_path / "out/_lease.json").exists()
    assert run(config).exit_code == 0


@pytest.mark.parametrize("taken", [0, 1, 5, 12])
def test_leaving_early_stops_every_thread(work: Work, taken: int) -> None:
    receipts = run_local(*work)
    for _ in range(taken):
        next(receipts)
    receipts.close()  # type: ignore[attr-defined]


def test_an_exception_of_the_driver_stops_every_thread(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    def interrupted(progress: Any) -> None:
        if progress.shards_done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(world.config(shards, tmp_path / "out", weights), interrupted)


def passing(item: int) -> Iterator[int]:
    yield item


def twice(item: int) -> Iterator[int]:
    yield from (item, item)


def odd(item: int) -> Iterator[int]:
    if item % 2:
        yield item


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 3, 2), (5, 1, 5), (1, 7, 1)])
def test_items_pass_every_stage_exactly_once(counts: tuple[int, int, int]) -> None:
    stages = list(zip((twice, odd, passing), counts, strict=True))
    for total in (0, 1, 2, 50):
        counts_of_items = Counter(run_stages(range(total), stages))
        assert counts_of_items == {item: 2 for item in range(1, total, 2)}


def test_one_thread_per_stage_keeps_the_order() -> None:
    assert list(run_stages(range(30), [(passing, 1), (odd, 1)])) == list(range(1, 30, 2))


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt, SystemExit])
def test_whatever_a_stage_raises_comes_out(where: int, error: type[BaseException]) -> None:
    def breaking(item: int) -> Iterator[int]:
        if item == 20:
            raise error
        yield item

    stages = [(breaking if index == where else passing, 2) for index in range(3)]
    with pytest.raises(error):
        list(run_stages(range(100), stages))


class Gauge:
    """A stage that counts the items it has begun and the items it has made."""

    def __init__(self, per_item: int) -> None:
        self.per_item = per_item
        self.begun = self.made = 0
        self.lock = threading.Lock()

    def __call__(self, item: int) -> Iterator[int]:
        with self.lock:
            self.begun += 1
        for _ in range(self.per_item):
            with self.lock:
                self.made += 1
            yield item


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_what_is_in_flight_is_bounded_however_slow_the_next_stage(slow: int) -> None:
    counts = (2, 3, 2)
    gauges = [Gauge(per_item) for per_item in (10, 1, 1)]
    gate = threading.Event()

    def held(item: int) -> Iterator[int]:
        gate.wait()
        yield from gauges[slow](item)

    stages = [(held if n == slow else gauge, counts[n]) for n, gauge in enumerate(gauges)]
    results = run_stages(range(50), stages)
    first: list[int] = []
    consumer = threading.Thread(target=lambda: first.append(next(results)))
    consumer.start()
    for _ in range(3):
        time.sleep(0.1)
        for before, after, workers in zip(gauges, gauges[1:], counts, strict=False):
            waiting = before.made - after.begun
            # The threads of a held stage have taken one item each without beginning it.
            assert waiting <= workers + QUEUE_DEPTH + (counts[slow] if after is gauges[slow] else 0)
    gate.set()
    consumer.join()
    for _ in range(3):  # now the consumer is the slowest
        time.sleep(0.1)
        assert gauges[-1].made - len(first) <= counts[-1] + QUEUE_DEPTH
        for before, after, *workers in zip(gauges, gauges[1:], counts, counts[1:], strict=False):
            # The threads of the next stage may have taken items without beginning them.
            assert before.made - after.begun <= sum(workers) + QUEUE_DEPTH
        first.append(next(results))
        time.sleep(0.1)
    results.close()  # type: ignore[attr-defined]


# --- Memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"memory": "3GiB"}, 2**30),
        ({"memory": "3GiB", "worker_memory": "2GiB"}, 2**31),
        ({}, int(0.9 * machine_memory()) // 3),
    ],
)
def test_replicas_share_the_memory(
    shards: Path, weights: Path, tmp_path: Path, limits: dict[str, str], expected: int
) -> None:
    flags = {f"limits__{name}": value for name, value in limits.items()}
    config = world.config(shards, tmp_path / "out", weights, compute__workers=3, **flags)
    pool = local.WorkerPool(*resolve_run(config))
    try:
        assert [segmenter.worker.limits.memory for segmenter in pool.segmenters] == [expected] * 3
        assert {segmenter.worker.settings.memory for segmenter in pool.segmenters} == {expected}
    finally:
        pool.close()


def test_a_memory_limit_is_a_flag_of_run(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Callable[..., tuple[int, str, str]]
) -> None:
    words = ["run", str(shards), str(tmp_path / "out"), "--weights", str(weights)]
    code, _, stderr = fcnseg(*words, "--memory-limit", "1kB")
    assert code == 2 and "limits.memory" in stderr
    code, _, stderr = fcnseg(*words, "--memory-limit", "2GiB", "--dry-run")
    assert code == 0, stderr
