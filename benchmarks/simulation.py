"""Run the real driver with simulated receipts, at the rate of a thousand GPUs.

`pipeline.driver.run` plans, takes the lease, commits and finishes as usual. Only its executor is
replaced: it decodes nothing and delivers receipts (pickled, as Ray does) at a fixed rate. INPUT is
a folder of stubs. OUTPUT is a local folder, or `benchmarks.stand_in`, an S3 server that the real S3
client uses and that answers after 30 to 50 ms. Each case runs in a separate process. Its results
are printed beside the predictions of `benchmarks.scale_model`, from parts that were measured
separately.

Usage: python -m benchmarks.simulation [--seconds S] [--rates R ...] [--stores local s3]
           [--cap WRITES READS] [--json FILE]

A rate is in shards per second; 0 means as fast as the driver accepts them.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import s3fs

from benchmarks import bookkeeping, scale_model
from benchmarks.bookkeeping import LABELS, a_commit, a_spec, name
from benchmarks.stand_in import StandIn
from pipeline import committer, driver, finish, resolve
from pipeline.config import load_config
from pipeline.inputs.shard import Shard
from pipeline.output.commit_index import CommitIndex
from pipeline.output.commits import build_commit
from pipeline.output.shard_table import Entry
from pipeline.stages.records import Receipt
from pipeline.storage.store import Store

LATENCY = (0.03, 0.05)
TEMPLATES = 64
SAMPLES = 200
"""Of a piece that is measured on its own."""


def receipts() -> list[bytes]:
    """Pickled receipts of whole shards; a shard's name takes the place of the first one's."""
    found = []
    for seed in range(TEMPLATES):
        made = a_commit(2 * seed, "")
        found.append(pickle.dumps(Receipt(
            name(0), 0, 1, made.files, replace(made.stats, failures=0), (), made.candidates,
            dict(made.seconds),
        )))  # fmt: skip
    return found


class Feed:
    """An executor that works at a fixed rate, or at once; it remembers when it handed over what."""

    def __init__(self, rate: float, seconds: float) -> None:
        self.gap = 1 / rate if rate else 0.0
        self.seconds = seconds
        self.templates = receipts()
        self.count = 0
        self.started = 0.0
        self.handed_over: dict[str, float] = {}
        self.begin: dict[str, float] = {}

    def __call__(self, job: Any, weights: Any, shards: Sequence[Shard]) -> Iterator[Receipt]:
        placeholder = name(0).encode()
        if not self.started:
            self.started, self.begin = time.perf_counter(), usage()
        for shard in shards:
            due = self.started + self.count * self.gap
            time.sleep(max(0.0, due - time.perf_counter()))
            if time.perf_counter() - self.started > self.seconds:
                return
            data = self.templates[self.count % TEMPLATES]
            receipt = pickle.loads(data.replace(placeholder, shard.id.encode()))
            self.handed_over[shard.id] = time.perf_counter()
            self.count += 1
            yield receipt


def usage() -> dict[str, float]:
    """This process: wall and CPU seconds, resident MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return {"wall": time.perf_counter(), "cpu": time.process_time(), "rss": mib}


