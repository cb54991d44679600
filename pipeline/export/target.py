"""Where an export goes: an empty place, or one where the very same export was interrupted."""

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
"""Says what was exported, and, once it is finished, what came of it."""


_WRITERS = 8


@dataclass(frozen=True)
class ExportTarget:
    """DEST, claimed for one export.

    Attributes:
        store: DEST.
        wanted: what is exported and how; equal for the same command on the same commits.
    """

    store: Store
    wanted: Mapping[str, Any]

    def claim(self) -> Mapping[str, Any] | None:
        """Make DEST ours; the result of the same export if it was finished before.

        Raises:
            OutputError: it holds something else.
        """
        try:
            found = json.loads(self.store.read(RECORD))
            result = found.pop("result", None)
        except MissingError:
            self._refuse_others()
            self._write(None)
            return None
        except (ValueError, AttributeError):
            found, result = None, None
        if found != json.loads(json.dumps(self.wanted)):
            raise OutputError(
                where=self.store.url,
                found="an export of something else, of another state of OUTPUT, or with other options",
                expected="an empty place, or the same export interrupted",
                remedy="Nothing was changed. Choose another DEST, or empty this one.",
            )
        return result if isinstance(result, dict) else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Everything is there."""
        self._write(result)

    def put_all(self, objects: Iterator[tuple[str, bytes]]) -> None:
        """Put objects, some at once."""
        for _ in map_ordered(lambda one: self.store.write(*one), objects, _WRITERS):
            pass

    def _write(self, result: Mapping[str, Any] | None) -> None:
        document = {**self.wanted, **({} if result is None else {"result": result})}
        self.store.write(RECORD, json.dumps(document, indent=1, sort_keys=True).encode())

    def _refuse_others(self) -> None:
        there = next(self.store.listing(), None)
        if there is not None:
            raise OutputError(
                where=self.store.url,
                found=f"{there.path}, which no export of this project put there",
                expected="an empty place",
                remedy="Nothing was changed. Choose another DEST.",
            )


def state_of(output: Store) -> str:
    """A digest of all commits: the same as long as nothing was labelled.

    Raises:
        StoreError: they cannot be listed.
    """
    digest = hashlib.sha256()
    for info in output.listing(COMMITS):
        digest.update(f"{info.path}\0{info.etag}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
