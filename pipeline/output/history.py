"""The history of an output: one small record for every run that did something, kept forever.

A run begins with `_runs/open.json` and ends with its record, which is created once and never
changed. If the driver is killed in between, the next driver continues the same run. Commits name
their run, so that the record covers all of it, whichever driver wrote the commits.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.concurrency import map_ordered
from pipeline.errors import MissingError, OutputError, StoreError
from pipeline.output.drift import Comparison, Drift, Window
from pipeline.paths import OPEN_RUN, RUNS, record_path
from pipeline.stages.histograms import Histograms
from pipeline.stages.records import FileRecord
from pipeline.storage.store import Store

RECORD_FORMAT = 1


RECORD_NAME = re.compile(rf"{RUNS}/(\d{{8}}T\d{{6}}Z-[0-9a-f]{{8}})\.json")

_PACKAGES = ("fcn-pipeline", "torch", "ray", "prefect")

_READERS = 16


@dataclass(frozen=True)
class RunRecord:
    """The record of a finished run.

    Attributes:
        run: name of the run, such as "20261123T010203Z-1a2b3c4d": its first second (UTC), four
            hex digits for the fraction of that second, four random ones. Names sort by time.
        ended: time of the finish, ISO 8601, UTC.
        seconds: wall time of the driver that finished the run.
        fingerprint: fingerprint of the output.
        versions: package versions by name.
        shards: number of shards that the run committed.
        failed: number of shards that the run could not commit.
        images: images that were segmented, in these commits.
        labeled_images: images that have a label, in these commits.
        failures: images that were quarantined, in these commits.
        scores: scores of these commits, as in `stats/scores.json` without the matrix; None where
            undefined, `mean_iou` also without labels.
        totals: `shards`, `images`, `failures` and `mean_iou` of the whole output after the run.
        window: counts of the run that later runs are compared with.
        comparison: comparison with earlier runs or with the reference.
        review: record of the review table; None without images to review.
    """

    run: str
    ended: str
    seconds: float
    fingerprint: str
    versions: Mapping[str, str]
    shards: int
    failed: int
    images: int
    labeled_images: int
    failures: int
    scores: Mapping[str, Any]
    totals: Mapping[str, Any]
    window: Window
    comparison: Comparison
    review: FileRecord | None

    @property
    def started(self) -> str:
        """Return the start time of the run, ISO 8601, UTC."""
        moment = datetime.strptime(self.run.split("-")[0], "%Y%m%dT%H%M%SZ")
        return f"{moment.isoformat()}Z"

    @property
    def mean_confidence(self) -> float | None:
        """Return the mean confidence of the images of the run; None without images."""
        return self.window.confidence_sum / self.images if self.images else None

    @property
    def drifted(self) -> tuple[Drift, ...]:
        """Return the quantities with major drift, largest first."""
        return self.comparison.drifted

    def to_json(self) -> bytes:
        """Return the bytes of the record object."""
        document = {"format": RECORD_FORMAT, **asdict(self)}
        return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values for programs, without the histograms."""
        document = {"started": self.started, **asdict(self)}
        document["mean_confidence"] = self.mean_confidence
        document["class_pixels"] = list(document.pop("window")["class_pixels"])
        document["drifted"] = [drift.reason for drift in self.drifted]
        return document

    @classmethod
    def from_json(cls, data: bytes, where: str) -> RunRecord:
        """Return the record from the bytes of `to_json`.

        Raises:
            OutputError: another format version, or not a record.
        """
        try:
            document = json.loads(data)
            version = document.pop("format")
            if version != RECORD_FORMAT:
                raise OutputError(
                    where=where,
                    found=f"record format {version}",
                    expected=f"format {RECORD_FORMAT}",
                    remedy="Use the version of fcnseg that wrote it.",
                )
            window, review = document["window"], document["review"]
            document["window"] = Window(
                window["images"],
                tuple(window["class_pixels"]),
                window["confidence_sum"],
                Histograms.of(window["histograms"]),
            )
            document["comparison"] = Comparison.of(document["comparison"])
            document["review"] = None if review is None else FileRecord(**review)
            return cls(**document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OutputError(
                where=where,
                found=f"no readable record of a run ({error})",
                expected="a record of this project",
                remedy="Delete it: only the history loses an entry; no mask is affected.",
            ) from error


def list_runs(output: Store) -> list[str]:
    """Return the names of all finished runs, oldest first."""
    matches = (RECORD_NAME.fullmatch(info.path) for info in output.listing(RUNS))
    return sorted(match.group(1) for match in matches if match)


def read_history(output: Store, last: int | None = None) -> tuple[RunRecord, ...]:
    """Return the records of the runs of an output, oldest first.

    Args:
        output: store of OUTPUT; an output of format 1 has no history.
        last: number of the latest runs to read; None reads all.

    Raises:
        OutputError: a record cannot be read.
        StoreError: the store fails.
    """
    runs = list_runs(output)
    chosen = runs if last is None else runs[max(0, len(runs) - last) :]

    def read(run: str) -> RunRecord | None:
        path = record_path(run)
        try:
            return RunRecord.from_json(output.read(path), output.location(path))
        except MissingError:  # deleted just now
            return None

    return tuple(record for record in map_ordered(read, chosen, _READERS) if record is not None)


def run_problems(output: Store) -> list[tuple[str, str]]:
    """Return the problems of all run records and their review tables, as (path, problem).

    A missing review table is not a problem: users may delete it after the review.
    """

    def check(run: str) -> list[tuple[str, str]]:
        path = record_path(run)
        try:
            record = RunRecord.from_json(output.read(path), output.location(path))
            if record.run != run:
                return [(path, f"it is the record of run {record.run}")]
            if record.review is None:
                return []
            path = record.review.path
            digest = hashlib.sha256(output.read(path)).hexdigest()
        except MissingError:
            return []
        except (OutputError, StoreError) as error:
            return [(path, error.reason)]
        expected = record.review.sha256
        return [] if digest == expected else [(path, f"sha256 {digest}, its run says {expected}")]

    by_run = map_ordered(check, list_runs(output), _READERS)
    return [problem for problems in by_run for problem in problems]


def opened_run(output: Store) -> str | None:
    """Return the name of the run that was begun and has no record yet; None without one."""
    try:
        run = str(json.loads(output.read(OPEN_RUN))["run"])
    except MissingError:
        return None
    except (ValueError, KeyError, TypeError):
        return None  # damaged: the next run replaces it
    if not RECORD_NAME.fullmatch(record_path(run)) or _exists(output, record_path(run)):
        return None
    return run


def begin_run(output: Store) -> str:
    """Begin a run, and return its name. The name is written before any commit uses it."""
    now = datetime.now(UTC)
    part = now.microsecond * 0x10000 // 1_000_000  # runs of the same second sort by time as well
    run = f"{now:%Y%m%dT%H%M%SZ}-{part:04x}{secrets.token_hex(2)}"
    output.write(OPEN_RUN, json.dumps({"run": run}).encode())
    return run


def end_run(output: Store, record: RunRecord) -> None:
    """End a run by creating its record.

    Raises:
        StoreError: the store fails.
    """
    output.create(record_path(record.run), record.to_json())
    output.delete(OPEN_RUN)


def cancel_run(output: Store) -> None:
    """Cancel a run that was begun but did nothing: it gets no record."""
    output.delete(OPEN_RUN)


def versions() -> dict[str, str]:
    """Return the versions of the relevant packages that are installed, by name."""
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _exists(output: Store, path: str) -> bool:
    try:
        output.stat(path)
    except MissingError:
        return False
    return True
