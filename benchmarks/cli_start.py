"""How long `fcnseg --help` takes: this build against another one, alternating.

Usage: python -m benchmarks.cli_start [OTHER_PYTHON] [--rounds N] [--json FILE]

OTHER_PYTHON is the interpreter of another build's virtual environment, into which that build is
installed: `../old/.venv/bin/python`. Each round starts every command once in each build, this build
and the other one by turns, so that other work on the machine slows both alike. Without OTHER_PYTHON
only this build is measured. Times are wall-clock seconds of a whole process, from the start of the
interpreter to its end; the median of all rounds counts. One round before the first warms the disk
cache and the compiled modules, and does not count. `python` is the interpreter alone: what no build
can avoid.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = {
    "python": ["-c", "pass"],
    "fcnseg --help": ["-m", "pipeline", "--help"],
    "fcnseg run --help": ["-m", "pipeline", "run", "--help"],
    "fcnseg weights --help": ["-m", "pipeline", "weights", "--help"],
    "fcnseg --version": ["-m", "pipeline", "--version"],
    "fcnseg run (usage error)": ["-m", "pipeline", "run"],
}


def seconds(python: str, words: list[str], folder: str) -> float:
    """Wall-clock seconds of one process, in an empty folder: the installed build answers."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if python == sys.executable:
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    started = time.perf_counter()
    subprocess.run([python, *words], cwd=folder, env=environment, capture_output=True, timeout=120)
    return time.perf_counter() - started


def measure(other: str | None, rounds: int) -> list[dict[str, object]]:
    """One row per command: median seconds of this build and of the other one, and their ratio."""
    builds = {"this": sys.executable} | ({"other": other} if other else {})
    times: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for command, words in COMMANDS.items():
                for build, python in builds.items():
                    took = seconds(python, words, folder)
                    if number:
                        times.setdefault((command, build), []).append(took)
    rows = []
    for command in COMMANDS:
        own = statistics.median(times[command, "this"])
        row: dict[str, object] = {"command": command, "this_s": round(own, 3)}
        if other:
            others = statistics.median(times[command, "other"])
            row |= {"other_s": round(others, 3), "ratio": round(others / own, 2)}
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
    print(f"{'command':26} {'this s':>7}" + (f" {'other s':>8} {'ratio':>6}" if other else ""))
    for row in rows:
        line = f"{row['command']:26} {row['this_s']:7.3f}"
        print(line + (f" {row['other_s']:8.3f} {row['ratio']:6.2f}" if other else ""))
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
