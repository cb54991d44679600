"""The history of an output: one small record per run that did something, kept for good.

A run, here, is from the first start to the finish, however often it was killed in between: what
begins it is `_runs/open.json`, what ends it is its record, which is created once and never changed.
Commits name the run that made them, so that a run that was killed is told whole by the one that
resumes it.
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


_NAME = re.compile(rf"{RUNS}/(\d{{8}}T\d{{6}}Z-[0-9a-f]{{8}})\.json")

_PACKAGES = ("fcn-pipeline", "torch", "ray", "prefect")

_READERS = 16


@dataclass(frozen=True)
class RunRecord:
    """What a run did, as its record keeps it.

    Attributes:
        run: its name, "20261123T010203Z-1a2b3c4d": the second in which it began (UTC), which
            65,536th of it, and a random number. Names sort by time.
        ended: when it was finished, ISO 8601, UTC.
        seconds: from start to finish of the driver that finished it.
        fingerprint: of the run.
        versions: of packages, by name.
        shards: committed by this run.
        failed: shards that it could not finish.
        images, labeled_images, failures: in these commits.
        scores: of these commits alone, as in `stats/scores.json` without the matrix: None where
            undefined, and `mean_iou` None without labels.
        totals: `shards`, `images`, `failures` and `mean_iou` of the whole output afterwards.
        window: what later runs are compared with.
        comparison: with earlier runs, or the reference.
        review: the object of images to look at, if there are any.
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
        """When it began, ISO 8601, UTC."""
        moment = datetime.strptime(self.run.split("-")[0], "%Y%m%dT%H%M%SZ")
        return f"{moment.isoformat()}Z"

    @property
    def mean_confidence(self) -> float | None:
        """Of its images; None without any."""
        return self.window.confidence_sum / self.images if self.images else None

    @property
    def drifted(self) -> tuple[Drift, ...]:
        """What differs from before by more than `drift.major`, largest first."""
        return self.comparison.drifted

    def to_json(self) -> bytes:
        """The record object."""
        document = {"format": RECORD_FORMAT, **asdict(self)}
        return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()

    def to_dict(self) -> dict[str, Any]:
        """For machines: all but the histograms."""
        document = {"started": self.started, **asdict(self)}
        document["mean_confidence"] = self.mean_confidence
        document["class_pixels"] = list(document.pop("window")["class_pixels"])
        document["drifted"] = [drift.reason for drift in self.drifted]
        return document

    @classmethod
    def from_json(cls, data: bytes, where: str) -> RunRecord:
        """What `to_json` gave.

        Raises:
            OutputError: of another format version, or not a record.
        """
        try:
            document = json.loads(data)
            found = document.pop("format")
            if found != RECORD_FORMAT:
                raise OutputError(
                    where=where,
                    found=f"record format {found}",
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
                remedy="Delete it: only the history loses it, no mask does.",
            ) from error


def list_runs(output: Store) -> list[str]:
    """The names of all runs that are finished, the oldest first."""
    found = (_NAME.fullmatch(info.path) for info in output.listing(RUNS))
    return sorted(match.group(1) for match in found if match)


def read_history(output: Store, last: int | None = None) -> tuple[RunRecord, ...]:
    """What the runs of an output did, the oldest first.

    Args:
        output: of a run; outputs of format 1 have no history.
        last: at most so many, the latest.

    Raises:
        OutputError: a record that cannot be read.
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
    """(object, what is wrong with it) of every record and of the review queue it names.

    A review queue may be deleted when it has been looked at.
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

    found = map_ordered(check, list_runs(output), _READERS)
    return [problem for problems in found for problem in problems]


def opened_run(output: Store) -> str | None:
    """The run that was begun here and has no record yet; None if there is none."""
    try:
        run = str(json.loads(output.read(OPEN_RUN))["run"])
    except MissingError:
        return None
    except (ValueError, KeyError, TypeError):
        return None  # no run of ours: a new one is begun over it
    if not _NAME.fullmatch(record_path(run)) or _exists(output, record_path(run)):
        return None
    return run


def begin_run(output: Store) -> str:
    """Begin a run: its name is in the output before any commit bears it."""
    now = datetime.now(UTC)
    part = now.microsecond * 0x10000 // 1_000_000  # runs of the same second sort by time as well
    run = f"{now:%Y%m%dT%H%M%SZ}-{part:04x}{secrets.token_hex(2)}"
    output.write(OPEN_RUN, json.dumps({"run": run}).encode())
    return run


def end_run(output: Store, record: RunRecord) -> None:
    """Create the record of a run, which ends it.

    Raises:
        StoreError: the store refuses.
    """
    output.create(record_path(record.run), record.to_json())
    output.delete(OPEN_RUN)


def cancel_run(output: Store) -> None:
    """Forget a run that was begun and did nothing."""
    output.delete(OPEN_RUN)


def versions() -> dict[str, str]:
    """Of the packages that matter, those that are installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _exists(output: Store, path: str) -> bool:
    try:
        output.stat(path)
    except MissingError:
        return False
    return True
