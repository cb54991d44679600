"""From a configuration to things that exist: stores, weights, label set, identity, job."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

import yaml

from fcn_core.checkpoint import DEMO_WEIGHTS, WeightsFile, read_weights
from fcn_core.errors import WeightsError
from fcn_core.labels import LABEL_SETS, LabelSet, label_set
from pipeline.bookkeeping.identity import Identity, identity, remembered
from pipeline.chunks import ChunkLimits, Sources
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, MissingError
from pipeline.inputs.selection import Selection, parse_since
from pipeline.job import Job
from pipeline.plan import PlanRequest
from pipeline.store import Store, StoreOptions, read_url
from pipeline.stores.options import masked
from pipeline.yaml_text import read_yaml

log = logging.getLogger("fcnseg")


@dataclass(frozen=True)
class Prepared:
    """A run whose every part has been found and checked, before anything is written."""

    config: RunConfig
    weights: WeightsFile
    identity: Identity
    job: Job
    request: PlanRequest


def prepare(config: RunConfig) -> Prepared:
    """Find everything a run needs. Reads weights and label set; writes nothing.

    Raises:
        WeightsError: no weights, such as `check_can_label` refuses, or of another number of classes
            than the label set.
        ConfigError, LabelSetError: the label set cannot be had, or flags contradict.
        StoreError: a store cannot be read.
    """
    if config.model.weights is None:
        raise ConfigError(
            "--weights", "nothing", "a weights file", "For the shipped ones: --weights demo."
        )
    if config.model.precision == "int8" and config.compute.plain_forward:
        raise ConfigError(
            "--precision", "int8 in the plain forward pass", "the fast one",
            "Leave --plain-forward out.",
        )  # fmt: skip
    request = plan_request(config)
    weights = load_weights(config.model.weights, config.input.store)
    check_can_label(weights, config.model.precision)
    labels = resolve_labels(config.input.label_set, weights, config.input.store)
    images, output = request.images, request.output
    limits = ChunkLimits(config.limits.chunk_images, config.limits.chunk_bytes)
    mine = identity(images.url, weights, labels, config.model.precision, limits)
    mine = replace(mine, config=remembered(config))
    job = Job(
        sources=Sources(images, request.labels or images),
        output=output,
        labels=labels,
        masks=config.output.masks,
        precision=config.model.precision,
        compute=config.compute,
        chunk_limits=limits,
        max_image_pixels=config.limits.max_image_pixels,
        limits=config.limits,
        monitoring=config.monitoring,
        review_images=config.drift.review_images,
    )
    return Prepared(config, weights, mine, job, replace(request, fingerprint=mine.fingerprint))


def plan_request(config: RunConfig) -> PlanRequest:
    """What to plan, of commits of any fingerprint. Needs no weights.

    Raises:
        ConfigError: INPUT and OUTPUT lie inside one another, or `since` is no time.
    """
    images = Store(config.input.url, config.input.store)
    output = Store(config.output.url, config.output.store)
    refuse_overlap(images, output)
    return PlanRequest(
        images=images,
        labels=Store(config.input.labels, config.input.store) if config.input.labels else None,
        output=output,
        fingerprint=None,
        masks=config.output.masks,
        shard_size=config.input.shard_size,
        limit_shards=config.input.limit_shards,
        selection=_selection(config),
        voc_split=_voc_split(config),
    )


def _voc_split(config: RunConfig) -> str | None:
    layout, split = config.input.layout, config.input.split
    if (layout is None) != (split is None):
        raise ConfigError(
            "--split" if layout is None else "--layout",
            f"{split or layout!r} alone",
            "a layout and the split of it that is meant",
            "Name both: --layout voc --split val.",
        )
    if layout is not None and config.input.labels is not None:
        raise ConfigError(
            "--labels", "a folder beside --layout voc", "the labels of the development kit",
            "Leave --labels out.",
        )  # fmt: skip
    return split


def _selection(config: RunConfig) -> Selection:
    since = config.input.since
    moment = None if since is None else parse_since(since, time.time())
    return Selection(config.input.include, config.input.exclude, moment)


def load_weights(url: str, options: StoreOptions | None = None) -> WeightsFile:
    """A weights file from anywhere, or the shipped one by the name "demo".

    Raises:
        WeightsError: there is none, or it is not of this project.
        StoreError: it cannot be read.
    """
    if url == DEMO_WEIGHTS:
        return read_weights(url)
    try:
        data = read_url(url, options)
    except MissingError as error:
        raise WeightsError(
            f"weights {masked(url)}",
            "no such file",
            "a .safetensors file, or the word demo",
            "Check the name.",
        ) from error
    return WeightsFile(data, f"weights {masked(url)}")


def check_can_label(weights: WeightsFile, precision: str) -> None:
    """Refuse weights that cannot label picture files, before anything is done.

    Args:
        weights: of any network.
        precision: that they are to be used in.

    Raises:
        WeightsError: they are not trained, read depth or HHA beside the colours, or have no ranges
            for int8.
    """
    weights.check_is_trained()
    if precision == "int8":
        weights.info.check_has_ranges(weights.where)
    network = weights.info.architecture
    if network.input_channels != 3:
        raise WeightsError(
            weights.where,
            f"{network.variant} reads {network.input_channels} channels",
            "a network for RGB pictures, which is all that an input holds",
            "Use fcn_core.predictor.Predictor on arrays of those channels (docs/networks.md).",
        )


def resolve_labels(
    name: str | None, weights: WeightsFile, options: StoreOptions | None = None
) -> LabelSet:
    """The label set in force: the named one, else the one of the weights.

    Raises:
        LabelSetError: neither a built-in name nor a readable file.
        WeightsError: the weights have another number of classes.
    """
    own = weights.info.labels
    if name is None:
        return own
    labels = label_set(name) if name in LABEL_SETS else read_label_set(name, options)
    if labels.num_classes != own.num_classes:
        raise WeightsError(
            weights.where,
            f"{own.num_classes} classes ({own.name})",
            f"label set {labels.name!r} has {labels.num_classes}",
            "Name the label set the weights were trained on, or other weights.",
        )
    if labels.classes != own.classes:
        log.warning(
            "the weights call their classes %s, the label set %r calls them %s: taken by position",
            ", ".join(own.classes),
            labels.name,
            ", ".join(labels.classes),
        )
    return labels


def read_label_set(url: str, options: StoreOptions | None = None) -> LabelSet:
    """The label set of a YAML file.

    Raises:
        LabelSetError: no built-in name and no such file, or not a label set.
    """
    if not url.lower().endswith((".yaml", ".yml", ".json")):
        return label_set(url)  # raises, listing the names
    where = f"label set {masked(url)}"
    try:
        return LabelSet.from_dict(read_yaml(read_url(url, options)), where)
    except (yaml.YAMLError, MissingError) as error:
        no_yaml = f"no YAML ({' '.join(str(error).split())})"
        detail = "no such file" if isinstance(error, MissingError) else no_yaml
        raise ConfigError(
            where,
            detail,
            "a YAML file with name, classes, ignore and palette",
            "Check --label-set.",
        ) from error


def refuse_overlap(images: Store, output: Store) -> None:
    """Refuse an output inside its input, or the other way round.

    Raises:
        ConfigError: naming both.
    """
    if images.overlaps(output):
        raise ConfigError(
            output.url,
            f"OUTPUT and INPUT ({images.url}) lie inside one another",
            "two places apart: masks would become images of the next run",
            "Choose another OUTPUT.",
        )
