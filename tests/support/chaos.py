"""The chaos run: everything dies, the store misbehaves, images are bad, and the tree is the same.

    python -m tests.support.chaos --images 2000 --shards 40

A real S3 server on this machine, behind a proxy that spoils a share of the responses; one Ray node;
random SIGKILLs of segment actors, of the workers that read and write, and of the driver, which is
started again until it ends by itself. Twelve bad images of different kinds and one that kills
the process that decodes it. The result must be the tree of an undisturbed local run.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.output.verify import verify
from pipeline.storage.store import Store
from tests.support import networks, poison, world
from tests.support.faulty_proxy import Faults, FaultyProxy
from tests.support.s3_server import S3Server

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Setting:
    """What is asked of a chaos run."""

    images: int = 2000
    shards: int = 40
    faults: float = 0.05
    seed: int = 0
    pause: tuple[float, float] = (2.0, 8.0)


@dataclass
class Figures:
    """What happened."""

    seconds: float = 0.0
    undisturbed_seconds: float = 0.0
    drivers: int = 0
    exit_codes: list[int] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    requests: dict[str, int] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)


# --- the input -------------------------------------------------------------------------------


def bad_samples() -> dict[str, tuple[dict[str, bytes], str]]:
    """Twelve kinds of bad sample and the poison: key -> (members, expected error class)."""
    good = world.jpeg(world.image(1))
    image = world.png(world.image(2))
    return {
        "empty": ({"empty.jpg": b""}, "ImageError"),
        "text": ({"text.jpg": b"<html>404 Not Found</html>"}, "ImageError"),
        "cut": ({"cut.jpg": good[: len(good) // 3]}, "ImageError"),
        "cutpng": ({"cutpng.png": image[: len(image) // 2]}, "ImageError"),
        "zeros": ({"zeros.jpg": bytes(len(good))}, "ImageError"),
        "header": ({"header.jpg": good[:20]}, "ImageError"),
        "gif": ({"gif.png": b"GIF89a" + bytes(40)}, "ImageError"),
        "bomb": ({"bomb.png": _huge_png(image)}, "ImageError"),
        "size": (
            {"size.jpg": good, "size.seg.png": world.png(world.label(1, (5, 5)))},
            "LabelError",
        ),
        "value": (
            {"value.jpg": good, "value.seg.png": world.png(np.full((17, 23), 77, np.uint8))},
            "LabelError",
        ),
        "nolabel": ({"nolabel.jpg": good, "nolabel.seg.png": b"no image"}, "ImageError"),
        "orphan": ({"orphan.seg.png": world.png(world.label(1))}, "SampleError"),
        "poison": ({"poison.jpg": poison.image("segv")}, "PoisonError"),
    }


def _huge_png(image: bytes) -> bytes:
    """An image whose header promises 100,000 x 100,000 pixels."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return image[:12] + header + struct.pack(">I", zlib.crc32(header)) + image[33:]


def write_input(source: Store, setting: Setting) -> dict[str, str]:
    """Labeled images in tars, the bad ones spread over them; error class by key."""
    chance = random.Random(setting.seed)
    bad = bad_samples()
    homes = dict(zip(bad, chance.sample(range(setting.shards), len(bad)), strict=True))
    per_shard = setting.images // setting.shards
    for shard in range(setting.shards):
        mine = [key for key, home in homes.items() if home == shard]
        items = list(world.samples(shard, per_shard - len(mine)).items())
        for key in mine:
            where = 2 * chance.randrange(len(items) // 2 + 1)
            items[where:where] = list(bad[key][0].items())
        source.write(f"s{shard:03d}.tar", world.tar(items))
    return {key: error for key, (_, error) in bad.items()}


# --- what dies -------------------------------------------------------------------------------


def workers_of(raylet_parent: int) -> dict[str, list[int]]:
    """Process ids of a Ray node's workers by kind: those whose parent's parent is its head."""
    found: dict[str, list[int]] = {"segment actor": [], "read or write worker": []}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parents = _ancestors(int(folder.name))
        except OSError:
            continue
        if raylet_parent not in parents or not title.startswith("ray::"):
            continue
        if "_SegmentActor" in title or "MapWorker" in title:
            found["segment actor"].append(int(folder.name))
        elif "_Read" in title or "_Write" in title:
            found["read or write worker"].append(int(folder.name))
    return found


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        stat = Path(f"/proc/{pid}/stat").read_text()
        pid = int(stat.rpartition(")")[2].split()[1])
        yield pid


class Killer(threading.Thread):
    """Kills something at random moments until it is stopped."""

    def __init__(self, setting: Setting, head: int, figures: Figures) -> None:
        super().__init__(daemon=True)
        self.chance = random.Random(setting.seed + 1)
        self.pause = setting.pause
        self.head = head
        self.figures = figures
        self.driver: subprocess.Popen[bytes] | None = None
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(self.chance.uniform(*self.pause)):
            # A driver needs some ten seconds to start: killed much more often, it gets nowhere.
            kind = self.chance.choice(["segment actor", "read or write worker"] * 9 + ["driver"])
            if kind == "driver":
                pids = [self.driver.pid] if self.driver and self.driver.poll() is None else []
            else:
                pids = workers_of(self.head)[kind]
            if pids:
                try:
                    os.kill(self.chance.choice(pids), signal.SIGKILL)
                    self.figures.kills[kind] += 1
                except ProcessLookupError:
                    pass


# --- the run ---------------------------------------------------------------------------------


@contextmanager
def ray_head(environment: dict[str, str]) -> Iterator[tuple[str, int]]:
    """(address, process id) of a Ray node of its own."""
    from ray._common.network_utils import find_free_port

    port, folder = find_free_port(), f"/tmp/r{uuid.uuid4().hex[:6]}"
    command = [
        Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--port={port}",
        "--num-cpus=2", "--include-dashboard=false", f"--temp-dir={folder}",
        "--object-store-memory=300000000",
    ]  # fmt: skip
    head = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield f"127.0.0.1:{port}", head.pid
    finally:
        head.terminate()
        head.wait(60)


def run_until_done(command: list[str], killer: Killer, environment: dict[str, str]) -> None:
    """Start the driver again until it ends by itself."""
    figures = killer.figures
    while not figures.exit_codes or figures.exit_codes[-1] == -signal.SIGKILL:
        figures.drivers += 1
        with tempfile.TemporaryFile() as errors:
            killer.driver = subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=errors
            )
            figures.exit_codes.append(killer.driver.wait())
            errors.seek(0)
            said = errors.read().decode(errors="replace")
        print(f"driver {figures.drivers}: exit {figures.exit_codes[-1]}", file=sys.stderr)
        if figures.exit_codes[-1] not in (-signal.SIGKILL, 3):
            print(said, file=sys.stderr)


