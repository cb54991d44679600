"""Faults of a cluster of several nodes, one after the other, on one cluster.

    FCNSEG_LONG=1 python -m tests.support.cluster_faults

Each fault strikes in the middle of a run of its own; each output must be the tree of an undisturbed
local run. What was done more than once is counted (`tests.support.cluster_trace`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.driver import run
from pipeline.storage.store import Store
from tests.support import networks, world
from tests.support.cluster import Cluster
from tests.support.cluster_trace import Step, Trace, places, redone
from tests.support.s3_server import S3Server

SHARDS, IMAGES, CHUNK = 20, 4, 2
CHUNKS = SHARDS * IMAGES // CHUNK
PAUSE = 0.6
"""Seconds that a network waits per chunk."""

RUN_SECONDS = 600
_START_SECONDS = 120
"""For a node that joins, until it has computed something: less than the rest of the run takes."""

Fault = Callable[[], None]


@dataclass
class Figures:
    """What came of one fault.

    Attributes:
        name: of the fault.
        exit_codes: of its drivers, in order.
        seconds: from the start of the first driver to the end of the last.
        steps: the trace.
        differences: paths at which the tree is not that of the undisturbed run.
        said: by the last driver, on stderr.
    """

    name: str
    exit_codes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    steps: list[Step] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    said: str = ""

    def line(self) -> str:
        """A row of the table."""
        again = ", ".join(f"{what} {count}" for what, count in redone(self.steps).items())
        where = dict(sorted(places(self.steps, "compute").items()))
        trees = f"{len(self.differences)} differences" if self.differences else "equal"
        return (
            f"{self.name}: exit {self.exit_codes}, {self.seconds:.0f} s, tree {trees}, again: "
            f"{again} of {CHUNKS} chunks; computed on {where}"
        )


class Scenarios:
    """The runs on one cluster; `calm` is the undisturbed tree.

    The environment of this process is that of the server's owner.
    """

    def __init__(self, server: S3Server, cluster: Cluster, trace: Trace, weights: Path) -> None:
        self.cluster = cluster
        self.trace = trace
        self.weights = weights
        self.bucket = f"s3://{server.new_bucket()}"
        source = Store(f"{self.bucket}/in")
        for shard in range(SHARDS):
            source.write(f"s{shard:02d}.tar", world.tar(world.samples(shard, IMAGES)))
        calm = world.config(
            source.url, f"{self.bucket}/calm", weights,
            output__masks=("parquet", "png"), limits__chunk_images=CHUNK,
        )  # fmt: skip
        assert run(calm).exit_code == 0
        self.calm = world.tree(calm.output.url)

    def words(self, output: str, *more: str) -> list[str]:
        """Arguments of `run` and `submit`: a CPU network in the place of a GPU."""
        return [
            f"{self.bucket}/in", f"{self.bucket}/{output}", "--weights", str(self.weights),
            "--masks", "parquet,png", "--gpus-per-worker", "1", "--set", "compute.device=cpu",
            "--set", "compute.threads_per_worker=1", "--set", f"limits.chunk_images={CHUNK}", *more,
        ]  # fmt: skip

    def run(self, name: str, *more: str, at: int = 0, fault: Fault | None = None) -> Figures:
        """A run from the head; once so many chunks are computed, the fault strikes."""
        figures = Figures(name)
        self._drive(figures, ["run", *self.words(name, *more), "--address", self.cluster.address],
                    at, fault)  # fmt: skip
        return self.judge(figures)

    def rerun(self, figures: Figures, *more: str) -> Figures:
        """The same command once more."""
        words = self.words(figures.name, *more)
        self._drive(figures, ["run", *words, "--address", self.cluster.address], 0, None)
        return self.judge(figures)

    def judge(self, figures: Figures) -> Figures:
        """Compare the tree with the undisturbed one."""
        found = world.tree(f"{self.bucket}/{figures.name}")
        paths = {*self.calm, *found}
        figures.differences = sorted(p for p in paths if self.calm.get(p) != found.get(p))
        return figures

    def _drive(
        self, figures: Figures, words: list[str], at: int, fault: Fault | None, node: str = "head"
    ) -> None:
        started, before = time.monotonic(), len(self.trace.steps())
        with tempfile.TemporaryFile("w+") as said:
            command = [sys.executable, "-m", "pipeline", *words]
            driver = self.cluster.spawn(node, command, stdout=said, stderr=said)
            try:
                if fault is not None:
                    self.until_computed(at, before, driver)
                    fault()
                figures.exit_codes.append(driver.wait(RUN_SECONDS))
            finally:
                driver.kill()
                driver.wait()
                said.seek(0)
                figures.said = said.read()
        figures.seconds += time.monotonic() - started
        figures.steps += self.trace.steps(before)

    def until_computed(
        self,
        count: int,
        before: int,
        driver: subprocess.Popen[bytes] | None = None,
        node: str | None = None,
    ) -> None:
        """Wait until so many chunks are computed, on any node or on one."""
        deadline = time.monotonic() + (RUN_SECONDS if node is None else _START_SECONDS)

        def computed() -> int:
            found = places(self.trace.steps(before), "compute")
            return found.total() if node is None else found[node]

        while computed() < count:
            if time.monotonic() > deadline or (driver is not None and driver.poll() is not None):
                raise AssertionError(f"the run ended before {count} chunks were computed")
            time.sleep(0.1)

    # --- the faults --------------------------------------------------------------------------

    def node_joins(self, name: str) -> Figures:
        """A node joins in the middle, while the networks are slow: nodes take a while to start."""

        def join() -> None:
            before = len(self.trace.steps())
            self.trace.pause(4.0)
            self.cluster.join(name)
            self.until_computed(1, before, node=name)
            self.trace.pause(PAUSE)

        return self.run("late", at=6, fault=join)

    def undisturbed(self) -> Figures:
        """Nothing happens."""
        return self.run("whole")

    def node_dies(self, name: str) -> Figures:
        """A node's plug is pulled in the middle."""
        return self.run("killed", at=10, fault=lambda: self.cluster.die(name))

    def store_is_parted(self, name: str, seconds: float) -> Figures:
        """A node that reads and writes does not reach the store for a while."""

        def part() -> None:
            self.cluster.part(name)
            time.sleep(seconds)
            self.cluster.heal(name)

        return self.run("parted", *ON_WORKERS, at=6, fault=part)

    def store_stays_parted(self, name: str) -> Figures:
        """It stays away for longer than requests are tried again: the run ends, another resumes."""
        short = ("--set", "output.store.retry_seconds=10", "--set", "input.store.retry_seconds=10")
        try:
            figures = self.run(
                "cut", *ON_WORKERS, *short, at=6, fault=lambda: self.cluster.part(name)
            )
        finally:
            self.cluster.heal(name)
        return self.rerun(figures, *ON_WORKERS)

    def head_dies(self) -> Figures:
        """The head goes with the job on it; the job is submitted again to a new head."""
        figures, before = Figures("headless"), len(self.trace.steps())
        submit = ["submit", *self.words("headless"), "--address", self.cluster.dashboard]
        started = time.monotonic()
        self._drive(figures, [*submit, "--no-wait"], 0, None)
        self.until_computed(12, before)
        self.cluster.die("head")
        for name in list(self.cluster.nodes):  # nothing of an old cluster joins a new one
            self.cluster.die(name)
        self.cluster.start_head()
        for name in ("w1", "w2"):
            self.cluster.join(name)
        self._drive(figures, submit, 0, None)
        figures.seconds = time.monotonic() - started
        figures.steps = self.trace.steps(before)
        return self.judge(figures)