def simulate(case: dict[str, Any]) -> dict[str, Any]:
    """One run of the driver; called in a process of its own."""
    feed = Feed(case["rate"], case["seconds"])
    latencies: list[float] = []
    calls = [0]
    marks: dict[str, dict[str, float]] = {"start": usage()}
    with ExitStack() as patches:
        spy = lambda *where: patches.enter_context(mock.patch.object(*where))  # noqa: E731
        spy(driver, "_executor", lambda *_: feed)
        # The network never runs: only the number of classes matters.
        spy(resolve, "resolve_labels", lambda *_: LABELS)
        spy(finish, "write_table", _marked(finish.write_table, marks))
        spy(committer, "write_commit", _timed(committer.write_commit, feed, latencies))
        spy(Store, "_do", _counted(Store._do, calls, feed))
        flags = {"input.url": case["input"], "output.url": case["output"],
                 "output.masks": ("parquet",), "model.weights": "demo",
                 "compute.executor": "ray"}  # fmt: skip
        driver.run(load_config(None, [], flags))
    begin, end, last = feed.begin, marks["labelled"], usage()
    wall, cpu = end["wall"] - begin["wall"], end["cpu"] - begin["cpu"]
    latencies.sort()
    return {
        "shards": feed.count,
        "reached_per_second": round(feed.count / wall, 1),
        "cpu_ms_per_shard": round(1000 * cpu / feed.count, 3),
        "core_share": round(cpu / wall, 2),
        "calls_per_shard": round(calls[0] / feed.count, 2),
        "commit_ms_median": round(1000 * statistics.median(latencies), 1),
        "commit_ms_p99": round(1000 * latencies[int(0.99 * len(latencies))], 1),
        "rss_mib": round(end["rss"]),
        "rss_kib_per_shard": round(1024 * (end["rss"] - begin["rss"]) / feed.count, 2),
        "plan_seconds": round(begin["wall"] - marks["start"]["wall"], 1),
        "finish_seconds": round(last["wall"] - end["wall"], 1),
    }


def _marked(call: Callable[..., Any], marks: dict[str, dict[str, float]]) -> Callable[..., Any]:
    def marked(*arguments: Any) -> Any:
        marks["labelled"] = usage()
        return call(*arguments)

    return marked


def _timed(call: Callable[..., Any], feed: Feed, found: list[float]) -> Callable[..., Any]:
    """Seconds from the receipt to the commit."""

    def timed(output: Store, commit: Any, **more: Any) -> Any:
        tag = call(output, commit, **more)
        found.append(time.perf_counter() - feed.handed_over.pop(commit.shard))
        return tag

    return timed


def _counted(call: Callable[..., Any], calls: list[int], feed: Feed) -> Callable[..., Any]:
    def counted(*arguments: Any, **more: Any) -> Any:
        calls[0] += bool(feed.started)
        return call(*arguments, **more)

    return counted


# --- The pieces, each measured on its own: what the model is fed with -------------------------


def pieces(store: Store) -> dict[str, float]:
    """CPU seconds of what the driver does for a shard, and of a request to the store."""
    templates = receipts()
    shard = Shard(name(0), "tar", "a.tar", 99, "tag")
    spec = a_spec(Store("in"), store)
    receipt = pickle.loads(templates[0])
    commit, index = build_commit(spec, shard, [receipt]), CommitIndex()
    entry = Entry.of(commit, "tag")
    data = commit.to_json()
    numbers = iter(range(10**9))
    with ThreadPoolExecutor(1) as pool:
        found = _in_turn({
            "unpickle": lambda: pickle.loads(templates[next(numbers) % TEMPLATES]),
            "handover": lambda: pool.submit(int).result(),
            "build": lambda: build_commit(spec, shard, [receipt]),
            "encode": commit.to_json,
            "put": lambda: store.create(f"q/{next(numbers)}", data),
        })  # fmt: skip
    seconds_of_request = found.pop("put")[1]
    return {
        **{name: cpu for name, (cpu, _) in found.items()},
        # So many that rows are written away as well.
        "entry": _cpu(lambda: index.add(Entry.of(commit, "tag")), 1024)[0],
        "entry_bytes": float(len(pickle.dumps(entry))),
        "request": _cpu(lambda: store.create(f"p/{next(numbers)}", data), SAMPLES, 16)[0],
        "seconds_of_request": seconds_of_request,
        "core_share": _core_share(),
    }


