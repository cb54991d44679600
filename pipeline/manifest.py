"""Whose output this is: the fingerprint of all that changes a result, kept in `_run.json`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fsspec.utils import get_protocol

from fcn_core.labels import LABEL_SETS, LabelSet
from fcn_core.weights.weights_file import DEMO_WEIGHTS, WeightsFile
from pipeline.config import RunConfig, Section
from pipeline.errors import MissingError, OutputError
from pipeline.inputs.shard import ChunkLimits
from pipeline.redact import masked
from pipeline.storage.store import Store
from pipeline.text import first_difference

PATH = "_run.json"

OUTPUT_FORMAT = 2
"""Version of everything in an output; see the heading "Output format" in CHANGELOG.md.

Enters the fingerprint, so that no run mixes versions in one output. Reading commands read all.
"""


@dataclass(frozen=True)
class Manifest:
    """What an output belongs to.

    Attributes:
        input: URL of INPUT.
        chunk_limits: where shards are split, which decides file names.
        labels: the label set.
        parts: what the fingerprint is made of.
        layout: how the input is laid out ("tar", "parquet", "folder", "folder images/"); None
            before it was listed. A folder whose `labels/` is renamed would become other images.
        config: of the latest run, as `saved_config` makes it, for `fcnseg failed --retry`; None in
            outputs that are older than this field. No part of the fingerprint, and never compared.
        format: version of the output.
    """

    input: str
    chunk_limits: ChunkLimits
    labels: LabelSet
    parts: Mapping[str, Any]
    layout: str | None = None
    config: Mapping[str, Any] | None = None
    format: int = OUTPUT_FORMAT

    @property
    def fingerprint(self) -> str:
        """16 hex digits; equal if and only if the parts are equal."""
        canonical = json.dumps(self.parts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_json(self) -> bytes:
        """The object `_run.json`."""
        document = {
            "format": self.format,
            "fingerprint": self.fingerprint,
            "parts": self.parts,
            "input": self.input,
            "layout": self.layout,
            "chunk_limits": vars(self.chunk_limits),
            "labels": self.labels.to_dict(),
            "config": self.config,
        }
        return json.dumps(document, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Manifest:
        """What `to_json` gave, of this version or an earlier one.

        Raises:
            OutputError: of a later format, or no `_run.json` of this project.
        """
        try:
            document = json.loads(data)
            if document["format"] not in range(1, OUTPUT_FORMAT + 1):
                raise OutputError(
                    where=where,
                    found=f"output format {document['format']}",
                    expected=f"format {OUTPUT_FORMAT} or an earlier one",
                    remedy="Use the version of fcnseg that wrote it, or a new OUTPUT.",
                )
            return cls(
                input=document["input"],
                chunk_limits=ChunkLimits(**document["chunk_limits"]),
                labels=LabelSet.from_dict(document["labels"], where),
                parts=document["parts"],
                layout=document["layout"],
                config=document.get("config"),
                format=document["format"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise OutputError(
                where=where,
                found=f"unreadable ({error})",
                expected="the _run.json of a run",
                remedy="Restore it, or use a new OUTPUT.",
            ) from error


def make_manifest(
    input_url: str, weights: WeightsFile, labels: LabelSet, precision: str, limits: ChunkLimits
) -> Manifest:
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
    return Manifest(input_url, limits, labels, json.loads(json.dumps(parts)))


def saved_config(config: RunConfig) -> dict[str, Any]:
    """The configuration of a run as `_run.json` keeps it: `portable`, without the selection."""
    tree = portable(config)
    # Not what the output is about, but what one run was asked to do.
    for name in ("limit_shards", "include", "exclude", "since"):
        tree["input"].pop(name, None)
    return tree


PLACES = (
    *(("input", name) for name in ("url", "labels", "label_set")),
    *(("val", name) for name in ("url", "labels", "label_set")),
    ("model", "weights"),
    ("model", "init"),
    ("output", "url"),
    ("drift", "reference"),
    ("monitoring", "metrics_file"),
)
"""Fields of a run and of a training that hold a path or URL."""


def portable(config: Section) -> dict[str, Any]:
    """A configuration as it holds from any working directory: what differs from the defaults.

    Local paths are made absolute. Passwords in URLs are left out; other credentials are never part
    of a configuration.

    Args:
        config: of a run, or of a training.
    """
    tree: dict[str, Any] = config.model_dump(mode="json", exclude_defaults=True)
    for section, name in PLACES:
        value = (tree.get(section) or {}).get(name)
        if value is not None:
            tree[section][name] = anywhere(value)
    for section in ("input", "val", "output"):
        store = (tree.get(section) or {}).get("store", {})
        if store.get("ca_bundle"):
            store["ca_bundle"] = anywhere(store["ca_bundle"])
    return tree


def anywhere(value: str) -> str:
    """A name, path or URL as it holds from any working directory, without a password."""
    found = absolute(value)
    return masked(re.sub(r"(://[^/@:]*):[^/@]*@", r"\1@", found)) if "://" in found else found


def absolute(value: str) -> str:
    """The same, with all that a URL holds."""
    is_name = value == DEMO_WEIGHTS or value in LABEL_SETS
    if is_name or get_protocol(value) not in ("file", "local"):
        return value
    return os.path.abspath(os.path.expanduser(value.split("://")[-1]))


def read_manifest(output: Store) -> Manifest:
    """The identity of an existing output.

    Raises:
        OutputError: there is none, or it is of a later format.
    """
    try:
        return Manifest.from_json(output.read(PATH), output.location(PATH))
    except MissingError as error:
        raise OutputError(
            where=output.url,
            found="no _run.json",
            expected="the OUTPUT of a run",
            remedy="Check the address.",
        ) from error


def claim(output: Store, mine: Manifest) -> None:
    """Make an output ours, or make sure it is; keep the configuration of the latest run.

    Raises:
        OutputError: it belongs to another input, other weights or other chunk limits.
    """
    check(output, mine)
    if output.create(PATH, mine.to_json()):
        return
    theirs = read_manifest(output)
    if _difference(theirs, mine) is not None:  # but nothing is committed: see `check`
        for info in output.objects("_index"):
            output.delete(info.path)
        output.write(PATH, mine.to_json())
    elif theirs.config != mine.config:
        output.write(PATH, replace(theirs, config=mine.config).to_json())


def check(output: Store, mine: Manifest) -> None:
    """Refuse an output that belongs to something else. Writes nothing.

    One that holds no commit belongs to nobody: a run that failed before its first commit, because
    of a precision that the device has not, is followed by one that differs.

    Raises:
        OutputError: naming the first difference.
    """
    try:
        theirs = read_manifest(output)
    except OutputError as error:
        if not isinstance(error.__cause__, MissingError):
            raise
        if output.objects("_commits"):
            raise OutputError(
                where=output.url,
                found="commits, but no _run.json",
                expected="both: only it says which input and weights they belong to",
                remedy="Restore it, or use a new OUTPUT.",
            ) from error
        return
    difference = _difference(theirs, mine)
    if difference is not None and next(output.listing("_commits"), None) is not None:
        _refuse(output, *difference)


def _difference(theirs: Manifest, mine: Manifest) -> tuple[str, str] | None:
    """(what an output is, what a run is) where the two do not fit, or None."""
    if theirs.format != mine.format:
        return (
            f"it is of output format {theirs.format}",
            f"this version writes format {mine.format}",
        )
    if theirs.input != mine.input:
        return f"it holds the labels of {theirs.input}", f"this run labels {mine.input}"
    unlike = first_difference(theirs.parts, mine.parts)
    if unlike is not None:
        return unlike.describe("it was made with {}", "this run has {}")
    if None not in (theirs.layout, mine.layout) and theirs.layout != mine.layout:
        return f"its input was laid out as {theirs.layout}", f"now it is {mine.layout}"
    then, now = (
        {"limits.chunk_images": of.images, "limits.chunk_bytes": of.bytes}
        for of in (theirs.chunk_limits, mine.chunk_limits)
    )
    unlike = first_difference(then, now)
    return None if unlike is None else unlike.describe("it was made with {}", "this run has {}")


def _refuse(output: Store, found: str, expected: str) -> None:
    raise OutputError(
        where=output.url,
        found=found,
        expected=expected,
        remedy="Nothing was changed. Use a new OUTPUT, or run with what it was made with.",
    )