def compare(calm: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Paths at which two trees differ."""
    return sorted(path for path in {*calm, *found} if calm.get(path) != found.get(path))


def quarantined(output: Store) -> dict[str, str]:
    """Error class of every quarantined key."""
    rows: list[dict[str, str]] = []
    for info in output.objects("_quarantine"):
        with output.open(info.path) as handle:
            rows += pq.read_table(handle).to_pylist()
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row["error"] for row in rows}


def command(source: str, output: str, weights: Path, *more: str) -> list[str]:
    """A driver."""
    return [
        sys.executable, "-m", "pipeline", "run", source, output, "--weights", str(weights),
        "--masks", "parquet,png", "--workers", "1", "--set", "compute.threads_per_worker=1",
        "--set", "limits.max_bad_fraction=0.1", *more,
    ]  # fmt: skip


def chaos(setting: Setting, weights: Path, server: S3Server, site: Path) -> Figures:
    """One chaos run on a server, held against an undisturbed run on the same server.

    The environment of this process is that of the server's owner.
    `site` is the folder of `tests.support.poison` that makes the poisonous image poisonous.
    """
    figures = Figures()
    bucket = f"s3://{server.new_bucket()}"
    expected = write_input(Store(f"{bucket}/in"), setting)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{site}{os.pathsep}{ROOT}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    started = time.monotonic()
    calm = command(f"{bucket}/in", f"{bucket}/calm", weights, "--executor", "local")
    done = subprocess.run(calm, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    figures.undisturbed_seconds = time.monotonic() - started
    with FaultyProxy(server.url, Faults.of_each(setting.faults), setting.seed) as proxy:
        environment["AWS_ENDPOINT_URL"] = proxy.url
        with ray_head(environment) as (address, head):
            killer = Killer(setting, head, figures)
            killer.start()
            started = time.monotonic()
            disturbed = command(f"{bucket}/in", f"{bucket}/out", weights, "--address", address)
            run_until_done(disturbed, killer, environment)
            figures.seconds = time.monotonic() - started
            killer.stopped.set()
        figures.requests = proxy.snapshot()
    output = Store(f"{bucket}/out")
    figures.differences = compare(world.tree(f"{bucket}/calm"), world.tree(output.url))
    figures.differences += [f"{path}: {what}" for path, what in verify(output, deep=True).problems]
    figures.quarantined = quarantined(output)
    wrong = {*expected.items()} ^ {*figures.quarantined.items()}
    figures.differences += sorted(f"quarantine: {key} {error}" for key, error in wrong)
    return figures


def report(setting: Setting, figures: Figures) -> str:
    """The figures, for people."""
    faults = {k: v for k, v in sorted(figures.requests.items()) if k not in ("requests", "writes")}
    struck = sum(v for k, v in faults.items() if k != "stalled")
    requests = figures.requests.get("requests", 0)
    kills = ", ".join(f"{count} x {kind}" for kind, count in sorted(figures.kills.items()))
    lines = [
        f"{setting.images} images in {setting.shards} shards, seed {setting.seed}",
        f"undisturbed, local: {figures.undisturbed_seconds:.0f} s",
        f"disturbed, Ray:     {figures.seconds:.0f} s in {figures.drivers} drivers, "
        f"exit codes {figures.exit_codes}",
        f"killed: {kills or 'nothing'}",
        f"requests: {requests}, spoiled {struck} ({struck / max(1, requests):.1%}): {faults}",
        f"quarantined: {len(figures.quarantined)}: {dict(sorted(figures.quarantined.items()))}",
        f"differences from the undisturbed tree: {figures.differences or 'none'}",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run it and print the figures; exit 1 if the trees differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--faults", type=float, default=0.05, help="share of spoiled responses")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="default: a tiny random network")
    options = parser.parse_args()
    setting = Setting(options.images, options.shards, options.faults, options.seed)
    with tempfile.TemporaryDirectory() as folder, S3Server.started() as server:
        os.environ.update(server.owner.environment(server.url))
        weights = options.weights or networks.write_tiny_weights(Path(folder) / "tiny.safetensors")
        figures = chaos(setting, weights, server, poison.install(Path(folder) / "site"))
    print(report(setting, figures))
    sys.exit(1 if figures.differences else 0)


if __name__ == "__main__":
    main()
