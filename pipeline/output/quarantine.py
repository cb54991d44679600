"""`fcnseg failed`: what was quarantined and why, and which shards a retry is about.

Shards that are to be labelled again although their commits hold: `_retry.json`.

While such a shard is done again, its objects are overwritten before its commit is. So what is to be
redone is written down first: a run that is killed in between leaves a shard that is pending, not
one whose commit and objects disagree. A shard stays pending for as long as the commit that was to
be replaced is still the one there; the old commit is never deleted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import yaml

from pipeline.concurrency import map_ordered
from pipeline.config import RunConfig, load_config, parse_yaml
from pipeline.errors import MissingError, OutputError
from pipeline.formats import encode_parquet, read_parquet
from pipeline.inputs.sample import Failure
from pipeline.manifest import Manifest
from pipeline.output.status import Status
from pipeline.paths import MANIFEST, RETRY_LIST, quarantine_path
from pipeline.stages.records import FileRecord, record
from pipeline.storage.store import Store

_READERS = 16

QUARANTINE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "reason", "error", "location")]
)
"""Columns of a quarantine table."""


@dataclass(frozen=True)
class Quarantined:
    """A sample that could not be labelled: its shard, and a row of the quarantine table."""

    shard: str
    key: str
    error: str
    reason: str
    location: str


def quarantined(output: Store, status: Status) -> Iterator[Quarantined]:
    """Every quarantined sample, by shard; reads one quarantine table after the other.

    Args:
        output: of a run.
        status: of that output.

    Raises:
        OutputError: a table that cannot be read, or that a commit promises and that is gone.
    """
    failed = set(status.marker_document.get("failed_shards", {}))
    committed = status.commit_index.with_failures()
    shards = sorted(failed | committed.keys())

    def read(shard: str) -> list[Quarantined]:
        return _read(output, shard, required=shard in committed)

    for rows in map_ordered(read, shards, _READERS):
        yield from rows


def _read(output: Store, shard: str, *, required: bool) -> list[Quarantined]:
    path = quarantine_path(shard)
    try:
        table = read_parquet(output.read(path)).select(QUARANTINE_SCHEMA.names)
    except MissingError:
        if not required:  # an unreadable shard: no sample of it was ever seen
            return []
        found = "nothing there"
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        found = f"no quarantine table ({error})"
    else:
        return [Quarantined(shard=shard, **row) for row in table.to_pylist()]
    raise OutputError(
        where=output.location(path),
        found=found,
        expected="the table that a commit names",
        remedy="Run `fcnseg verify`, and `fcnseg failed --retry` to label the shard again.",
    )


def write_quarantine(output: Store, shard: str, failures: Iterable[Failure]) -> FileRecord | None:
    """Write the quarantine table of a shard.

    Returns:
        The record of the table; None, and no object, without failures.

    Raises:
        StoreError: the store fails.
    """
    ordered = sorted(failures, key=lambda failure: (failure.location, failure.key))
    path = quarantine_path(shard)
    if not ordered:
        output.delete(path)  # an earlier run of a changed shard may have left one
        return None
    data = quarantine_table(ordered)
    output.write(path, data)
    return record(path, data)


def quarantine_table(failures: Sequence[Failure]) -> bytes:
    """Return the bytes of a quarantine table."""
    rows = [vars(failure) for failure in failures]
    return encode_parquet(pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA))


def find_retry_list(status: Status) -> RetryList:
    """What a retry is about: shards with quarantined samples, and shards that failed."""
    failed = frozenset(status.marker_document.get("failed_shards", {}))
    commits = status.commit_index.with_failures()
    return RetryList(commits, failed - commits.keys())


def retry_config(
    output: Store,
    identity: Manifest,
    file_text: str | None,
    sets: list[str],
    flags: Mapping[str, Any],
) -> RunConfig:
    """The configuration of the output's latest run, with what was given now laid over it.

    Args:
        output: of the run.
        identity: of the output.
        file_text: YAML of a `RunConfig`, or of a part of one.
        sets: "section.field=value" each.
        flags: dotted name to value; None means "not given".

    Raises:
        OutputError: the output keeps no configuration, and no weights are given.
        ConfigError: what was given is no configuration.
    """
    tree = dict(identity.config) if identity.config is not None else _of_older(identity)
    for section, fields in (parse_yaml(file_text, "--config") if file_text else {}).items():
        both = isinstance(fields, dict) and isinstance(tree.get(section), dict)
        tree[section] = {**tree[section], **fields} if both else fields
    text = yaml.safe_dump(tree, allow_unicode=True)
    config = load_config(text, sets, {**flags, "output.url": output.url})
    if identity.config is None and config.model.weights is None:
        raise OutputError(
            where=output.location(MANIFEST),
            found="no configuration: an older version of fcnseg made this output",
            expected="the configuration of its run",
            remedy="Add --weights W, and what else the run was given: --config FILE, --set a.b=c.",
        )
    return config


def _of_older(identity: Manifest) -> dict[str, Any]:
    """What `_run.json` tells of a run even where it keeps no configuration."""
    limits = identity.chunk_limits
    return {
        "input": {"url": identity.input},
        "model": {"precision": identity.parts["precision"]},
        "limits": {"chunk_images": limits.images, "chunk_bytes": limits.bytes},
    }


@dataclass(frozen=True)
class RetryList:
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


def read_retry_list(output: Store) -> dict[str, str]:
    """Tag of the commit that is to be replaced, by shard; empty when nothing is to be redone.

    Raises:
        OutputError: a record that cannot be read.
    """
    try:
        found = json.loads(output.read(RETRY_LIST))["commits"]
        return {str(shard): str(tag) for shard, tag in found.items()}
    except MissingError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            where=output.location(RETRY_LIST),
            found=f"unreadable ({error})",
            expected="the shards that are being retried",
            remedy="Run `fcnseg verify`, delete this object and the commits of the shards with problems, "
            "then run again.",
        ) from error


def write_retry_list(output: Store, commits: Mapping[str, str]) -> None:
    """Write down what is to be redone, or that nothing is left."""
    if commits:
        output.write(RETRY_LIST, json.dumps({"commits": dict(commits)}, indent=1).encode())
    else:
        output.delete(RETRY_LIST)
