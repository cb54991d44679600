"""The review queue: a table of the worst images of a run, with previews, for a person to check.

Every commit names as many of its worst images as the queue is long; their previews are in
`_previews/`. So the queue is exact: no other image of the run is worse than those in the queue.
Only the commits that hold one of the worst images are read, and the input is not read at all.
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

_IMAGES = ("image", "label", "mask", "overlay")

_ENCODED_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

# As in the table of masks: figures of the full-size image.
_FIGURES = ("height", "width", "class_pixels", "correct_pixels", "labeled_pixels", "iou")

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("reason", pa.string()),
        ("mean_iou", pa.float64()),
        ("mean_confidence", pa.float64()),
        *((name, _ENCODED_IMAGE) for name in _IMAGES),
        *((name, MASK_SCHEMA.field(name).type) for name in _FIGURES),
    ]
)


@dataclass(frozen=True)
class Reviewed:
    """An image of the review queue.

    Attributes:
        key: key of the image within its shard.
        shard: id of the shard.
        reason: reason why the image is in the queue.
        mean_iou: mean IoU over the classes in label or mask; None without a label.
        mean_confidence: mean confidence, 0-1; None where the network gave NaN.
        image: reduced image, JPEG, at most 320 pixels per side; None if its preview is missing or
            damaged, as in the next fields.
        label: reduced label, PNG; also None without a label.
        mask: reduced mask, PNG.
        overlay: reduced image with the mask painted over it, JPEG.
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
    """The shards of a run that hold its worst images, collected in one pass over the table."""

    def __init__(self, most: int) -> None:
        """Start an empty list.

        Args:
            most: maximum number of shards of each kind: with labels, and without.
        """
        self.most = most
        self._lowest: dict[str, list[tuple[float, str]]] = {
            "lowest_iou": [],
            "lowest_confidence": [],
        }

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows of the table of shards."""
        for column, kept in self._lowest.items():
            rows = np.flatnonzero(batch[column].is_valid())
            scores = batch[column].take(pa.array(rows)).to_numpy()
            lowest = rows[np.argsort(scores, kind="stable")[: self.most]]
            picked = batch.select([column, "shard"]).take(pa.array(lowest))
            pairs = zip(*(values.to_pylist() for values in picked.columns), strict=True)
            self._lowest[column] = heapq.nsmallest(self.most, [*kept, *pairs])

    def shards(self) -> list[str]:
        """Return the ids of the shards. They hold the `most` worst images of each kind."""
        return sorted({shard for kept in self._lowest.values() for _, shard in kept})


def write_review(
    output: Store, run: str, shortlist: Shortlist, labels: LabelSet
) -> FileRecord | None:
    """Write the review table of a run to `review_path(run)`, and return its record.

    Returns None, and writes nothing, if there is no image to review.

    Args:
        output: store of OUTPUT.
        run: name of the run.
        shortlist: shards of the run that hold its worst images; its length limits the queue.
        labels: label set of the output; its palette colors the overlays.

    Raises:
        OutputError: a commit cannot be read.
        StoreError: the store fails.
    """
    chosen = choose(_candidates(output, shortlist), shortlist.most)
    if not chosen:
        return None
    previews = _chosen_previews(output, chosen, labels)
    rows = [_row(shard, image, previews.get((shard, image.key), {})) for shard, image in chosen]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    table = table.replace_schema_metadata(hub_metadata(hub_features(SCHEMA, _IMAGES)))
    data = encode_parquet(table)
    path = review_path(run)
    output.write(path, data)
    return record(path, data)


def read_review(output: Store, run: str) -> tuple[Reviewed, ...]:
    """Return the review queue of a run; empty if the run has none.

    Args:
        output: store of OUTPUT.
        run: name of the run, as in `RunRecord.run`.

    Raises:
        OutputError: the object is not a review table.
        StoreError: the object cannot be read.
    """
    names = [field.name for field in fields(Reviewed)]
    return tuple(Reviewed(**{name: row[name] for name in names}) for row in rows_of(output, run))


def rows_of(output: Store, run: str) -> list[dict[str, Any]]:
    """Return the rows of a review table, with encoded images as bytes or None.

    Rows that an older version wrote lack the columns from `height` on.

    Raises:
        OutputError: the object is not a review table.
        StoreError: the object cannot be read.
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
            expected="the review table that a run wrote",
            remedy="Delete it: no other command needs it.",
        ) from error
    for row in rows:
        row |= {name: row[name] and row[name]["bytes"] for name in _IMAGES}
    return rows


def choose(candidates: Sequence[tuple[str, Candidate]], count: int) -> list[tuple[str, Candidate]]:
    """Return the worst of (shard, candidate) pairs, independent of their order.

    Half of them have the lowest mean IoU, the other half have no label and the lowest confidence.
    If there are too few of one kind, the other kind fills the queue.

    Args:
        candidates: pairs of shard id and candidate.
        count: length of the queue.
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

    by_shard = map_ordered(read, shortlist.shards(), _READERS)
    return [candidate for candidates in by_shard for candidate in candidates]


def _chosen_previews(
    output: Store, chosen: Sequence[tuple[str, Candidate]], labels: LabelSet
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return figures and images by (shard, key). Reads each preview table once."""
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

    return dict(item for items in map_ordered(read, wanted, _READERS) for item in items)


def _previews(output: Store, path: str) -> list[dict[str, Any]]:
    """Return the rows of a preview table; none if it is missing or damaged."""
    try:
        rows: list[dict[str, Any]] = read_parquet(output.read(path)).to_pylist()
    except (MissingError, pa.ArrowException, OSError, ValueError):
        return []
    return rows


def _painted(row: Mapping[str, Any], labels: LabelSet) -> dict[str, bytes | None]:
    try:
        image = decode_image(row["image"], max_pixels=_MAX_PIXELS)
        mask = decode_label(row["mask"], max_pixels=_MAX_PIXELS)
        painted = overlay(image, mask.astype(np.uint8), labels.palette)
    except (FcnError, ValueError, KeyError):
        return {}
    return {
        **{name: row[name] for name in _IMAGES[:3]},
        "overlay": encode_jpeg(painted, quality=80),
    }


def _row(shard: str, candidate: Candidate, preview: Mapping[str, Any]) -> dict[str, Any]:
    reason: Reason = "least confident"
    if candidate.mean_iou is not None:
        reason = "disagrees with its label"
    row: dict[str, Any] = {"key": candidate.key, "shard": shard, "reason": reason, **preview}
    row |= {"mean_iou": candidate.mean_iou, "mean_confidence": candidate.mean_confidence}
    for name in _IMAGES:
        suffix = "jpg" if name in ("image", "overlay") else "png"
        data = preview.get(name)
        row[name] = None if data is None else {"bytes": data, "path": f"{candidate.key}.{suffix}"}
    return row
