"""The end of a run: merged scores, the table of shards, the report and the marker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fcn_core.labels import LabelSet
from fcn_core.metrics import ConfusionMatrix, none_if_nan
from pipeline.ledger import Entry, merged, write_table
from pipeline.outcome import RunResult
from pipeline.report import write_report
from pipeline.store import Store

SCORES_PATH = "stats/scores.json"
SUCCESS = "_SUCCESS"
PARTIAL = "_PARTIAL"


def remove_markers(output: Store) -> None:
    """A run has begun: what an older marker said no longer holds."""
    output.delete(SUCCESS)
    output.delete(PARTIAL)


def write_results(output: Store, entries: Mapping[str, Entry], result: RunResult) -> None:
    """Write everything that is made from commits, and the marker last.

    Raises:
        StoreError: the store refuses.
    """
    ledger = dict(sorted(entries.items()))
    write_table(output, ledger)
    output.write(SCORES_PATH, json.dumps(scores_document(ledger, result.labels), indent=1).encode())
    write_report(output, ledger, result.labels, {f.shard: f.reason for f in result.failed})
    complete = result.committed == result.shards and not result.over_limit
    output.write(SUCCESS if complete else PARTIAL, _marker(result))


def scores_document(ledger: Mapping[str, Entry], labels: LabelSet) -> dict[str, Any]:
    """The merged scores, JSON-able, a function of the commits alone; absent classes are None.

    `mean_iou` is by the `reference` policy of `fcn_core.metrics`, `mean_iou_present` by the other.
    """
    matrix: ConfusionMatrix = merged(ledger, labels)
    return {
        "format": 1,
        **matrix.scores().to_dict(),
        "mean_iou_present": none_if_nan(matrix.scores("present").mean_iou),
        "classes": list(labels.classes),
        "images": sum(entry.images for entry in ledger.values()),
        "labeled_images": sum(entry.labeled_images for entry in ledger.values()),
        "failures": sum(entry.failures for entry in ledger.values()),
        "shards": len(ledger),
        "class_pixels": [
            sum(entry.class_pixels[k] for entry in ledger.values())
            for k in range(labels.num_classes)
        ],
        "confusion": matrix.matrix.tolist(),
    }


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
