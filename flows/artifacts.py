"""Publish the results of a run as Prefect artifacts, read from OUTPUT.

Everything comes from OUTPUT, because the driver may be this process or a job on a cluster.
"""

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

from flows.prefect_reporter import call_prefect
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

MAX_SHARDS = 20
"""Rows of the table of the worst shards."""

MAX_QUARANTINED = 50
"""Rows of the table of quarantined images."""

MAX_IMAGES = 6
"""Images in the gallery. Prefect's database holds them: at most 320 px, about 15 kB each."""


@dataclass(frozen=True)
class RunOutcome:
    """OUTPUT after a run.

    Attributes:
        output: store of OUTPUT.
        status: state of OUTPUT.
        record: record of the run; None if the run had nothing to do.
        previous: record of the run before it, in this OUTPUT or in the latest earlier one; None
            if there is none.
    """

    output: Store
    status: Status
    record: RunRecord | None
    previous: RunRecord | None

    @property
    def shards(self) -> int:
        """Number of shards in INPUT, as counted by the last finished run."""
        return int(self.status.marker_document.get("shards", len(self.status.commit_index)))

    @property
    def committed(self) -> int:
        """Number of shards of INPUT that are committed."""
        return int(self.status.marker_document.get("committed", len(self.status.commit_index)))

    @property
    def failed(self) -> dict[str, str]:
        """Reasons by name of the shards that could not be committed."""
        return dict(self.status.marker_document.get("failed_shards", {}))


def read_outcome(config: RunConfig, since: datetime, earlier: Iterable[str]) -> RunOutcome:
    """Return the state of OUTPUT after a run.

    Args:
        config: configuration of the run, with resolved dates.
        since: scheduled start of the flow run; an older record belongs to another run.
        earlier: URLs of the outputs of earlier scheduled runs, latest first.

    Raises:
        OutputError: OUTPUT does not exist, or an object in it cannot be read.
        StoreError: the store fails.
    """
    output = Store(config.output.url, config.output.store)
    records = list(read_history(output, 2))
    is_of_this_run = bool(records) and records[-1].ended > f"{since:%Y-%m-%dT%H:%M:%SZ}"
    record = records.pop() if is_of_this_run else None
    previous = records[-1] if records else _latest_record(earlier, config)
    return RunOutcome(output, read_status(output), record, previous)


def _latest_record(outputs: Iterable[str], config: RunConfig) -> RunRecord | None:
    for url in outputs:
        if records := read_history(Store(url, config.output.store), 1):
            return records[0]
    return None


def publish_outcome(outcome: RunOutcome, series: str, links: Sequence[tuple[str, str]]) -> None:
    """Create the artifacts of a run: summary, classes, worst shards, quarantined images, gallery.

    Args:
        outcome: OUTPUT after the run.
        series: series of the run; its artifacts are versions of those of earlier runs.
        links: texts and URLs for the summary.
    """

    def table(name: str, rows: list[dict[str, Any]], description: str) -> None:
        key = artifact_key(name, series)
        call_prefect(create_table_artifact, table=rows, key=key, description=description)

    where = plain(shown(outcome.output.url))
    table("classes", class_rows(outcome), f"IoU per class of {where}")
    worst = outcome.status.summary.worst_of_all(MAX_SHARDS)
    table("worst-shards", [_shard_row(score) for score in worst], f"worst shards of {where}")
    bad = list(islice(quarantined(outcome.output, outcome.status), MAX_QUARANTINED))
    if bad:
        rows = [_quarantined_row(row) for row in bad]
        table("quarantined", rows, f"quarantined images of {where}")
    images = _images_to_review(outcome)
    if images:
        call_prefect(
            create_markdown_artifact,
            markdown=gallery(images),
            key=artifact_key("pictures", series),
            description=f"Images of this run to review first, with their masks: {where}",
        )
    call_prefect(
        create_markdown_artifact,
        markdown=summary(outcome, links),
        key=artifact_key("summary", series),
        description=f"Summary of this run: {where}",
    )


