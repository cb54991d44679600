"""Shards that are to be labelled again although their commits hold: `_retry.json`.

While such a shard is done again, its objects are overwritten before its commit is. So what is to be
redone is written down first: a run that is killed in between leaves a shard that is pending, not
one whose commit and objects disagree. A shard stays pending for as long as the commit that was to
be replaced is still the one there; the old commit is never deleted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import MissingError, OutputError
from pipeline.store import Store

PATH = "_retry.json"


@dataclass(frozen=True)
class Redo:
    """What a retry is about.

    Attributes:
        commits: tag of the commit that is to be replaced, by shard.
        failed: shards without a commit, which are pending anyway.
    """

    commits: Mapping[str, str]
    failed: frozenset[str] = frozenset()

    @property
    def shards(self) -> frozenset[str]:
        """All of them, by id."""
        return self.failed | self.commits.keys()


def read_redo(output: Store) -> dict[str, str]:
    """Tag of the commit that is to be replaced, by shard; empty when nothing is to be redone.

    Raises:
        OutputError: a record that cannot be read.
    """
    try:
        found = json.loads(output.read(PATH))["commits"]
        return {str(shard): str(tag) for shard, tag in found.items()}
    except MissingError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            output.location(PATH),
            f"unreadable ({error})",
            "the shards that are being retried",
            "Run `fcnseg verify`, delete this object and the commits of the shards with problems, "
            "then run again.",
        ) from error


def write_redo(output: Store, commits: Mapping[str, str]) -> None:
    """Write down what is to be redone, or that nothing is left."""
    if commits:
        output.write(PATH, json.dumps({"commits": dict(commits)}, indent=1).encode())
    else:
        output.delete(PATH)