ON_WORKERS = ("--set", "compute.io_labels=[kind=gpu]")
"""Reading and writing on the nodes of the networks, though there is another."""


def main() -> None:
    """All of them; exit 1 if a tree differs."""
    with tempfile.TemporaryDirectory() as folder, S3Server.started() as server:
        os.environ.update(server.owner.environment(server.url))
        trace = Trace(Path(folder), PAUSE)
        weights = networks.write_tiny_weights(Path(folder) / "tiny.safetensors")
        more: dict[str, Any] = {**trace.environment, "PYTHONPATH": f"{trace.site}:{os.getcwd()}"}
        with Cluster.started(server, more) as cluster:
            cluster.join("w1")
            scenarios = Scenarios(server, cluster, trace, weights)
            bad = 0
            for fault in faults(scenarios):
                try:
                    figures = fault()
                except Exception:  # the next ones may be well
                    bad += 1
                    traceback.print_exc()
                    continue
                print(figures.line(), flush=True)
                if figures.differences or figures.exit_codes[-1]:
                    bad += 1
                    print(figures.differences[:5], figures.said[-4000:], flush=True)
    sys.exit(min(1, bad))


def faults(scenarios: Scenarios) -> list[Callable[[], Figures]]:
    """All of them, in an order that one cluster of a head and w1 can go through."""
    return [
        lambda: scenarios.node_joins("w2"),
        scenarios.undisturbed,
        lambda: scenarios.store_is_parted("w2", 15),
        lambda: scenarios.store_stays_parted("w2"),
        lambda: scenarios.node_dies("w2"),
        scenarios.head_dies,
    ]


if __name__ == "__main__":
    main()
