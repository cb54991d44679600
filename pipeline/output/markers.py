"""TODO docstring."""

from __future__ import annotations

import json
from typing import Any

from pipeline.errors import MissingError
from pipeline.output.run_result import RunResult
from pipeline.storage.store import Store


def read_marker(output: Store) -> tuple[str | None, dict[str, Any]]:
    """The marker of an output, and what it says; (None, {}) while, or before, a run finishes."""
    for name in (SUCCESS, PARTIAL):
        try:
            return name, json.loads(output.read(name))
        except MissingError:
            continue
    return None, {}


SUCCESS = "_SUCCESS"

PARTIAL = "_PARTIAL"


def remove_markers(output: Store) -> None:
    """A run has begun: what an older marker said no longer holds."""
    output.delete(SUCCESS)
    output.delete(PARTIAL)


def _marker(result: RunResult) -> bytes:
    document = {
        "shards": result.shards,
        "committed": result.committed,
        "images": result.images,
        "failures": result.failures,
        "failed_shards": {failure.shard: failure.reason for failure in result.failed},
        "over_limit": result.over_limit,
    }
    return json.dumps(document, indent=1).encode()
