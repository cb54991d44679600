"""Predict a run of any size by arithmetic, from inputs that name their sources.

`driver` predicts what `benchmarks.simulation` measures, from parts that were measured separately.
`whole_run` extends this to a run over 10^9 images on 1,000 GPUs. `python -m benchmarks.scale_model`
prints the tables of docs/simulation.md from `benchmarks/simulation.json`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.committer import COMMITTERS, MAX_WAITING
from pipeline.driver import WAVE

FIGURES = Path(__file__).parent / "simulation.json"
BEFORE = Path(__file__).parent / "simulation_before.json"
"""Of the driver that committed one shard after the other."""


@dataclass(frozen=True)
class Pieces:
    """Measured one by one, seconds of CPU unless said otherwise.

    Attributes:
        unpickle, build, encode, entry: of a receipt, its commit, the commit's JSON, its row.
        handover: to a thread that commits, and back.
        entry_bytes: of a row, pickled.
        request: of the client of the store.
        seconds_of_request: wall, one after the other.
        core_share: of one core that a thread which only computes gets; 1 on an idle machine.
    """

    unpickle: float
    build: float
    encode: float
    entry: float
    entry_bytes: float
    request: float
    seconds_of_request: float
    core_share: float = 1.0
    handover: float = 0.0


@dataclass(frozen=True)
class Driver:
    """How the driver commits: threads, shards begun and not yet finished, requests of one shard."""

    threads: int
    window: int
    requests: int


SERIAL = Driver(threads=1, window=1, requests=2)
"""As it was: a shard is committed before the next receipt is taken, after a deletion."""


THREADS = Driver(threads=COMMITTERS, window=MAX_WAITING, requests=1)
"""The commit; a quarantine table only where there is one to write, or to delete."""


FILES = Driver(threads=1, window=1, requests=1)
"""In a local output: a file takes milliseconds, and is waited for."""

WAYS = {"serial": SERIAL, "threads": THREADS, "files": FILES}


@dataclass(frozen=True)
class Prediction:
    """What the simulation measures, too; milliseconds, and shards a second."""

    reached_per_second: float
    cpu_ms_per_shard: float
    commit_ms: float
    requests_per_shard: float
    limit: str


def driver(pieces: Pieces, rate: float, latency: float, how: Driver) -> Prediction:
    """The driver at a rate.

    Args:
        pieces: of this machine.
        rate: shards a second that come; 0 is as many as are taken.
        latency: seconds until the store answers; 0 is what was measured.
        how: it commits.
    """
    own = pieces.unpickle + pieces.handover + pieces.build + pieces.encode
    cpu = own + pieces.entry + how.requests * pieces.request
    commit = own + how.requests * max(latency, pieces.seconds_of_request)
    # One interpreter lock, one core; and each thread waits for one answer at a time.
    limits = {"one core": pieces.core_share / cpu, "waiting for answers": how.threads / commit,
              "receipts": rate or math.inf}  # fmt: skip
    limit = min(limits, key=lambda name: limits[name])
    reached = limits[limit]
    if limit != "receipts":  # Little's law: the window is full
        commit = max(commit, how.window / reached)
    return Prediction(reached, 1000 * cpu, 1000 * commit, how.requests, limit)


PAIRS = (
    ("reached_per_second", "reached_per_second"),
    ("cpu_ms_per_shard", "cpu_ms_per_shard"),
    ("commit_ms_median", "commit_ms"),
    ("requests_per_shard", "requests_per_shard"),
)
"""Names of a figure in the simulation and here."""


def predicted(row: dict[str, Any]) -> Prediction:
    """Of a case, from its pieces.

    The share of a core is what was left just before, or what the run itself then got, if that is
    more: other work comes and goes. Where one core is the limit, the rate so tells no more than
    the CPU time of a shard does.
    """
    share = max(row["pieces"]["core_share"], row["measured"]["core_share"])
    pieces = Pieces(**{**row["pieces"], "core_share": share})
    latency = 0.04 if row["store"] == "s3" else 0.0
    return driver(pieces, row["target_per_second"], latency, WAYS[row["driver"]])


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """Measured over predicted, for every figure that both have."""
    measured, found = row["measured"], asdict(predicted(row))
    return {one: round(measured[one] / found[other], 2) for one, other in PAIRS if one in measured}


def compared(row: dict[str, Any]) -> str:
    """A line of the benchmark's output: each figure, measured and predicted."""
    found = asdict(predicted(row))
    words = [f"{row['store']:5} at {row['target_per_second'] or 'any'} shards/s:"]
    for one, other in PAIRS:
        if one in row["measured"]:
            words.append(f"{one} {row['measured'][one]:.4g} ({found[other]:.4g})")
    worst = max(ratios(row).values(), key=lambda ratio: abs(math.log(ratio)))
    words.append(f"[{found['limit']}]")
    words.append("agrees" if 0.5 <= worst <= 2 else f"DISAGREES: {worst}")
    return "  ".join(words)


@dataclass(frozen=True)
class Given:
    """An input of the model, and where it comes from."""

    value: float
    source: str


