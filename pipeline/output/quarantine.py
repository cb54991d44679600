"""Quarantine tables, and the retry of shards that have quarantined samples (`fcnseg failed`).

A retry segments shards again although they have valid commits. The objects of such a shard are
overwritten before its commit is replaced. Therefore the shards and the tags of their commits are
first written to the retry list, `_retry.json`. A shard on the list stays pending until its commit
has another tag: a run that is killed in between leaves a pending shard, never a commit that
disagrees with its objects. The earlier commit is never deleted.
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
    """A sample that could not be segmented: a row of a quarantine table, and its shard.

    Attributes:
        shard: id of the shard.
        key: key of the sample within its shard.
        error: class name of the error.
        reason: text of the error.
        location: location of the sample in INPUT.
    """

    shard: str
    key: str
    error: str
    reason: str
    location: str


def quarantined(output: Store, status: Status) -> Iterator[Quarantined]:
    """Yield every quarantined sample, in the order of the shards.

    Args:
        output: store of OUTPUT.
        status: status of that output.

    Raises:
        OutputError: a quarantine table cannot be read, or is missing although a commit names it.
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
        if not required:  # a shard that could not be read at all has no table
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
        remedy="Run `fcnseg verify`, and `fcnseg failed --retry` to segment the shard again.",
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


@dataclass(frozen=True)
class RetryList:
    """The shards of a retry.

    Attributes:
        commits: tags of the commits to replace, by shard id.
        failed: ids of shards without a commit, which are pending anyway.
    """

    commits: Mapping[str, str]
    failed: frozenset[str] = frozenset()

    @property
    def shards(self) -> frozenset[str]:
        """Return the ids of all shards to retry."""
        return self.failed | self.commits.keys()


def find_retry_list(status: Status) -> RetryList:
    """Return the shards to retry: those with quarantined samples, and those that failed."""
    failed = frozenset(status.marker_document.get("failed_shards", {}))
    commits = status.commit_index.with_failures()
    return RetryList(commits, failed - commits.keys())


def read_retry_list(output: Store) -> dict[str, str]:
    """Return the tags of the commits to replace, by shard id; empty without a retry list.

    Raises:
        OutputError: the retry list cannot be read.
    """
    try:
        commits = json.loads(output.read(RETRY_LIST))["commits"]
        return {str(shard): str(tag) for shard, tag in commits.items()}
    except MissingError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            where=output.location(RETRY_LIST),
            found=f"unreadable ({error})",
            expected="the shards that are being retried",
            remedy="Run `fcnseg verify`, delete this object and the commits of the shards with "
            "problems, then run again.",
        ) from error


def write_retry_list(output: Store, commits: Mapping[str, str]) -> None:
    """Write the retry list, or delete it if no shard is left to retry."""
    if commits:
        output.write(RETRY_LIST, json.dumps({"commits": dict(commits)}, indent=1).encode())
    else:
        output.delete(RETRY_LIST)


def retry_config(
    output: Store,
    identity: Manifest,
    file_text: str | None,
    sets: list[str],
    flags: Mapping[str, Any],
) -> RunConfig:
    """Return the configuration of the latest run, with the given settings merged into it.

    Args:
        output: store of OUTPUT.
        identity: manifest of the output.
        file_text: YAML of a `RunConfig` or of a part of one; None without a file.
        sets: settings as "section.field=value".
        flags: values by dotted name; None means "not given".

    Raises:
        OutputError: the output keeps no configuration, and no weights are given.
        ConfigError: the given settings are not valid.
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
    """Return the settings that follow from a manifest without a configuration."""
    limits = identity.chunk_limits
    return {
        "input": {"url": identity.input},
        "model": {"precision": identity.parts["precision"]},
        "limits": {"chunk_images": limits.images, "chunk_bytes": limits.bytes},
    }
