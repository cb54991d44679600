"""What a run left behind, as Prefect artifacts: read from the output, whoever the driver was."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.prefect_reporter import quietly
from pipeline.config import RunConfig
from pipeline.errors import OutputError
from pipeline.output.history import RunRecord, read_history
from pipeline.output.quarantine import Quarantined, quarantined
from pipeline.output.review import Reviewed, read_review
from pipeline.output.status import Status, read_status
from pipeline.output.summary import ShardScore
from pipeline.paths import REPORT
from pipeline.report.page import shown
from pipeline.storage.store import Store

MOST_SHARDS = 20

MOST_QUARANTINED = 50

MOST_PICTURES = 6
"""They lie in Prefect's database: at most 320 px each, some 15 kB."""


@dataclass(frozen=True)
class RunOutcome:
    """An output after a run.

    Attributes:
        output: where.
        status: how it stands.
        record: of the run itself; None if it had nothing to do.
        previous: of the run before it, in this output or in the latest earlier one.
    """

    output: Store
    status: Status
    record: RunRecord | None
    previous: RunRecord | None

    @property
    def shards(self) -> int:
        """Of the input, as the last run that finished found it."""
        return int(self.status.marker_document.get("shards", len(self.status.ledger)))

    @property
    def committed(self) -> int:
        """Shards of the input that are done."""
        return int(self.status.marker_document.get("committed", len(self.status.ledger)))

    @property
    def failed(self) -> dict[str, str]:
        """Reasons by shard that could not be done."""
        return dict(self.status.marker_document.get("failed_shards", {}))


def read_outcome(config: RunConfig, since: datetime, earlier: Iterable[str]) -> RunOutcome:
    """What a run left behind.

    Args:
        config: of the run, with real dates.
        since: when the flow run was to start: an older record is not of this run.
        earlier: outputs of the nights before, latest first.

    Raises:
        OutputError: there is no output, or something in it cannot be read.
        StoreError: the store fails.
    """
    output = Store(config.output.url, config.output.store)
    found = list(read_history(output, 2))
    record = found.pop() if found and found[-1].ended > f"{since:%Y-%m-%dT%H:%M:%SZ}" else None
    previous = found[-1] if found else _latest_of(earlier, config)
    return RunOutcome(output, read_status(output), record, previous)


def _latest_of(outputs: Iterable[str], config: RunConfig) -> RunRecord | None:
    for url in outputs:
        if found := read_history(Store(url, config.output.store), 1):
            return found[0]
    return None


def publish_outcome(outcome: RunOutcome, series: str, links: Sequence[tuple[str, str]]) -> None:
    """Make the artifacts: summary, classes, worst shards, quarantined images, pictures.

    Args:
        outcome: of the run.
        series: what the run belongs to; artifacts of one series are versions of one another.
        links: texts and addresses for the summary.
    """

    def table(name: str, rows: list[dict[str, Any]], description: str) -> None:
        key = artifact_key(name, series)
        quietly(create_table_artifact, table=rows, key=key, description=description)

    where = plain(shown(outcome.output.url))
    table("classes", class_rows(outcome), f"IU per class of {where}")
    worst = outcome.status.summary.worst_of_all(MOST_SHARDS)
    table("worst-shards", [_shard_row(score) for score in worst], f"worst shards of {where}")
    bad = list(islice(quarantined(outcome.output, outcome.status), MOST_QUARANTINED))
    if bad:
        table("quarantined", [_bad_row(row) for row in bad], f"quarantined images of {where}")
    pictures = _pictures(outcome)
    if pictures:
        quietly(
            create_markdown_artifact,
            markdown=gallery(pictures),
            key=artifact_key("pictures", series),
            description=f"Images of this run to look at first, with their masks: {where}",
        )
    quietly(
        create_markdown_artifact,
        markdown=summary(outcome, links),
        key=artifact_key("summary", series),
        description=f"What this run did: {where}",
    )


def artifact_key(name: str, series: str) -> str:
    """A key that all runs of one series share, and no others.

    >>> artifact_key("summary", "s3://b/out/{date}")
    'fcnseg-summary-b-out-date-a1c52f'
    """
    digest = hashlib.sha256(series.encode()).hexdigest()[:6]
    words = re.sub(r"[^a-z0-9]+", "-", series.lower().split("://")[-1]).strip("-")
    return f"fcnseg-{name}-{words[-40:].strip('-')}-{digest}"


