"""The manifest of an output, `_run.json`: its input, its fingerprint, its chunk limits.

The fingerprint holds everything that changes a result, so that a run never mixes results of
different weights or settings in one output.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fcn_core.labels import LABEL_SETS, LabelSet
from fcn_core.weights.weights_file import DEMO_WEIGHTS, WeightsFile
from pipeline.config import RunConfig, Section
from pipeline.errors import MissingError, OutputError
from pipeline.inputs.shard import ChunkLimits
from pipeline.paths import COMMITS, MANIFEST, VIRTUAL_SHARDS
from pipeline.redact import masked
from pipeline.storage.store import Store, get_protocol
from pipeline.text import first_difference

OUTPUT_FORMAT = 2
"""Version of all files in an output: see the heading "Output format" in CHANGELOG.md.

It is a part of the fingerprint: a run never mixes versions in one output. Commands that only read
accept every version.
"""


@dataclass(frozen=True)
class Manifest:
    """What an output is made from.

    Attributes:
        input: URL of INPUT.
        chunk_limits: limits at which shards are split; they decide the names of the files.
        labels: the label set.
        parts: the values that the fingerprint is computed from.
        layout: layout of the input ("tar", "parquet", "folder", "folder images/"); None before the
            input is listed. A folder whose `labels/` was renamed would hold other images.
        config: configuration of the latest run, from `saved_config`, for `fcnseg failed --retry`;
            None in outputs older than this field. Not in the fingerprint, and never compared.
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
        """Return 16 hex digits that are equal if and only if the parts are equal."""
        canonical = json.dumps(self.parts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_json(self) -> bytes:
        """Return the content of `_run.json`."""
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
        """Return the manifest from the bytes of `to_json`, of this version or an earlier one.

        Raises:
            OutputError: a later format, or not a `_run.json` of this project.
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
    """Return the manifest of a run.

    Compute settings (executor, workers, device) are not in it: a run may resume on other machines.
    """
    parts = {
        "weights_sha256": weights.sha256,
        "variant": weights.info.variant,
        "preprocessing": weights.info.preprocessing.to_dict(),
        "labels": labels.to_dict(),
        "precision": precision,
        "output_format": OUTPUT_FORMAT,
    }
    # Through JSON, so that later comparisons see the same types as in the file.
    return Manifest(input_url, limits, labels, json.loads(json.dumps(parts)))


def saved_config(config: RunConfig) -> dict[str, Any]:
    """Return the configuration for `_run.json`: portable, without the selection of one run."""
    tree = portable(config)
    # These belong to one run, not to the output.
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
    """Return the fields that differ from the defaults, valid in any working directory.

    Local paths become absolute. Passwords in URLs are removed; a configuration never holds other
    credentials.

    Args:
        config: configuration of a run or of a training.
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
    """Return a name, path or URL that is valid in any working directory, without a password."""
    address = absolute(value)
    return masked(re.sub(r"(://[^/@:]*):[^/@]*@", r"\1@", address)) if "://" in address else address


def absolute(value: str) -> str:
    """Return a name, path or URL that is valid in any working directory, unchanged otherwise."""
    is_name = value == DEMO_WEIGHTS or value in LABEL_SETS
    if is_name or get_protocol(value) not in ("file", "local"):
        return value
    return os.path.abspath(os.path.expanduser(value.split("://")[-1]))


def read_manifest(output: Store) -> Manifest:
    """Return the manifest of an existing output.

    Raises:
        OutputError: the output has no manifest, or one of a later format.
    """
    try:
        return Manifest.from_json(output.read(MANIFEST), output.location(MANIFEST))
    except MissingError as error:
        raise OutputError(
            where=output.url,
            found="no _run.json",
            expected="the OUTPUT of a run",
            remedy="Check the address.",
        ) from error


def claim_output(output: Store, own: Manifest) -> None:
    """Write the manifest of a run into an output, or check that the existing one fits.

    The configuration of the latest run is kept in it.

    Raises:
        OutputError: the output belongs to another input, other weights or other chunk limits.
    """
    check_output(output, own)
    if output.create(MANIFEST, own.to_json()):
        return
    existing = read_manifest(output)
    if _difference(existing, own) is not None:  # but nothing is committed: see `check_output`
        for info in output.objects(VIRTUAL_SHARDS):
            output.delete(info.path)
        output.write(MANIFEST, own.to_json())
    elif existing.config != own.config:
        output.write(MANIFEST, replace(existing, config=own.config).to_json())


def check_output(output: Store, own: Manifest) -> None:
    """Refuse an output of another input, other weights or other settings. Writes nothing.

    An output without commits may be reused: for example after a run that failed before its first
    commit because the device lacks a precision.

    Raises:
        OutputError: naming the first difference.
    """
    try:
        existing = read_manifest(output)
    except OutputError as error:
        if not isinstance(error.__cause__, MissingError):
            raise
        if output.objects(COMMITS):
            raise OutputError(
                where=output.url,
                found="commits, but no _run.json",
                expected="both: only it says which input and weights they belong to",
                remedy="Restore it, or use a new OUTPUT.",
            ) from error
        return
    difference = _difference(existing, own)
    if difference is not None and next(output.listing(COMMITS), None) is not None:
        _refuse(output, *difference)


def _difference(existing: Manifest, own: Manifest) -> tuple[str, str] | None:
    """Return the first mismatch as (text about the output, text about the run), or None."""
    if existing.format != own.format:
        return (
            f"it is of output format {existing.format}",
            f"this version writes format {own.format}",
        )
    if existing.input != own.input:
        return f"it holds the masks of {existing.input}", f"this run segments {own.input}"
    unlike = first_difference(existing.parts, own.parts)
    if unlike is not None:
        return unlike.describe("it was made with {}", "this run has {}")
    if None not in (existing.layout, own.layout) and existing.layout != own.layout:
        return f"its input was laid out as {existing.layout}", f"now it is {own.layout}"
    then, now = (
        {"limits.chunk_images": of.images, "limits.chunk_bytes": of.bytes}
        for of in (existing.chunk_limits, own.chunk_limits)
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