def _in_turn(calls: dict[str, Callable[[], Any]]) -> dict[str, tuple[float, float]]:
    """CPU and wall seconds of each call, one after the other as in the driver.

    In a loop of its own each would find the caches full of its own data, and take half as long.
    """
    found = dict.fromkeys(calls, (0.0, 0.0))
    for call in calls.values():
        call()
    for _ in range(SAMPLES):
        time.sleep(0.002)  # the driver, too, waits for its next receipt
        for piece, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            spent = time.process_time() - cpu, time.perf_counter() - wall
            found[piece] = (found[piece][0] + spent[0], found[piece][1] + spent[1])
    return {piece: (cpu / SAMPLES, wall / SAMPLES) for piece, (cpu, wall) in found.items()}


def _core_share() -> float:
    """What other processes leave to a thread that only computes."""
    wall, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < 3:
        pass
    return (time.process_time() - cpu) / (time.perf_counter() - wall)


def _cpu(call: Callable[[], Any], count: int = SAMPLES, threads: int = 1) -> tuple[float, float]:
    """CPU and wall seconds of one call."""
    with ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool:
        call()
        wall, cpu = time.perf_counter(), time.process_time()
        if pool is None:
            for _ in range(count):
                call()
        else:
            list(pool.map(lambda _: call(), range(count)))
        return (time.process_time() - cpu) / count, (time.perf_counter() - wall) / count


# --- All cases, in processes of their own -----------------------------------------------------


def _child(what: str, case: dict[str, Any], env: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.simulation", "--child", what, json.dumps(case)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=900,
                          env={**os.environ, **env})  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


CHILDREN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "simulate": simulate,
    "pieces": lambda case: pieces(Store(case["output"])),
}


def measure(kind: str, rate: float, arguments: Any, folder: Path) -> dict[str, Any]:
    """One case beside its prediction."""
    count = int((rate or 1500) * arguments.seconds) + 1
    bookkeeping.make_stubs(folder / "in", ".tar", count)
    case = {
        "rate": rate,
        "seconds": arguments.seconds,
        "input": str(folder / "in"),
        "output": str(folder / "out"),
    }
    with ExitStack() as servers:
        env: dict[str, str] = {}
        if kind == "s3":
            server = servers.enter_context(StandIn.started(LATENCY, arguments.cap))
            case["output"], env = server.url, server.env
        found_pieces = _child("pieces", {"output": case["output"]}, env)
        before = server.counts() if kind == "s3" else {}
        found = _child("simulate", case, env)
        counts = server.counts() if kind == "s3" else {}
    if counts:
        of_shards = ("PUT _commits/", "DELETE _quarantine/")
        total = sum(counts.get(key, 0) for key in of_shards)
        found["requests_per_shard"] = round(total / found["shards"], 2)
        found["refused"] = int(counts.get("503", 0) - before.get("503", 0))
    way = "threads" if kind == "s3" else "files"
    return {"store": kind, "driver": way, "target_per_second": rate, "measured": found,
            "pieces": found_pieces}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rates", type=float, nargs="+", default=[98, 391, 0])
    parser.add_argument("--stores", nargs="+", default=["local", "s3"], choices=["local", "s3"])
    parser.add_argument("--cap", type=float, nargs=2, metavar=("WRITES", "READS"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "CASE"))
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(CHILDREN[arguments.child[0]](json.loads(arguments.child[1]))))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fcnseg-simulation-") as folder:
        for kind in arguments.stores:
            for rate in arguments.rates:
                place = Path(folder, "case")
                place.mkdir()
                rows.append(measure(kind, rate, arguments, place))
                print(scale_model.compared(rows[-1]), flush=True)
                shutil.rmtree(place)
                if arguments.json:
                    arguments.json.write_text(json.dumps(_figures(rows), indent=1) + "\n")


def _figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "command": " ".join(["python -m benchmarks.simulation", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": os.getloadavg(),
        "versions": {"python": platform.python_version(), "s3fs": s3fs.__version__},
        "latency_seconds": LATENCY,
        "rows": rows,
    }


if __name__ == "__main__":
    main()
