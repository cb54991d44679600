"""The status of an output (`fcnseg status`), read from its commits. Also works during a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.manifest import Manifest, read_manifest
from pipeline.output.commit_index import CommitIndex
from pipeline.output.lease import Holder, read_lease
from pipeline.output.markers import read_marker
from pipeline.output.summary import Summary, summarize
from pipeline.storage.store import Store


@dataclass(frozen=True)
class Status:
    """The status of an output.

    Attributes:
        identity: manifest of the output.
        commit_index: index of all commits.
        summary: sums over all commits.
        holder: driver that holds the lease; None if no run is in progress.
        marker: "_SUCCESS" or "_PARTIAL"; None before the end of a run.
        marker_document: content of the marker; empty without a marker.
    """

    identity: Manifest
    commit_index: CommitIndex
    summary: Summary
    holder: Holder | None
    marker: str | None
    marker_document: dict[str, Any]

    @property
    def scores(self) -> dict[str, Any]:
        """Return the scores over all commits, as in `stats/scores.json`."""
        return self.summary.scores()

    def to_dict(self) -> dict[str, Any]:
        """Return the status as JSON values for programs."""
        return {
            "input": self.identity.input,
            "fingerprint": self.identity.fingerprint,
            "running": None if self.holder is None else self.holder.describe(),
            "marker": self.marker,
            "shards_in_input": self.marker_document.get("shards"),
            "failed_shards": self.marker_document.get("failed_shards", {}),
            **self.scores,
        }


def read_status(output: Store) -> Status:
    """Return the status of an output.

    Raises:
        OutputError: the store does not hold an output.
        StoreError: the output cannot be read.
    """
    identity = read_manifest(output)
    marker, document = read_marker(output)
    index, summary = summarize(output, identity.labels)
    holder = read_lease(output)
    if holder is not None and not holder.is_in_force():  # the driver was killed
        holder = None
    return Status(identity, index, summary, holder, marker, document)
