"""Measure the time and memory of planning, resuming and finishing with very many shards.

The benchmark makes N stub tars and N commits of realistic size (21 classes, counts of 256 images).
It then measures each step in a separate process: wall time, and peak memory less that of the
imports. It decodes nothing and runs no network. The real committer commits new shards from
simulated receipts.

The S3 column is an extrapolation: the time that the step took here, plus the time of its requests
at the given rates. Listings run one page after the other, with 1000 objects each; gets and puts run
16 at a time. With --store, the benchmark first measures the rates there (the prefix must be empty).

Usage: python -m benchmarks.bookkeeping [--shards N ...] [--new K] [--store URL] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fcn_core.labels import label_set
from pipeline.committer import Committer
from pipeline.config import load_config
from pipeline.finish import write_results, write_table
from pipeline.inputs.shard import ChunkLimits
from pipeline.manifest import Manifest
from pipeline.output.commit_index import CommitIndex
from pipeline.output.commits import Commit
from pipeline.output.run_result import RunResult
from pipeline.output.shard_table import Entry
from pipeline.paths import SHARD_TABLE, commit_path
from pipeline.plan import Plan, make_plan
from pipeline.resolve import resolve_plan
from pipeline.stages.histograms import Histograms
from pipeline.stages.records import Candidate, FileRecord, Receipt
from pipeline.stages.spec import RunSpec
from pipeline.storage.store import Store

LABELS = label_set("voc")
CLASSES = LABELS.num_classes
IMAGES = 256
VARIANTS = 2048
"""Different matrices: as many as a batch has rows, so that the table compresses no better."""

PAGE = 1000
THREADS = 16
LIST_SECONDS, REQUESTS_PER_SECOND = 0.1, 640.0
"""Assumed where nothing was measured: one page of a listing; gets or puts on 16 threads."""

MOMENT = 1_700_000_000

MOST_BODIES = 200_000
"""Of more commits only the names are made. Nobody opens a commit that is in the table; the table is
then made from rows as a first run makes it, and the step without a table is left out."""


def counts(seed: int) -> tuple[tuple[int, ...], ...]:
    """A confusion matrix of 256 images of 500x375: most is background, most of it right."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(CLASSES, 0.3)) * 0.3
    share[0] += 0.7
    wrong = rng.dirichlet(np.full(CLASSES, 0.5), CLASSES) * 0.15 + 0.85 * np.eye(CLASSES)
    matrix = (IMAGES * 187_500 * share[:, None] * wrong).astype(np.int64)
    return tuple(map(tuple, matrix.tolist()))


def histograms(matrix: tuple[tuple[int, ...], ...]) -> Histograms:
    """Of 256 images whose shares are drawn around those of the matrix."""
    shares = np.sum(matrix, axis=0) / np.sum(matrix)
    rng = np.random.default_rng(int(matrix[0][0]))
    pixels = rng.multinomial(187_500, rng.dirichlet(shares * 5 + 1e-3, IMAGES))
    sizes = [(375, 500) if seed % 4 else (500, 375) for seed in range(IMAGES)]
    return Histograms.count(pixels.tolist(), rng.beta(20, 2, IMAGES).tolist(), sizes, CLASSES)


def name(number: int) -> str:
    return f"train/part-{number // 10_000:03d}/shard-{number:07d}"


def a_commit(seed: int, etag: str) -> Commit:
    matrix = counts(seed)
    return Commit(
        shard="SHARD",
        commit_id="0" * 32,
        fingerprint="f" * 16,
        input={"location": "/data/in/SHARD.tar", "etag": etag, "size": 48 * 2**20},
        files=(FileRecord("masks/SHARD.parquet", 10**6 + seed, "a" * 64),
               FileRecord("_previews/SHARD.parquet", 40_000 + seed, "b" * 64)),
        masks=("parquet",),
        images=IMAGES,
        labeled_images=IMAGES,
        failures=int(seed % 500 == 0),
        confusion=matrix,
        class_pixels=tuple(np.sum(matrix, axis=0).tolist()),
        confidence_sum=IMAGES * 0.9 + seed / VARIANTS,
        seconds={"decode": 1.25, "forward": 60.5, "read": 0.5, "write": 2.75},
        run="20260101T000000Z-00000000",
        histograms=histograms(matrix),
        candidates=(
            Candidate("2007_000033", 0.7, 0.2, "_previews/SHARD.parquet"),
            Candidate("2007_000042", 0.6, 0.3, "_previews/SHARD.parquet"),
        ),
    )  # fmt: skip


