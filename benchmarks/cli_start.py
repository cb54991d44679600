"""Measure how long `fcnseg --help` takes, in this build and in another one.

Usage: python -m benchmarks.cli_start [OTHER_PYTHON] [--rounds N] [--json FILE]

OTHER_PYTHON is the interpreter of a virtual environment in which the other build is installed:
`../old/.venv/bin/python`. Without it, only this build is measured. Each round starts every command
in one build and then in the other, so that other programs slow both builds in the same way.
The result is the median over all rounds of the time of a whole process, from the start of the
interpreter to its end: wall-clock seconds, and CPU seconds (user and system), which other programs
change less. One more round runs first and does not count: it fills the disk cache and compiles
modules. `python` is the interpreter alone, which every build needs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

COMMANDS = {
    "python": ["-c", "pass"],
    "fcnseg --help": ["-m", "pipeline", "--help"],
    "fcnseg run --help": ["-m", "pipeline", "run", "--help"],
    "fcnseg weights --help": ["-m", "pipeline", "weights", "--help"],
    "fcnseg --version": ["-m", "pipeline", "--version"],
    "fcnseg run (usage error)": ["-m", "pipeline", "run"],
}


def measure_process(python: str, words: list[str], folder: str) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one process, started in an empty folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if python == sys.executable:
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([python, *words], cwd=folder, env=environment, capture_output=True, timeout=120)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(other: str | None, rounds: int) -> list[dict[str, Any]]:
    """One row per command: median seconds of this build and of the other one, and their ratio."""
    builds = {"this": sys.executable} | ({"other": other} if other else {})
    times: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for command, words in COMMANDS.items():
                for build, python in builds.items():
                    spent = measure_process(python, words, folder)
                    if number:
                        times[command, build].append(spent)
    rows = []
    for command in COMMANDS:
        row: dict[str, Any] = {"command": command}
        for place, unit in enumerate(("wall", "cpu")):
            medians = {
                build: statistics.median(spent[place] for spent in times[command, build])
                for build in builds
            }
            row |= {f"{build}_{unit}_s": round(medians[build], 3) for build in builds}
            if other:
                row[f"{unit}_ratio"] = round(medians["other"] / medians["this"], 2)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", nargs="?", help="python of the other build")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    other = str(Path(options.other).absolute()) if options.other else None
    rows = measure(other, options.rounds)
    columns = list(rows[0])[1:]
    print(f"{'command':26}", *(f"{name:>12}" for name in columns))
    for row in rows:
        print(f"{row['command']:26}", *(f"{row[name]:12}" for name in columns))
    figures = {
        "command": " ".join(["python -m benchmarks.cli_start", *sys.argv[1:]]),
        "rounds": options.rounds,
        "rows": rows,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
    }
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
