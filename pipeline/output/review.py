"""The review queue: the few images of a run that a person should look at first, with pictures.

Every commit puts forward its worst images, as many as the queue is long; their small pictures stand
in `_previews/`. So the queue is exact: no image of the run is worse than one that is left out. Of
all commits of a run, only those are opened that hold one of the worst; the input never is.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from fcn_core.errors import FcnError
from fcn_core.images import decode_image, decode_label, overlay
from fcn_core.labels import LabelSet
from pipeline.concurrency import map_ordered
from pipeline.errors import MissingError, OutputError
from pipeline.formats import (
    encode_jpeg,
    encode_parquet,
    hub_features,
    hub_metadata,
    read_parquet,
)
from pipeline.output.commits import Commit
from pipeline.paths import commit_path, review_path
from pipeline.stages.mask_formats import MASK_SCHEMA
from pipeline.stages.records import PREVIEW_SIDE, Candidate, FileRecord, record
from pipeline.storage.store import Store

Reason = Literal["disagrees with its label", "least confident"]


_READERS = 16

_MAX_PIXELS = PREVIEW_SIDE**2

_PICTURES = ("image", "label", "mask", "overlay")

_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

# As in the table of masks: what was found at full size.
_FIGURES = ("height", "width", "class_pixels", "correct_pixels", "labeled_pixels", "iou")

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("reason", pa.string()),
        ("mean_iou", pa.float64()),
        ("mean_confidence", pa.float64()),
        *((name, _PICTURE) for name in _PICTURES),
        *((name, MASK_SCHEMA.field(name).type) for name in _FIGURES),
    ]
)


@dataclass(frozen=True)
class Reviewed:
    """An image to look at.

    Attributes:
        key, shard: which.
        reason: why it is here.
        mean_iou: against its label, over the classes that occur; None without a label.
        mean_confidence: 0-1; None where the network gave NaN.
        image, label, mask, overlay: small pictures (JPEG, PNG, PNG, JPEG), at most 320 px; None
            without a label, and where a preview is gone or damaged.
    """

    key: str
    shard: str
    reason: Reason
    mean_iou: float | None
    mean_confidence: float | None
    image: bytes | None = None
    label: bytes | None = None
    mask: bytes | None = None
    overlay: bytes | None = None


class Shortlist:
    """The shards of a run that hold its worst images, found in one pass over all of them."""

    def __init__(self, most: int) -> None:
        """Keep at most `most` shards of each kind: with labels, and without."""
        self.most = most
        self._lowest: dict[str, list[tuple[float, str]]] = {
            "lowest_iou": [],
            "lowest_confidence": [],
        }

    def add(self, batch: pa.RecordBatch) -> None:
        """Rows of the table of shards."""
        for column, kept in self._lowest.items():
            rows = np.flatnonzero(batch[column].is_valid())
            scores = batch[column].take(pa.array(rows)).to_numpy()
            lowest = rows[np.argsort(scores, kind="stable")[: self.most]]
            picked = batch.select([column, "shard"]).take(pa.array(lowest))
            found = zip(*(values.to_pylist() for values in picked.columns), strict=True)
            self._lowest[column] = heapq.nsmallest(self.most, [*kept, *found])

    def shards(self) -> list[str]:
        """Their ids: the N worst images of each kind are in them."""
        return sorted({shard for kept in self._lowest.values() for _, shard in kept})


def write_review(
    output: Store, run: str, shortlist: Shortlist, labels: LabelSet
) -> FileRecord | None:
    """Choose the images, collect their pictures, and put them where `review_path` says.

    Returns:
        The record of the object; None, and no object, if there is no image to look at.

    Raises:
        OutputError: a commit that cannot be read.
        StoreError: the store fails.
    """
    chosen = choose(_candidates(output, shortlist), shortlist.most)
    if not chosen:
        return None
    previews = _chosen_previews(output, chosen, labels)
    rows = [_row(shard, found, previews.get((shard, found.key), {})) for shard, found in chosen]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    table = table.replace_schema_metadata(hub_metadata(hub_features(SCHEMA, _PICTURES)))
    data = encode_parquet(table)
    path = review_path(run)
    output.write(path, data)
    return record(path, data)


def read_review(output: Store, run: str) -> tuple[Reviewed, ...]:
    """The review queue of a run (`RunRecord.run`); empty if it has none.

    Raises:
        OutputError: it is no such table.
        StoreError: it cannot be read.
    """
    names = [field.name for field in fields(Reviewed)]
    return tuple(Reviewed(**{name: row[name] for name in names}) for row in rows_of(output, run))


def rows_of(output: Store, run: str) -> list[dict[str, Any]]:
    """The table's rows, each picture as its bytes or None.

    Those of an older version lack the figures from `height` on.

    Raises:
        OutputError: it is no such table.
        StoreError: it cannot be read.
    """
    path = review_path(run)
    try:
        table = read_parquet(output.read(path))
        names = [name for name in SCHEMA.names if name in table.column_names]
        table.select([field.name for field in fields(Reviewed)])  # raises if one is missing
        rows: list[dict[str, Any]] = table.select(names).to_pylist()
    except MissingError:
        return []
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise OutputError(
            where=output.location(path),
            found=f"no review queue ({error})",
            expected="the table that a run has written",
            remedy="Delete it: it is only for people to look at.",
        ) from error
    for row in rows:
        row |= {name: row[name] and row[name]["bytes"] for name in _PICTURES}
    return rows


def choose(candidates: Sequence[tuple[str, Candidate]], count: int) -> list[tuple[str, Candidate]]:
    """The worst of some (shard, candidate), in a fixed order whatever the order they come in.

    Half of them are those that disagree most with their labels, half the least confident of those
    without one; where there are too few of one kind, the other fills up.
    """
    kinds: dict[bool, list[tuple[str, Candidate]]] = {True: [], False: []}
    for item in sorted(candidates, key=lambda item: (item[1].score, item[0], item[1].key)):
        kinds[item[1].mean_iou is not None].append(item)
    labeled, others = kinds[True], kinds[False]
    half = max((count + 1) // 2, count - len(others))
    chosen = labeled[:half]
    return chosen + others[: count - len(chosen)]


def _candidates(output: Store, shortlist: Shortlist) -> list[tuple[str, Candidate]]:
    def read(shard: str) -> list[tuple[str, Candidate]]:
        path = commit_path(shard)
        commit = Commit.from_json(output.read(path), output.location(path))
        return [(shard, candidate) for candidate in commit.candidates]

    found = map_ordered(read, shortlist.shards(), _READERS)
    return [candidate for candidates in found for candidate in candidates]


def _chosen_previews(
    output: Store, chosen: Sequence[tuple[str, Candidate]], labels: LabelSet
) -> dict[tuple[str, str], dict[str, Any]]:
    """Figures and pictures by (shard, key), each preview table read once."""
    wanted: dict[tuple[str, str], set[str]] = defaultdict(set)
    for shard, candidate in chosen:
        wanted[shard, candidate.preview].add(candidate.key)

    def read(place: tuple[str, str]) -> list[tuple[tuple[str, str], dict[str, Any]]]:
        shard, path = place
        return [
            (
                (shard, row["key"]),
                {name: row.get(name) for name in _FIGURES} | _painted(row, labels),
            )
            for row in _previews(output, path)
            if row["key"] in wanted[place]
        ]

    return dict(item for found in map_ordered(read, wanted, _READERS) for item in found)


def _previews(output: Store, path: str) -> list[dict[str, Any]]:
    """The rows of a preview table; none of one that is gone or damaged: the masks are done."""
    try:
        found: list[dict[str, Any]] = read_parquet(output.read(path)).to_pylist()
    except (MissingError, pa.ArrowException, OSError, ValueError):
        return []
    return found


def _painted(row: Mapping[str, Any], labels: LabelSet) -> dict[str, bytes | None]:
    try:
        image = decode_image(row["image"], max_pixels=_MAX_PIXELS)
        mask = decode_label(row["mask"], max_pixels=_MAX_PIXELS)
        painted = overlay(image, mask.astype(np.uint8), labels.palette)
    except (FcnError, ValueError, KeyError):
        return {}
    return {
        **{name: row[name] for name in _PICTURES[:3]},
        "overlay": encode_jpeg(painted, quality=80),
    }


def _row(shard: str, found: Candidate, preview: Mapping[str, Any]) -> dict[str, Any]:
    reason: Reason = "least confident"
    if found.mean_iou is not None:
        reason = "disagrees with its label"
    row: dict[str, Any] = {"key": found.key, "shard": shard, "reason": reason, **preview}
    row |= {"mean_iou": found.mean_iou, "mean_confidence": found.mean_confidence}
    for name in _PICTURES:
        suffix = "jpg" if name in ("image", "overlay") else "png"
        data = preview.get(name)
        row[name] = None if data is None else {"bytes": data, "path": f"{found.key}.{suffix}"}
    return row