def artifact_key(name: str, series: str) -> str:
    """Return the artifact key that all runs of one series share, and no other runs.

    Args:
        name: kind of artifact.
        series: name of the series.

    >>> artifact_key("summary", "s3://b/out/{date}")
    'fcnseg-summary-b-out-date-a1c52f'
    """
    digest = hashlib.sha256(series.encode()).hexdigest()[:6]
    words = re.sub(r"[^a-z0-9]+", "-", series.lower().split("://")[-1]).strip("-")
    return f"fcnseg-{name}-{words[-40:].strip('-')}-{digest}"


def class_rows(outcome: RunOutcome) -> list[dict[str, Any]]:
    """Return one row per class and one of mean IoU: all of OUTPUT, this run, the run before."""
    scores = outcome.status.scores
    whole = dict(zip(scores["classes"], scores["iou"], strict=True))
    pixels = dict(zip(scores["classes"], scores["class_pixels"], strict=True))
    now, before = _iou(outcome.record), _iou(outcome.previous)
    rows = []
    for name in [*whole, "mean IoU"]:
        difference = None
        if now.get(name) is not None and before.get(name) is not None:
            difference = now[name] - before[name]
        rows.append(
            {
                "class": name,
                "IoU": _rounded(scores["mean_iou"] if name == "mean IoU" else whole[name]),
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
    return {**dict(by_class), "mean IoU": record.scores["mean_iou"]}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _shard_row(score: ShardScore) -> dict[str, Any]:
    return {
        "shard": shown(score.shard),
        "mean IoU" if score.has_labels else "mean confidence": _rounded(score.score),
        "images": score.images,
        "quarantined": score.failures,
        "seconds": round(sum(score.seconds.values()), 1),
    }


def _quarantined_row(row: Quarantined) -> dict[str, Any]:
    return {
        "shard": shown(row.shard),
        "image": shown(row.key),
        "reason": shown(row.reason),
        "location": shown(row.location),
    }


def _images_to_review(outcome: RunOutcome) -> list[Reviewed]:
    if outcome.record is None or outcome.record.review is None:
        return []
    try:
        reviewed = read_review(outcome.output, outcome.record.run)
    except OutputError:  # the gallery is optional
        return []
    return [image for image in reviewed if image.overlay is not None][:MAX_IMAGES]


def gallery(images: Sequence[Reviewed]) -> str:
    """Return Markdown that shows images with their masks, embedded as data URIs."""
    parts = []
    for image in images:
        score = "" if image.mean_iou is None else f"mean IoU {image.mean_iou:.3f}, "
        confidence = "-" if image.mean_confidence is None else f"{image.mean_confidence:.3f}"
        data = base64.b64encode(image.overlay or b"").decode()
        parts.append(
            f"**{plain(shown(image.key))}** of {plain(shown(image.shard))}: {image.reason} "
            f"({score}confidence {confidence})\n\n"
            f"![overlay](data:image/jpeg;base64,{data})"
        )
    return "\n\n".join(parts)


def summary(outcome: RunOutcome, links: Sequence[tuple[str, str]]) -> str:
    """Return the summary artifact of a run, as Markdown.

    Args:
        outcome: OUTPUT after the run.
        links: texts and URLs to add.
    """
    status, record = outcome.status, outcome.record
    scores = status.scores
    done_now = 0 if record is None else record.shards
    lines = [
        f"# {plain(shown(outcome.output.url))}",
        "",
        f"- shards: {outcome.committed} of {outcome.shards} done, {done_now} in this run",
        f"- images: {scores['images']}, quarantined: {scores['failures']}",
        f"- mean IoU: {_number(scores['mean_iou'])}" + _of_this_run(record, outcome.previous),
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
    """Return a location as a Markdown link: a file URI for a local path, else the URL itself."""
    url = Path(location).as_uri() if location.startswith("/") else quote(location, safe=":/")
    return f"[`{_code(location)}`]({url})"


def _of_this_run(record: RunRecord | None, previous: RunRecord | None) -> str:
    if record is None or record.scores["mean_iou"] is None:
        return ""
    before = None if previous is None else previous.scores["mean_iou"]
    previously = "" if before is None else f", previous run {before:.4f}"
    return f" (this run {record.scores['mean_iou']:.4f}{previously})"


def _number(value: float | None) -> str:
    return "no labels" if value is None else f"{value:.4f}"


def _code(text: str) -> str:
    return shown(text).replace("`", "'")


def plain(text: str) -> str:
    """Return a text with the characters escaped that Markdown would read as markup."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", text)
