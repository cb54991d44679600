"""`fcnseg export`: what a run left behind, in the forms that other tools read.

Masks go through unchanged, and so do the bytes of the images. One group of a shard after the other
is read; only names are kept of what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.concurrency import map_ordered
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.export.coco import Coco, Panoptic
from pipeline.export.cvat import Cvat
from pipeline.export.format import (
    ExportBatch,
    ExportFormat,
    ExportImage,
    ExportNames,
    ExportOptions,
    ExportSubject,
    flat,
)
from pipeline.export.hf import HuggingFace
from pipeline.export.label_studio import LabelStudio
from pipeline.export.target import ExportTarget, state_of
from pipeline.export.source import ImageSource, MaskGroup, MaskSource
from pipeline.export.voc import Voc
from pipeline.export.webdataset import WebDataset, without_dots
from pipeline.manifest import Manifest, read_manifest
from pipeline.output.markers import read_marker
from pipeline.redact import masked
from pipeline.resolve import resolve_plan
from pipeline.storage.store import Store, refuse_overlap

FORMATS: Mapping[str, Callable[[ExportSubject], ExportFormat]] = {
    "voc": Voc,
    "coco": Coco,
    "coco-panoptic": Panoptic,
    "webdataset": WebDataset,
    "hf": HuggingFace,
    "label-studio": LabelStudio,
    "cvat": Cvat,
}
"""What `--format` may be."""


EXPORT_FORMAT = 1
"""Version of what is written; another one is no continuation of an export."""


_SPELLING: Mapping[str, Callable[[str], str]] = {"voc": flat, "webdataset": without_dots}

_OWN_SHARDS = ("webdataset", "hf")
"""Forms that keep images by shard, so that keys need to differ in a shard only."""


_WORKERS = 2
"""Pieces that are written at once; as many wait. A group may be 64 MiB of images."""


@dataclass(frozen=True)
class Exported:
    """What an export holds, and what it does not.

    Attributes:
        images, shards: what it holds.
        pending: shards of the input that are not labelled (yet); None where nobody knows.
        changed: shards that are left out because their input changed since it was labelled.
        quarantined: images that could not be labelled, of the shards that it holds.
        turned: images whose stored size is not that of their mask, because EXIF turns them.
        again: whether it had been finished before, and nothing was done now.
    """

    images: int
    shards: int
    pending: int | None
    changed: int
    quarantined: int
    turned: int
    again: bool = False

    @property
    def exit_code(self) -> int:
        """0 for everything that the input holds, 3 where something is left out."""
        return 3 if self.pending or self.changed or self.quarantined else 0


@dataclass(frozen=True)
class Exporting:
    """How far an export is."""

    shards: int
    images: int


def export(
    output: Store,
    dest: Store,
    options: ExportOptions,
    config: RunConfig,
    on_progress: Callable[[Exporting], None] | None = None,
) -> Exported:
    """Write what an output holds into DEST.

    The same call again finishes an export that was interrupted, and does nothing for one that was
    finished, as long as no shard was labelled in between.

    Args:
        output: of a run; it may be going on.
        dest: an empty place.
        options: which form, what goes along, and under which names.
        config: of the output's latest run: how its input is reached.
        on_progress: called after every group.

    Raises:
        ConfigError: no such form or class, places that overlap, or two images of one name.
        OutputError: no output of a run, or DEST holds something else.
        InputError, ShardError: the images are not there any more as they were labelled.
        VerifyError: a mask is not what its commit says.
        MissingPackageError: the form needs a package of the extra `coco`.
        StoreError: a store fails.
    """
    identity = read_manifest(output)
    _check(options, identity)
    refuse_overlap("DEST", dest, "OUTPUT", output)
    source = MaskSource(output, identity, options.image_suffix)
    if options.images:
        plan = resolve_plan(config)
        refuse_overlap("DEST", dest, "INPUT", plan.images)
        source = ImageSource(output, identity, plan)
    target = ExportTarget(dest, _wanted(output, identity, options))
    with ExitStack() as files:
        subject = ExportSubject(target, identity.labels, options, _about(identity), files)
        writer = FORMATS[options.form](subject)
        earlier = target.claim()
        if earlier is not None:
            return Exported(**{**earlier, "again": True})
        result = _write(source, writer, _names(options, identity), on_progress)
    if result.pending is None:
        result = replace(result, pending=_pending_by_marker(output, result.shards))
    target.finish(asdict(result))
    return result


def _write(
    source: MaskSource,
    writer: ExportFormat,
    names: ExportNames,
    on_progress: Callable[[Exporting], None] | None,
) -> Exported:
    def write(batch: ExportBatch) -> tuple[ExportBatch, int, Any]:
        turned = sum(image.is_turned() for image in batch.images)
        written = writer.write(batch)
        return replace(batch, images=()), turned, (len(batch.images), written)

    shards = images = turned = 0
    batches = _batches(source.groups(), names, source.suffix)
    for batch, found, (count, written) in map_ordered(write, batches, _WORKERS):
        writer.add(written)
        shards, images, turned = batch.shards, images + count, turned + found
        if on_progress is not None:
            on_progress(Exporting(shards, images))
    writer.finish()
    left = source.left_out
    return Exported(images, shards, left.pending, left.changed, left.quarantined, turned)


def _batches(groups: Iterator[MaskGroup], names: ExportNames, suffix: str) -> Iterator[ExportBatch]:
    number, shards, last = 1, 0, None
    for index, group in enumerate(groups):
        shards += group.shard != last
        last = group.shard
        images = tuple(
            ExportImage(
                number + place, names.name(group.shard, item.key), group.shard, item, suffix
            )
            for place, item in enumerate(group.images)
        )
        number += len(images)
        yield ExportBatch(index, group.name, images, shards)


def _check(options: ExportOptions, identity: Manifest) -> None:
    if options.form not in FORMATS:
        raise ConfigError(
            where="--format",
            found=f"{options.form!r}",
            expected=f"one of {', '.join(FORMATS)}",
            remedy="Correct the name.",
        )
    if options.names not in ("auto", "key", "shard"):
        raise ConfigError(
            where="--names",
            found=f"{options.names!r}",
            expected="auto, key or shard",
            remedy="Choose one.",
        )
    unknown = [name for name in options.without if name not in identity.labels.classes]
    if unknown:
        known = ", ".join(identity.labels.classes)
        raise ConfigError(
            where="--without",
            found=f"{unknown[0]!r}",
            expected=f"a class: {known}",
            remedy="Correct the name.",
        )
    if options.without and options.form in ("voc", *_OWN_SHARDS):
        raise ConfigError(
            where="--without",
            found=f"a class beside --format {options.form}",
            expected="whole masks, as the run wrote them",
            remedy="Leave --without out.",
        )


def _names(options: ExportOptions, identity: Manifest) -> ExportNames:
    spell = _SPELLING.get(options.form, str)
    if options.form in _OWN_SHARDS:
        return ExportNames("own", spell)
    is_folder = (identity.layout or "").startswith("folder")
    return ExportNames(
        {"auto": "key" if is_folder else "shard"}.get(options.names, options.names), spell
    )


def _wanted(output: Store, identity: Manifest, options: ExportOptions) -> dict[str, Any]:
    return {
        "export": EXPORT_FORMAT,
        "output": masked(output.url),
        "fingerprint": identity.fingerprint,
        "commits": state_of(output),
        "choices": asdict(options),
    }


def _about(identity: Manifest) -> dict[str, Any]:
    return {
        "input": masked(identity.input),
        "fingerprint": identity.fingerprint,
        "variant": identity.parts.get("variant"),
        "weights_sha256": identity.parts.get("weights_sha256"),
    }


def _pending_by_marker(output: Store, shards: int) -> int | None:
    """Of a run that has ended, how many shards of its input it left undone; else nobody knows."""
    marker, document = read_marker(output)
    return None if marker is None else max(0, int(document["shards"]) - shards)