def make_world(folder: Path, shards: int) -> None:
    """Input and commits; written as files, which is faster than committing and gives the same."""
    make_stubs(folder / "in", ".tar", shards)
    etag = Store(str(folder / "in")).stat(f"{name(0)}.tar").etag
    if shards > MOST_BODIES:
        make_stubs(folder / "out/_commits", ".json", shards)
    else:
        texts = [a_commit(seed, etag).to_json() for seed in range(min(VARIANTS, shards))]
        for number in range(shards):
            path = folder / "out" / commit_path(name(number))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(texts[number % len(texts)].replace(b"SHARD", name(number).encode()))
    limits = ChunkLimits(512, 64 * 2**20)
    identity = Manifest(str(folder / "in"), limits, LABELS, {"variant": "fcn8s"}, "tar")
    (folder / "out/_run.json").write_bytes(identity.to_json())


def make_stubs(folder: Path, suffix: str, count: int) -> None:
    """Empty objects of one time: hard links to a few files, which are made in microseconds."""
    for number in range(count):
        path = folder / f"{name(number)}{suffix}"
        if number % 10_000 == 0:
            path.parent.mkdir(parents=True)
            path.touch()
            os.utime(path, (MOMENT, MOMENT))
            first = path
        else:
            os.link(first, path)


# --- The steps; each is called in a process of its own ----------------------------------------


def plan(folder: Path) -> Plan:
    flags = {"input.url": str(folder / "in"), "output.url": str(folder / "out")}
    return make_plan(resolve_plan(load_config(None, [], flags)))


def plan_nothing_done(folder: Path) -> str:
    flags = {"input.url": str(folder / "in"), "output.url": str(folder / "nothing")}
    found = make_plan(resolve_plan(load_config(None, [], flags)))
    return f"{len(found.pending)} pending"


def plan_something_done(folder: Path) -> str:
    found = plan(folder)
    return f"{found.done} done, {len(found.pending)} pending"


def finish(folder: Path) -> str:
    """What `run` does when nothing is pending, or after all is labelled."""
    return _finish(plan(folder), Store(str(folder / "out")))


def tabulate(folder: Path) -> str:
    """The end of a first run: every commit is new, and goes through the temporary file."""
    output, index = Store(str(folder / "out")), CommitIndex()
    input_tag = Store(str(folder / "in")).stat(f"{name(0)}.tar").etag
    tag = output.stat(commit_path(name(0))).etag
    entries = [Entry.of(a_commit(seed, input_tag), tag) for seed in range(VARIANTS)]
    count = sum(1 for _ in output.listing("_commits"))
    for number in range(count):
        index.add(replace(entries[number % VARIANTS], shard=name(number)))
    summary = write_table(output, index, LABELS)
    return f"{summary.shards} in the table, {output.stat(SHARD_TABLE).size} bytes"


def a_spec(images: Store, output: Store) -> RunSpec:
    """Settings of a run that writes Parquet masks; there are no weights."""
    limits = ChunkLimits(512, 64 * 2**20)
    return RunSpec(
        config=load_config(None, [], {"input.url": images.url, "output.url": output.url}),
        images=images,
        label_folder=None,
        output=output,
        fingerprint="f" * 16,
        labels=LABELS,
        manifest=Manifest(images.url, limits, LABELS, {}),
        masks=("parquet",),
        run="20260101T000000Z-00000000",
    )


def resume(folder: Path) -> str:
    """Commit what is pending, then finish."""
    found, output = plan(folder), Store(str(folder / "out"))
    committer = Committer(found, a_spec(found.sources.images, output))
    committer.expect(found.pending)
    for number, shard in enumerate(found.pending):
        made = replace(a_commit(number, shard.etag), failures=0)
        committer.add(
            Receipt(shard.id, 0, 1, made.files, made.stats, (), made.candidates, dict(made.seconds))
        )
    committer.settle()
    return f"{committer.committed} committed, {_finish(found, output)}"


def _finish(found: Plan, output: Store) -> str:
    summary = write_table(output, found.commit_index, LABELS)
    result = RunResult(
        output=output.url,
        labels=LABELS,
        scores=summary.scores(),
        images=summary.images,
        failures=summary.failures,
        shards=found.total,
        committed=summary.shards,
        done_now=0,
        failed=(),
        bad=summary.failures,
        seen=summary.images + summary.failures,
        over_limit=False,
        vanished=0,
        passed_over=(),
        seconds=1.0,
    )
    write_results(output, summary, result)
    return f"{summary.shards} in the table, {output.stat(SHARD_TABLE).size} bytes"


FROM_COMMITS, FROM_ROWS = "plan, finish; no table", "first table, from rows"
STEPS: dict[str, Callable[[Path], str]] = {
    "plan, nothing done": plan_nothing_done,
    FROM_COMMITS: finish,
    FROM_ROWS: tabulate,
    "plan": plan_something_done,
    "plan, finish": finish,
    "plan, new shards": plan_something_done,
    "plan, commit, finish; new shards": resume,
}


