"""Every path below OUTPUT. No other module contains such a path.

Names that begin with `_` are invisible to Ray, Spark and Arrow when they discover data files.
"""

from __future__ import annotations

MANIFEST = "_run.json"
LEASE = "_lease.json"
PROGRESS = "_progress.json"
RETRY_LIST = "_retry.json"
SUCCESS = "_SUCCESS"
PARTIAL = "_PARTIAL"

COMMITS = "_commits"
QUARANTINE = "_quarantine"
PREVIEWS = "_previews"
VIRTUAL_SHARDS = "_index"
RUNS = "_runs"
OPEN_RUN = f"{RUNS}/open.json"
REVIEWS = "review"

SHARD_TABLE = "stats/shards.parquet"
SCORES = "stats/scores.json"
REPORT = "report.html"

PROBE = "_probe-"
"""Prefix of test objects that check the guarantees of a store; deleted at once."""

_COMMIT = ".json"
_TABLE = ".parquet"


def commit_path(shard: str) -> str:
    """Return the path of a shard's commit."""
    return f"{COMMITS}/{shard}{_COMMIT}"


def is_commit(path: str) -> bool:
    """Return whether an object below `COMMITS` has the name of a commit."""
    return path.endswith(_COMMIT)


def committed_shard(path: str) -> str:
    """Return the id of the shard whose commit has this path."""
    return path[len(COMMITS) + 1 : -len(_COMMIT)]


def quarantine_path(shard: str) -> str:
    """Return the path of a shard's quarantine table."""
    return f"{QUARANTINE}/{shard}{_TABLE}"


def is_quarantine(path: str) -> bool:
    """Return whether a path lies below `QUARANTINE`."""
    return path.startswith(f"{QUARANTINE}/")


def quarantined_shard(path: str) -> str:
    """Return the id of the shard whose quarantine table has this path."""
    return path[len(QUARANTINE) + 1 : -len(_TABLE)]


def chunk_name(shard: str, seq: int, count: int) -> str:
    """Return the name of a chunk's objects: the shard's id for its only chunk, else a numbered one.

    >>> chunk_name("a/voc", 0, 1), chunk_name("a/voc", 2, 4)
    ('a/voc', 'a/voc-00002-of-00004')
    """
    return shard if count == 1 else f"{shard}-{seq:05d}-of-{count:05d}"


def preview_path(name: str) -> str:
    """Return the path of the preview table of a chunk, from its `chunk_name`."""
    return f"{PREVIEWS}/{name}{_TABLE}"


def is_preview(path: str) -> bool:
    """Return whether a path lies below `PREVIEWS`."""
    return path.startswith(f"{PREVIEWS}/")


def virtual_shards_path(generation: int) -> str:
    """Return the path of one generation of the index of virtual shards."""
    return f"{VIRTUAL_SHARDS}/{generation:06d}{_TABLE}"


def record_path(run: str) -> str:
    """Return the path of a run's record."""
    return f"{RUNS}/{run}.json"


def review_path(run: str) -> str:
    """Return the path of a run's review table."""
    return f"{REVIEWS}/{run}{_TABLE}"
