"""The end of a run: merged scores, the table of shards, the report and the marker."""

from __future__ import annotations

import json

from fcn_core.labels import LabelSet
from pipeline.bookkeeping.ledger import Ledger, read_ledger
from pipeline.bookkeeping.morning import RunShare
from pipeline.bookkeeping.shard_table import DamagedError, TableWriter
from pipeline.bookkeeping.summary import Summary
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


def write_table(
    output: Store, ledger: Ledger, labels: LabelSet, share: RunShare | None = None
) -> Summary:
    """Write the commits as a table, if it is not there already, and sum them up: in one pass.

    Args:
        output: where.
        ledger: of the output.
        labels: of the output.
        share: what this run did; filled in the same pass.

    Raises:
        OutputError: a commit that cannot be read, or of another number of classes.
        StoreError: the store refuses.
    """
    try:
        return _write_table(output, ledger, labels, share)
    except DamagedError:  # the older table, whose rows the ledger was going to copy
        return _write_table(output, read_ledger(output, believe_table=False), labels, share)


def _write_table(
    output: Store, ledger: Ledger, labels: LabelSet, share: RunShare | None
) -> Summary:
    summary = Summary(labels, len(ledger))
    if share is not None:
        share.begin()
    with TableWriter(output) as table:
        for batch in ledger.batches():
            summary.add(batch)
            if share is not None:
                share.add(batch)
            if not ledger.is_as_the_table:
                table.write(batch)
        if not ledger.is_as_the_table:
            table.put()
    return summary


def write_results(output: Store, summary: Summary, result: RunResult) -> None:
    """Write the scores, the report, and the marker last.

    Raises:
        StoreError: the store refuses.
    """
    output.write(SCORES_PATH, json.dumps(summary.scores(), indent=1).encode())
    write_report(output, summary, {f.shard: f.reason for f in result.failed})
    output.write(SUCCESS if result.is_complete else PARTIAL, _marker(result))


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
