"""`fcnseg export`: write the output of a run in the formats of other tools.

Masks and image bytes are copied unchanged. Groups of images are read one after another; of what is
written, only names stay in memory.
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
    flatten_name,
)
from pipeline.export.hf import HuggingFace
from pipeline.export.label_studio import LabelStudio
from pipeline.export.source import ImageSource, MaskGroup, MaskSource
from pipeline.export.target import ExportTarget, digest_commits
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
"""Values of `--format`, with the classes that write them."""


EXPORT_FORMAT = 1
"""Version of the written files. An export of another version is not continued."""


_SPELLING: Mapping[str, Callable[[str], str]] = {"voc": flatten_name, "webdataset": without_dots}

_OWN_SHARDS = ("webdataset", "hf")
"""Formats that keep the images of a shard together, so keys are unique per shard only."""


_WORKERS = 2
"""Batches written at the same time; as many more wait. One may hold 64 MiB of images."""


@dataclass(frozen=True)
class Exported:
    """Result of an export; its fields are keys of `_export.json` and `--json`.

    Attributes:
        images, shards: number of exported images and shards.
        pending: shards of the input that are not segmented (yet); None if unknown.
        changed: shards left out because their input changed since they were segmented.
        quarantined: images of exported shards that could not be segmented.
        turned: images whose stored size differs from their mask because of EXIF orientation.
        again: whether the export was finished before and nothing was written now.
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
        """0 if the whole input is exported, 3 if something is left out."""
        return 3 if self.pending or self.changed or self.quarantined else 0


@dataclass(frozen=True)
class Exporting:
    """Progress of an export: shards and images written so far."""

    shards: int
    images: int


def export(
    output: Store,
    dest: Store,
    options: ExportOptions,
    config: RunConfig,
    on_progress: Callable[[Exporting], None] | None = None,
) -> Exported:
    """Write the masks of an output, and its images, to `dest` in the format of another tool.

    The same call again finishes an interrupted export, and does nothing if the export was finished
    and no shard was segmented since.

    Args:
        output: output of a run, which may still be active.
        dest: empty folder, or a folder with the same export, interrupted.
        options: format, whether to copy images, and their names.
        config: configuration of the latest run of the output, to read its input.
        on_progress: callback after every batch.

    Raises:
        ConfigError: unknown format or class, overlapping folders, or two images of one name.
        OutputError: `output` is not the output of a run, or `dest` holds other files.
        InputError, ShardError: the images are missing or have changed since the run.
        VerifyError: the checksum of a mask differs from its commit.
        MissingPackageError: the format needs the extra `coco`.
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
    for batch, batch_turned, (count, written) in map_ordered(write, batches, _WORKERS):
        writer.add(written)
        shards, images, turned = batch.shards, images + count, turned + batch_turned
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
            expected=f"names of classes: {known}",
            remedy="Correct the name.",
        )
    if options.without and options.form in ("voc", *_OWN_SHARDS):
        raise ConfigError(
            where="--without",
            found=f"a class together with --format {options.form}",
            expected="coco, coco-panoptic, label-studio or cvat, which can leave classes out",
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
        "commits": digest_commits(output),
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
    """Return how many shards a finished run has not committed; None while the run is active."""
    marker, document = read_marker(output)
    return None if marker is None else max(0, int(document["shards"]) - shards)
