"""Run the flow on rendered scenes, with an embedded Prefect and an embedded Ray: `make demo`.

Usage: python -m flows.demo [DIR]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before Prefect is imported, which reads them once.
for name, value in {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # 20 s is short for a small laptop
}.items():
    os.environ.setdefault(name, value)


def main(directory: str) -> int:
    """Render the scenes, run the flow on them, and print the scores.

    Args:
        directory: folder for the scenes and the output.

    Returns:
        The exit code: 0, or 1 when the flow failed.
    """
    from flows.label import label_dataset
    from pipeline.cli import console
    from pipeline.cli.commands.demo import demo_config, make_scene_shards
    from pipeline.cli.results import print_scores
    from pipeline.output.status import read_status
    from pipeline.paths import REPORT
    from pipeline.storage.store import Store

    make_scene_shards(Store(f"{directory}/shards"))
    state = label_dataset(demo_config(directory, "ray"), return_state=True)
    console.out.print(f"{state.name}: {state.message}")
    if not state.is_completed():
        return 1
    output = Store(f"{directory}/output")
    status = read_status(output)
    print_scores(status.scores, status.identity.labels)
    console.out.print(f"report: {output.location(REPORT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(str(Path(sys.argv[1] if len(sys.argv) > 1 else "demo").resolve())))