GIVEN = {
    "images": Given(1e9, "the task"),
    "GPUs": Given(1000, "the task"),
    "images a shard": Given(512, "the default chunk, one chunk a shard"),
    "images a second and GPU": Given(
        200, "assumed: 193 GFLOP an image of 375x500 (docs/forward.md) are 39 TFLOP/s"
    ),
    "shards an executor gets at once": Given(WAVE, "pipeline/driver.py"),
    "seconds until a wave works": Given(
        20, "assumed: 14 s of a Ray Data job on two cores, and the weights"
    ),
    "seconds of planning a shard": Given(57.5e-6, "measured here, a million shards (scale.md)"),
    "seconds of finishing a shard": Given(222.7e-6, "measured here, a million shards (scale.md)"),
    "seconds of a page of 1000 names": Given(0.1, "assumed"),
    "driver bytes a shard": Given(273, "measured here: 332 to 566 MiB from 10^5 to 10^6 shards"),
    "driver MiB without shards": Given(306, "measured here: 332 MiB less those of 10^5 shards"),
    "seconds until S3 answers": Given(0.04, "assumed: 30 to 50 ms"),
    "worker puts a shard": Given(2, "masks and previews (pipeline/stages/write.py)"),
    "worker gets a shard": Given(6, "assumed: a tar of 64 MiB in ranges"),
    "dollars a 1000 puts": Given(0.005, "Amazon's list price, S3 Standard, us-east-1"),
    "dollars a 1000 gets": Given(0.0004, "Amazon's list price, S3 Standard, us-east-1"),
    "writes a second and prefix": Given(3500, "Amazon's S3 performance guidelines"),
    "GPU failures a GPU hour": Given(
        419 / (54 * 24 * 16384), "Meta, The Llama 3 Herd of Models: 419 in 54 days of 16,384"
    ),
    "chunks in flight a GPU": Given(4, "assumed: read, segment, write, and one waiting"),
}


def whole_run(pieces: Pieces, how: Driver, given: dict[str, float]) -> dict[str, float]:
    """A run from start to end.

    Args:
        pieces: of the driver, with the client of the store that it has.
        how: it commits.
        given: values by the names of `GIVEN`.
    """
    shards = given["images"] / given["images a shard"]
    images_per_second = given["GPUs"] * given["images a second and GPU"]
    rate = images_per_second / given["images a shard"]
    found = driver(pieces, rate, given["seconds until S3 answers"], how)
    pages = shards / 1000
    puts = shards * (given["worker puts a shard"] + 1)
    gets = shards * given["worker gets a shard"]
    hours = shards / found.reached_per_second / 3600
    gpu_hours = given["GPUs"] * hours
    failures = gpu_hours * given["GPU failures a GPU hour"]
    return {
        "shards": shards,
        "shards a second that the GPUs make": rate,
        "shards a second that the driver commits": found.reached_per_second,
        "images a second and GPU at which the driver is full":
            driver(pieces, 0, given["seconds until S3 answers"], how).reached_per_second
            * given["images a shard"] / given["GPUs"],
        "driver CPU, ms a shard": found.cpu_ms_per_shard,
        "cores of the driver": found.cpu_ms_per_shard / 1000 * found.reached_per_second,
        "driver memory, MiB":
            given["driver MiB without shards"] + shards * given["driver bytes a shard"] / 2**20,
        "minutes of planning":
            (pages * given["seconds of a page of 1000 names"]
             + shards * given["seconds of planning a shard"]) / 60,
        "minutes of segmenting, without starts": 60 * hours,
        "minutes of starting waves":
            math.ceil(shards / given["shards an executor gets at once"])
            * given["seconds until a wave works"] / 60,
        "minutes of finishing": shards * given["seconds of finishing a shard"] / 60,
        "commits a second, of those a prefix takes":
            found.reached_per_second / given["writes a second and prefix"],
        "million requests": (puts + gets + pages + shards * (how.requests - 1)) / 1e6,
        "dollars for requests":
            ((puts + pages) * given["dollars a 1000 puts"]
             + gets * given["dollars a 1000 gets"]) / 1000,
        "GPUs that fail": failures,
        "images segmented twice":
            failures * given["chunks in flight a GPU"] * given["images a shard"],
    }  # fmt: skip


RATES = (50, 200, 400)


def tables(figures: dict[str, Any], before_figures: dict[str, Any]) -> str:
    """The tables of docs/simulation.md, from what the simulation left, now and before."""
    lines = [
        "| store, commits | shards/s, target | figure | measured | predicted | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in (*before_figures["rows"], *figures["rows"]):
        found, of = asdict(predicted(row)), ratios(row)
        for one, other in PAIRS:
            if one in of:
                numbers = f"{row['measured'][one]:.3g} | {found[other]:.3g} | {of[one]}"
                where = f"{row['store']}, {row['driver']} | {row['target_per_second'] or 'any'}"
                lines.append(f"| {where} | {one} | {numbers} |")
    pieces = Pieces(**{**_row(figures, "s3")["pieces"], "core_share": 1.0})
    given = {name: item.value for name, item in GIVEN.items()}
    before = whole_run(
        Pieces(**{**_row(before_figures, "s3")["pieces"], "core_share": 1.0}), SERIAL, given
    )
    columns = [before] + [
        whole_run(pieces, THREADS, {**given, "images a second and GPU": rate}) for rate in RATES
    ]
    lines += ["", "| 10^9 images, 1,000 GPUs, at | 200 images/s and GPU, as it was | "
              + " | ".join(map(str, RATES)) + " |", "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for name in before:
        lines.append(f"| {name} | " + " | ".join(f"{c[name]:,.4g}" for c in columns) + " |")
    lines += ["", "| given | value | source |", "| --- | --- | --- |"]
    lines += [f"| {name} | {item.value:.4g} | {item.source} |" for name, item in GIVEN.items()]
    return "\n".join(lines) + "\n"


def _row(figures: dict[str, Any], store: str) -> dict[str, Any]:
    return next(row for row in figures["rows"] if row["store"] == store)


def main() -> None:
    print(tables(json.loads(FIGURES.read_text()), json.loads(BEFORE.read_text())), end="")


if __name__ == "__main__":
    main()
