"""One job by one of those that are compared, in a process of its own. Started by `measure`."""

from __future__ import annotations

import importlib
import json
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks.peers.job import Job

PEERS = {
    "DataLoader loop": ("torch_loop", "torch"),
    "Ray recipe": ("ray_recipe", "ray"),
    "Daft UDF": ("daft_udf", "daft"),
    "datasets.map": ("hf_map", "datasets"),
}
"""By name: the module here, and the package that it needs."""

OURS = {"fcnseg": "local", "fcnseg, Ray": "ray"}


def is_installed(name: str) -> bool:
    return name in OURS or find_spec(PEERS[name][1]) is not None


def do(name: str, job: Job) -> float:
    """The job by one of `PEERS` or `OURS`; the mean IU."""
    module = importlib.import_module(
        f"benchmarks.peers.{PEERS[name][0] if name in PEERS else 'ours'}"
    )
    run = module.run if name in PEERS else partial(module.run, executor=OURS[name])
    return float(run(job))


def main() -> None:
    name, text = sys.argv[1:]
    job = Job(**json.loads(text))
    found = do(name, job)
    Path(job.output, "mean_iou").write_text(repr(found))


if __name__ == "__main__":
    main()