def class_rows(outcome: RunOutcome) -> list[dict[str, Any]]:
    """A row per class and one of mean IU: the whole output, this run, the one before."""
    scores = outcome.status.scores
    whole = dict(zip(scores["classes"], scores["iou"], strict=True))
    pixels = dict(zip(scores["classes"], scores["class_pixels"], strict=True))
    now, before = _iou(outcome.record), _iou(outcome.previous)
    rows = []
    for name in [*whole, "mean IU"]:
        difference = None
        if now.get(name) is not None and before.get(name) is not None:
            difference = now[name] - before[name]
        rows.append(
            {
                "class": name,
                "IU": _rounded(scores["mean_iou"] if name == "mean IU" else whole[name]),
                "this run": _rounded(now.get(name)),
                "previous run": _rounded(before.get(name)),
                "difference": None if difference is None else f"{difference:+.4f}",
                "predicted pixels": pixels.get(name),
            }
        )
    return rows


def _iou(record: RunRecord | None) -> dict[str, Any]:
    if record is None:
        return {}
    by_class = zip(record.scores["classes"], record.scores["iou"], strict=True)
    return {**dict(by_class), "mean IU": record.scores["mean_iou"]}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _shard_row(score: ShardScore) -> dict[str, Any]:
    return {
        "shard": shown(score.shard),
        "mean IU" if score.has_labels else "mean confidence": _rounded(score.score),
        "images": score.images,
        "quarantined": score.failures,
        "seconds": round(sum(score.seconds.values()), 1),
    }


def _bad_row(row: Quarantined) -> dict[str, Any]:
    return {
        "shard": shown(row.shard),
        "image": shown(row.key),
        "reason": shown(row.reason),
        "location": shown(row.location),
    }


def _pictures(outcome: RunOutcome) -> list[Reviewed]:
    if outcome.record is None or outcome.record.review is None:
        return []
    try:
        found = read_review(outcome.output, outcome.record.run)
    except OutputError:  # only to look at
        return []
    return [image for image in found if image.overlay is not None][:MOST_PICTURES]


def gallery(pictures: Sequence[Reviewed]) -> str:
    """Markdown that shows images with their masks, and holds them."""
    parts = []
    for image in pictures:
        score = "" if image.mean_iou is None else f"mean IU {image.mean_iou:.3f}, "
        confidence = "-" if image.mean_confidence is None else f"{image.mean_confidence:.3f}"
        data = base64.b64encode(image.overlay or b"").decode()
        parts.append(
            f"**{plain(shown(image.key))}** of {plain(shown(image.shard))}: {image.reason} "
            f"({score}confidence {confidence})\n\n"
            f"![overlay](data:image/jpeg;base64,{data})"
        )
    return "\n\n".join(parts)


def summary(outcome: RunOutcome, links: Sequence[tuple[str, str]]) -> str:
    """Markdown for the flow run's page."""
    status, record = outcome.status, outcome.record
    scores = status.scores
    done_now = 0 if record is None else record.shards
    lines = [
        f"# {plain(shown(outcome.output.url))}",
        "",
        f"- shards: {outcome.committed} of {outcome.shards} done, {done_now} in this run",
        f"- images: {scores['images']}, quarantined: {scores['failures']}",
        f"- mean IU: {_number(scores['mean_iou'])}" + _of_this_run(record, outcome.previous),
        f"- report: {_link(outcome.output.location(REPORT))}",
    ]
    lines += [f"- {plain(text)}: [{plain(url)}]({url})" for text, url in links]
    lines += [f"- failed: {plain(shown(reason))}" for reason in outcome.failed.values()][:20]
    if record is not None:
        lines += [f"- drift: {plain(drift.reason)}" for drift in record.drifted]
        if record.comparison.note:
            lines.append(f"- drift: {plain(record.comparison.note)}")
    return "\n".join(lines)


def _link(location: str) -> str:
    """An address as a link; which browsers follow depends on its kind."""
    url = Path(location).as_uri() if location.startswith("/") else quote(location, safe=":/")
    return f"[`{_code(location)}`]({url})"


def _of_this_run(record: RunRecord | None, previous: RunRecord | None) -> str:
    if record is None or record.scores["mean_iou"] is None:
        return ""
    before = None if previous is None else previous.scores["mean_iou"]
    beside = "" if before is None else f", of the run before {before:.4f}"
    return f" (of this run {record.scores['mean_iou']:.4f}{beside})"


def _number(value: float | None) -> str:
    return "no labels" if value is None else f"{value:.4f}"


def _code(text: str) -> str:
    return shown(text).replace("`", "'")


def plain(text: str) -> str:
    """Text from data, without what Markdown would take for markup."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", text)
