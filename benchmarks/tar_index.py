"""Measure the cost of indexing a large tar on a store with slow requests.

    python -m benchmarks.tar_index [--latency 0.03] [--rate 100e6] [--json FILE]

For members of several sizes, the benchmark measures requests, bytes and seconds of three methods:
jumping from header to header, reading on, and the choice of `pipeline.inputs.range_reader`. The
store is a file whose reads wait for the latency, and for the bytes at the rate of one stream. Plain
tarfile needs one request per member.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

from pipeline.inputs import range_reader as ranged
from pipeline.inputs.shard import Shard, Sources
from pipeline.stages.read import count_images
from pipeline.storage.store import Store

MEMBERS = ((10_000, 5000), (100_000, 2000), (500_000, 600), (1_000_000, 400), (2_000_000, 200),
           (10_000_000, 60))  # fmt: skip
WAYS = {"jumping": -1, "reading on": 2**60, "as decided": ranged.BREAK_EVEN}


class SlowStore(Store):
    """A local store whose every read waits as a remote one would; it counts."""

    latency = 0.0
    rate = 1.0
    requests = 0
    bytes = 0
    lock = threading.Lock()

    def read_tagged(self, path: str, start: int | None = None, end: int | None = None) -> Any:
        """See `Store`."""
        assert start is not None and end is not None
        time.sleep(self.latency + (end - start) / self.rate)
        with self.lock:
            SlowStore.requests += 1
            SlowStore.bytes += end - start
        return super().read_tagged(path, start, end)


def make(path: Path, size: int, count: int) -> None:
    """A tar of empty-looking images; the file has holes, and takes no room."""
    with open(path, "wb") as handle:
        for number in range(count):
            info = tarfile.TarInfo(f"{number:06d}.jpg")
            info.size = size
            handle.write(info.tobuf())
            handle.seek(-(-size // 512) * 512, 1)
        handle.write(bytes(1024))


def measure(folder: str, size: int, count: int, break_even: int) -> dict[str, float]:
    """Index the tar once."""
    store = SlowStore(folder)
    SlowStore.requests = SlowStore.bytes = 0
    shard = Shard("s", "tar", "s.tar", (Path(folder) / "s.tar").stat().st_size, "")
    with mock.patch.object(ranged, "BREAK_EVEN", break_even):
        started = time.perf_counter()
        assert count_images(shard, Sources(store, store)) == count
    seconds = time.perf_counter() - started
    return {"requests": SlowStore.requests, "bytes": SlowStore.bytes, "seconds": round(seconds, 2)}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.03)
    parser.add_argument("--rate", type=float, default=100e6)
    parser.add_argument("--json")
    options = parser.parse_args()
    SlowStore.latency, SlowStore.rate = options.latency, options.rate
    rows = []
    for size, count in MEMBERS:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder) / "s.tar", size, count)
            found = {way: measure(folder, size, count, limit) for way, limit in WAYS.items()}
        rows.append({"member_bytes": size, "members": count, **found})
        columns = [
            f"{way}: {cost['requests']} requests, {cost['bytes'] / 1e6:.0f} MB, {cost['seconds']} s"
            for way, cost in found.items()
        ]
        print(f"{count} x {size:,} B | {' | '.join(columns)}", flush=True)
    if options.json:
        document = {"latency": options.latency, "bytes_per_second": options.rate, "rows": rows}
        Path(options.json).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
