"""Nights without a worker or a work pool: this process is all that is needed beside a server.

Usage: python -m flows.serve CONFIG.yaml [--cron "0 2 * * *"] [--time-zone Europe/Berlin]

It registers the deployment `on-demand`, and `nightly` if there is a cron expression, with the
configuration as their default, and runs what they start until it is ended (Ctrl-C, SIGTERM).
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
    """What is served: the same two as in deploy/prefect.yaml."""
    parameters = {"config": config.model_dump(mode="json", exclude_defaults=True)}
    kind = EntrypointType.MODULE_PATH  # whatever directory this runs in
    found = [label_dataset.to_deployment("on-demand", parameters=parameters, entrypoint_type=kind)]
    if cron is not None:
        # One night at a time: what a late one leaves, the next one does.
        one = ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        )
        night = label_dataset.to_deployment(
            "nightly",
            parameters=parameters,
            schedule=Cron(cron, timezone=time_zone),
            concurrency_limit=one,
            entrypoint_type=kind,
        )
        found.append(night)
    return found


def main(words: Sequence[str]) -> int:
    """Serve until the end.

    Returns:
        The exit code: 0, or 2 for a configuration that cannot be meant.
    """
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=__doc__)
    parser.add_argument("config", help="YAML file of a RunConfig")
    parser.add_argument("--cron", help="when the nightly run starts; without it there is none")
    parser.add_argument("--time-zone", default="UTC", help="of the cron expression")
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