def requests(step: str, shards: int, new: int, table_bytes: int) -> tuple[int, int]:
    """(pages of listings, gets and puts) of a step."""
    pages = -(-shards // PAGE)
    if step == "plan, nothing done":
        return pages + 1, 1
    table = -(-table_bytes // (16 * 2**20))
    others = {
        FROM_COMMITS: shards + table + 40,
        FROM_ROWS: table,
        "plan": table,
        "plan, finish": table + 40,
        "plan, new shards": table,
        # Of a new shard: its commit; a quarantine table only where there is one.
        "plan, commit, finish; new shards": 2 * table + new + 40,
    }
    return 0 if step == FROM_ROWS else 2 * pages, others[step]


def measure(step: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.bookkeeping", "--step", step, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def run_step(step: str, folder: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    said = STEPS[step](folder)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({
        "step": step, "said": said, "seconds": round(seconds, 2),
        "peak_mib": peak // 1024, "above_imports_mib": (peak - before) // 1024,
    }))  # fmt: skip


def measure_store(url: str, count: int = 3000) -> dict[str, float]:
    """Seconds of a page of a listing, and small gets and puts a second on 16 threads."""
    store = Store(url)
    data = a_commit(0, "e").to_json()
    paths = [f"_commits/{name(number)}.json" for number in range(count)]
    with ThreadPoolExecutor(THREADS) as pool:
        started = time.perf_counter()
        list(pool.map(lambda path: store.write(path, data), paths))
        puts = count / (time.perf_counter() - started)
        started = time.perf_counter()
        list(pool.map(store.read, paths))
        gets = count / (time.perf_counter() - started)
        started = time.perf_counter()
        found = sum(1 for _ in store.listing("_commits"))
        listing = (time.perf_counter() - started) / (found / PAGE)
        list(pool.map(store.delete, paths))
    return {
        "list_seconds_per_1000": round(listing, 3),
        "gets_per_second": round(gets),
        "puts_per_second": round(puts),
    }


def measure_all(shards: int, new: int, rates: dict[str, float]) -> Iterator[dict[str, Any]]:
    folder = Path(tempfile.mkdtemp(prefix="fcnseg-bookkeeping-"))
    try:
        make_world(folder, shards)
        left_out = FROM_COMMITS if shards > MOST_BODIES else FROM_ROWS
        for step in STEPS:
            if step == left_out:
                continue
            if step == "plan, new shards":
                make_new(folder, shards, new)
            table = folder / "out/stats/shards.parquet"
            table_bytes = table.stat().st_size if table.exists() else 0
            found = measure(step, folder)
            table_bytes = max(table_bytes, table.stat().st_size if table.exists() else 0)
            pages, others = requests(step, shards, new, table_bytes)
            rate = min(rates["gets_per_second"], rates["puts_per_second"])
            remote = pages * rates["list_seconds_per_1000"] + others / rate
            yield {
                "shards": shards, **found, "list_pages": pages, "gets_and_puts": others,
                "s3_extrapolated_seconds": round(found["seconds"] + remote),
            }  # fmt: skip
    finally:
        shutil.rmtree(folder)


def make_new(folder: Path, shards: int, new: int) -> None:
    for number in range(shards, shards + new):
        path = folder / f"in/{name(number)}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[10_000])
    parser.add_argument("--new", type=int, default=1000)
    parser.add_argument("--store")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", nargs=2, metavar=("STEP", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.step:
        run_step(arguments.step[0], Path(arguments.step[1]))
        return
    rates = {
        "list_seconds_per_1000": LIST_SECONDS,
        "gets_per_second": REQUESTS_PER_SECOND,
        "puts_per_second": REQUESTS_PER_SECOND,
    }
    if arguments.store:
        rates = measure_store(arguments.store)
    rows = []
    print(f"{'shards':>9}  {'step':33} {'seconds':>8} {'peak MiB':>9} {'+imports':>8} {'S3, s':>6}")
    for shards in arguments.shards:
        for row in measure_all(shards, arguments.new, rates):
            rows.append(row)
            print(
                f"{row['shards']:9,}  {row['step']:33} {row['seconds']:8.1f} {row['peak_mib']:9}"
                f" {row['above_imports_mib']:8} {row['s3_extrapolated_seconds']:6}  {row['said']}",
                flush=True,
            )
    figures = {
        "command": " ".join(["python -m benchmarks.bookkeeping", *sys.argv[1:]]),
        "new": arguments.new,
        "rates": {**rates, "measured": bool(arguments.store)},
        "rows": rows,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
