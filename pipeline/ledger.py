"""The ledger: all commits of an output, read without opening every one.

`stats/shards.parquet` caches them as a table; one listing of `_commits/` says which rows still
hold, and only what the table lacks is read.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fcn_core.labels import LabelSet
from fcn_core.metrics import ConfusionMatrix
from pipeline.commits import PREFIX, Commit
from pipeline.errors import MissingError
from pipeline.store import Store
from pipeline.writers import read_parquet

TABLE_PATH = "stats/shards.parquet"
_READERS = 16
_DIGEST = b"rows_sha256"
_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("images", pa.int64()),
        ("labeled_images", pa.int64()),
        ("failures", pa.int64()),
        ("pixel_accuracy", pa.float64()),
        ("mean_accuracy", pa.float64()),
        ("mean_iou", pa.float64()),
        ("frequency_weighted_iou", pa.float64()),
        ("iou", pa.list_(pa.float64())),
        ("class_pixels", pa.list_(pa.int64())),
        ("confusion", pa.list_(pa.int64())),
        ("mean_confidence", pa.float64()),
        ("confidence_sum", pa.float64()),
        ("seconds", pa.string()),
        ("masks", pa.list_(pa.string())),
        ("input_location", pa.string()),
        ("input_etag", pa.string()),
        ("fingerprint", pa.string()),
        ("commit_etag", pa.string()),
    ]
)


@dataclass(frozen=True)
class Entry:
    """A commit as a row: all but the names of its files."""

    shard: str
    images: int
    labeled_images: int
    failures: int
    confusion: ConfusionMatrix
    class_pixels: tuple[int, ...]
    confidence_sum: float
    seconds: Mapping[str, float]
    masks: tuple[str, ...]
    input_location: str
    input_etag: str
    fingerprint: str
    commit_etag: str

    @classmethod
    def of(cls, commit: Commit, commit_etag: str) -> Entry:
        """The row of a commit."""
        return cls(
            shard=commit.shard,
            images=commit.images,
            labeled_images=commit.labeled_images,
            failures=commit.failures,
            confusion=commit.matrix,
            class_pixels=commit.class_pixels,
            confidence_sum=commit.confidence_sum,
            seconds=commit.seconds,
            masks=commit.masks,
            input_location=str(commit.input["location"]),
            input_etag=str(commit.input["etag"]),
            fingerprint=commit.fingerprint,
            commit_etag=commit_etag,
        )


def read_ledger(output: Store) -> dict[str, Entry]:
    """Every committed shard, by id.

    Raises:
        OutputError: a commit that cannot be read, or of another format.
    """
    tags = {info.path: info.etag for info in output.objects(PREFIX) if info.path.endswith(".json")}
    cached = _read_table(output)
    ledger: dict[str, Entry] = {}
    missing = []
    for path, tag in tags.items():
        shard = path[len(PREFIX) + 1 : -len(".json")]
        entry = cached.get(shard)
        if entry is not None and entry.commit_etag == tag:
            ledger[shard] = entry
        else:
            missing.append(path)
    with ThreadPoolExecutor(_READERS) as pool:
        for path, data in zip(missing, pool.map(output.read, missing), strict=True):
            commit = Commit.from_json(data, output.location(path))
            ledger[commit.shard] = Entry.of(commit, tags[path])
    return dict(sorted(ledger.items()))


def read_commits(output: Store) -> Iterator[Commit]:
    """Every commit whole, with the names of its files, in the order of the listing."""
    for info in output.objects(PREFIX):
        if info.path.endswith(".json"):
            yield Commit.from_json(output.read(info.path), output.location(info.path))


def write_table(output: Store, ledger: Mapping[str, Entry]) -> None:
    """Write the commits as a table."""
    rows = []
    for entry in ledger.values():
        scores = entry.confusion.scores().to_dict()
        rows.append(
            {
                **vars(entry),
                **scores,
                "confusion": entry.confusion.matrix.ravel().tolist(),
                "mean_confidence": entry.confidence_sum / entry.images if entry.images else None,
                "seconds": json.dumps(dict(entry.seconds), sort_keys=True),
            }
        )
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    pq.write_table(table.replace_schema_metadata({_DIGEST: _digest(table)}), buffer)
    output.write(TABLE_PATH, buffer.getvalue())


def merged(ledger: Mapping[str, Entry], labels: LabelSet) -> ConfusionMatrix:
    """The sum of all confusion matrices."""
    total = ConfusionMatrix(labels.num_classes)
    for entry in ledger.values():
        total += entry.confusion
    return total


def worst_shards(ledger: Mapping[str, Entry]) -> list[Entry]:
    """Lowest mean IU first; shards without labels follow, lowest mean confidence first."""

    def rank(entry: Entry) -> tuple[bool, float, str]:
        mean_iou = entry.confusion.scores().mean_iou
        if not math.isnan(mean_iou):
            return (False, mean_iou, entry.shard)
        confidence = entry.confidence_sum / entry.images if entry.images else 1.0
        return (True, confidence, entry.shard)

    return sorted(ledger.values(), key=rank)


def _read_table(output: Store) -> dict[str, Entry]:
    """The rows of the table; none if it is missing or damaged, for it is only a cache."""
    try:
        rows = read_parquet(output.read(TABLE_PATH))
        if rows.schema.metadata != {_DIGEST: _digest(rows)}:
            return {}
    except (MissingError, pa.ArrowException, OSError, ValueError, TypeError):
        return {}
    return {row["shard"]: _entry(row) for row in rows.to_pylist()}


def _digest(rows: pa.Table) -> bytes:
    """Parquet's own checksums leave out the headers of its pages."""
    return hashlib.sha256(json.dumps(rows.to_pylist()).encode()).hexdigest().encode()


def _entry(row: dict[str, Any]) -> Entry:
    row["confusion"] = ConfusionMatrix(len(row["class_pixels"]), row["confusion"])
    row["class_pixels"] = tuple(row["class_pixels"])
    row["seconds"] = json.loads(row["seconds"])
    row["masks"] = tuple(row["masks"])
    return Entry(**{name: row[name] for name in Entry.__dataclass_fields__})
