"""Serve the segmentation flow from this process: scheduled runs without a worker or a work pool.

Usage: python -m flows.serve CONFIG.yaml [--cron "0 2 * * *"] [--time-zone Europe/Berlin]

The process registers the deployment `on-demand`, and `nightly` if a cron expression is given, with
the configuration as their default. It executes their flow runs until Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from fcn_core.errors import FcnError
from flows.label import label_dataset
from pipeline.config import RunConfig, load_config


def deployments(config: RunConfig, cron: str | None, time_zone: str) -> list[Any]:
    """Return the deployments to serve: the same two as in deploy/prefect.yaml.

    Args:
        config: default configuration of both.
        cron: schedule of `nightly`; None for no such deployment.
        time_zone: time zone of the schedule, such as Europe/Berlin.
    """
    parameters = {"config": config.model_dump(mode="json", exclude_defaults=True)}
    kind = EntrypointType.MODULE_PATH  # works in any current directory
    served = [label_dataset.to_deployment("on-demand", parameters=parameters, entrypoint_type=kind)]
    if cron is not None:
        # One scheduled run at a time: the next run does what a cancelled one would have done.
        limit = ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        )
        nightly = label_dataset.to_deployment(
            "nightly",
            parameters=parameters,
            schedule=Cron(cron, timezone=time_zone),
            concurrency_limit=limit,
            entrypoint_type=kind,
        )
        served.append(nightly)
    return served


def main(words: Sequence[str]) -> int:
    """Serve the deployments until the process is stopped.

    Returns:
        The exit code: 0, or 2 for an invalid configuration.
    """
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__)
    parser.add_argument("config", help="YAML file of a RunConfig")
    parser.add_argument("--cron", help="schedule of the nightly run; default: none")
    parser.add_argument("--time-zone", default="UTC", help="time zone of the cron expression")
    parser.add_argument("--set", action="append", default=[], help="section.field=value")
    given = parser.parse_args(words)
    try:
        config = load_config(Path(given.config).read_text(), given.set, {}, given.config)
    except (FcnError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return getattr(error, "exit_code", 2)
    serve(*deployments(config, given.cron, given.time_zone), limit=1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
