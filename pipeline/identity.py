"""Whose output this is: the fingerprint of all that changes a result, kept in `_run.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fcn_core.checkpoint import WeightsFile
from fcn_core.labels import LabelSet
from pipeline.chunks import ChunkLimits
from pipeline.errors import MissingError, OutputError
from pipeline.store import Store

PATH = "_run.json"
OUTPUT_FORMAT = 1
"""Version of everything in an output; see the heading "Output format" in CHANGELOG.md."""


@dataclass(frozen=True)
class Identity:
    """What an output belongs to.

    Attributes:
        input: URL of INPUT.
        chunk_limits: where shards are split, which decides file names.
        labels: the label set.
        parts: what the fingerprint is made of.
        layout: how the input is laid out ("tar", "parquet", "folder", "folder images/"); None
            before it was listed. A folder whose `labels/` is renamed would become other images.
    """

    input: str
    chunk_limits: ChunkLimits
    labels: LabelSet
    parts: Mapping[str, Any]
    layout: str | None = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits; equal if and only if the parts are equal."""
        canonical = json.dumps(self.parts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_json(self) -> bytes:
        """The object `_run.json`."""
        document = {
            "format": OUTPUT_FORMAT,
            "fingerprint": self.fingerprint,
            "parts": self.parts,
            "input": self.input,
            "layout": self.layout,
            "chunk_limits": vars(self.chunk_limits),
            "labels": self.labels.to_dict(),
        }
        return json.dumps(document, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Identity:
        """What `to_json` gave.

        Raises:
            OutputError: of another format, or no `_run.json` of this project.
        """
        try:
            document = json.loads(data)
            if document["format"] != OUTPUT_FORMAT:
                raise OutputError(
                    where,
                    f"output format {document['format']}",
                    f"format {OUTPUT_FORMAT}",
                    "Use the version of fcnseg that wrote it, or a new OUTPUT.",
                )
            return cls(
                input=document["input"],
                chunk_limits=ChunkLimits(**document["chunk_limits"]),
                labels=LabelSet.from_dict(document["labels"], where),
                parts=document["parts"],
                layout=document["layout"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise OutputError(
                where, f"unreadable ({error})", "the _run.json of a run", "Use a new OUTPUT."
            ) from error


def identity(
    input_url: str, weights: WeightsFile, labels: LabelSet, precision: str, limits: ChunkLimits
) -> Identity:
    """The identity of a run.

    Compute (executor, workers, device) is not part of it: a run may resume on other machines.
    """
    parts = {
        "weights_sha256": weights.sha256,
        "variant": weights.info.variant,
        "preprocessing": weights.info.preprocessing.to_dict(),
        "labels": labels.to_dict(),
        "precision": precision,
        "output_format": OUTPUT_FORMAT,
    }
    # Through JSON, so that what is compared later is what was written.
    return Identity(input_url, limits, labels, json.loads(json.dumps(parts)))


def read_identity(output: Store) -> Identity:
    """The identity of an existing output.

    Raises:
        OutputError: there is none, or it is of another format.
    """
    try:
        return Identity.from_json(output.read(PATH), output.location(PATH))
    except MissingError as error:
        raise OutputError(
            output.url, "no _run.json", "the OUTPUT of a run", "Check the address."
        ) from error


def claim(output: Store, mine: Identity) -> None:
    """Make an output ours, or make sure it is.

    Raises:
        OutputError: it belongs to another input, other weights or other chunk limits.
    """
    check(output, mine)
    output.create(PATH, mine.to_json())


def check(output: Store, mine: Identity) -> None:
    """Refuse an output that belongs to something else. Writes nothing.

    Raises:
        OutputError: naming the first difference.
    """
    try:
        theirs = read_identity(output)
    except OutputError as error:
        if not isinstance(error.__cause__, MissingError):
            raise
        if output.objects("_commits"):
            _refuse(output, "commits, but no _run.json", "a new place, or the output of a run")
        return
    if theirs.input != mine.input:
        _refuse(output, f"it holds the labels of {theirs.input}", f"this run labels {mine.input}")
    for name in {**theirs.parts, **mine.parts}:
        then, now = theirs.parts.get(name), mine.parts.get(name)
        if then != now:
            _refuse(
                output, f"it was made with {name} {_short(then)}", f"this run has {_short(now)}"
            )
    if None not in (theirs.layout, mine.layout) and theirs.layout != mine.layout:
        _refuse(output, f"its input was laid out as {theirs.layout}", f"now it is {mine.layout}")
    if theirs.chunk_limits != mine.chunk_limits:
        _refuse(
            output,
            f"it was made with {theirs.chunk_limits}",
            f"this run has {mine.chunk_limits}",
        )


def _refuse(output: Store, found: str, expected: str) -> None:
    raise OutputError(
        output.url,
        found,
        expected,
        "Nothing was changed. Use a new OUTPUT, or run with what it was made with.",
    )


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 60 else text[:57] + "..."
