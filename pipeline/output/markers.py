"""The marker of an output, `_SUCCESS` or `_PARTIAL`: written last, deleted when a run starts."""

from __future__ import annotations

import json
from typing import Any

from pipeline.errors import MissingError
from pipeline.output.run_result import RunResult
from pipeline.paths import PARTIAL, SUCCESS
from pipeline.storage.store import Store


def read_marker(output: Store) -> tuple[str | None, dict[str, Any]]:
    """Return the name and the content of the marker; (None, {}) before a run has finished."""
    for name in (SUCCESS, PARTIAL):
        try:
            return name, json.loads(output.read(name))
        except MissingError:
            continue
    return None, {}


def remove_markers(output: Store) -> None:
    """Delete the marker of the earlier run, when a new run starts."""
    output.delete(SUCCESS)
    output.delete(PARTIAL)


def write_marker(output: Store, result: RunResult) -> None:
    """Write `_SUCCESS` if every shard of the input is committed within the limits, else `_PARTIAL`.

    Raises:
        StoreError: the store fails.
    """
    document = {
        "shards": result.shards,
        "committed": result.committed,
        "images": result.images,
        "failures": result.failures,
        "failed_shards": {failure.shard: failure.reason for failure in result.failed},
        "over_limit": result.over_limit,
    }
    name = SUCCESS if result.is_complete else PARTIAL
    output.write(name, json.dumps(document, indent=1).encode())
