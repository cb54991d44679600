"""The destination of an export: an empty folder, or one with the same export, interrupted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.concurrency import map_ordered
from pipeline.errors import MissingError, OutputError
from pipeline.paths import COMMITS
from pipeline.storage.store import Store

RECORD = "_export.json"
"""Record of what is exported, and of the result once the export is finished."""


_WRITERS = 8


@dataclass(frozen=True)
class ExportTarget:
    """Destination that one export has claimed.

    Attributes:
        store: the store of DEST.
        wanted: what is exported and how; equal for equal commands on equal commits, JSON-able.
    """

    store: Store
    wanted: Mapping[str, Any]

    def claim(self) -> Mapping[str, Any] | None:
        """Claim DEST for this export; return its result if it was finished before, else None.

        Raises:
            OutputError: DEST holds a different export, or other files.
        """
        try:
            recorded = json.loads(self.store.read(RECORD))
            result = recorded.pop("result", None)
        except MissingError:
            self._refuse_others()
            self._write(None)
            return None
        except (ValueError, AttributeError):
            recorded, result = None, None
        if recorded != json.loads(json.dumps(self.wanted)):
            raise OutputError(
                where=self.store.url,
                found="a different export: of another output, other commits, or with other options",
                expected="an empty folder, or the same export",
                remedy="Nothing was changed. Choose another DEST, or empty this one.",
            )
        return result if isinstance(result, dict) else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Record the result: the export is complete."""
        self._write(result)

    def put_all(self, objects: Iterator[tuple[str, bytes]]) -> None:
        """Write (path, bytes) objects, several at the same time."""
        for _ in map_ordered(lambda item: self.store.write(*item), objects, _WRITERS):
            pass

    def _write(self, result: Mapping[str, Any] | None) -> None:
        document = {**self.wanted, **({} if result is None else {"result": result})}
        self.store.write(RECORD, json.dumps(document, indent=1, sort_keys=True).encode())

    def _refuse_others(self) -> None:
        existing = next(self.store.listing(), None)
        if existing is not None:
            raise OutputError(
                where=self.store.url,
                found=f"{existing.path}, which is not part of an export",
                expected="an empty folder",
                remedy="Nothing was changed. Choose another DEST.",
            )


def digest_commits(output: Store) -> str:
    """Return a digest of all commits, which changes when a shard is committed.

    Raises:
        StoreError: the commits cannot be listed.
    """
    digest = hashlib.sha256()
    for info in output.listing(COMMITS):
        digest.update(f"{info.path}\0{info.etag}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
