"""`fcnseg status`: how an output stands, from its commits alone. Works while a run is on."""

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
    """An output at this moment.

    Attributes:
        identity: what it belongs to.
        commit_index: its commits.
        summary: what they come to.
        holder: the driver at work, if any.
        marker: "_SUCCESS", "_PARTIAL" or None while (or before) a run finishes.
        marker_document: what the marker says.
    """

    identity: Manifest
    commit_index: CommitIndex
    summary: Summary
    holder: Holder | None
    marker: str | None
    marker_document: dict[str, Any]

    @property
    def scores(self) -> dict[str, Any]:
        """The merged scores, as `stats/scores.json` has them."""
        return self.summary.scores()

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
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
    """The status of an output.

    Raises:
        OutputError: no output of a run.
        StoreError: it cannot be read.
    """
    identity = read_manifest(output)
    marker, document = read_marker(output)
    index, summary = summarize(output, identity.labels)
    holder = read_lease(output)
    if holder is not None and not holder.is_in_force():  # killed: it holds nothing any more
        holder = None
    return Status(identity, index, summary, holder, marker, document)
