"""Resolve a configuration, once: from names and URLs to stores, weights, labels and a manifest.

`resolve_plan` is enough for planning; `resolve_run` adds what needs the weights. Both check
everything before anything is written. `resolve_dates` replaces dates in the URLs of scheduled runs.
Commands of the shell refuse such dates (`refuse_dates`), because a shell has `date`.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml

from fcn_core.errors import WeightsError
from fcn_core.labels import LABEL_SETS, LabelSet, label_set
from fcn_core.weights.weights_file import DEMO_WEIGHTS, WeightsFile, read_weights
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, MissingError
from pipeline.formats import read_yaml
from pipeline.inputs.selection import Selection, parse_since
from pipeline.inputs.shard import ChunkLimits
from pipeline.manifest import make_manifest, saved_config
from pipeline.redact import masked
from pipeline.stages.spec import PlanSpec, RunSpec
from pipeline.storage.options import StoreOptions
from pipeline.storage.store import Store, read_url, refuse_overlap

log = logging.getLogger("fcnseg")

_DAYS_BACK = 31
"""How many days back an earlier output is looked for. A monthly run is the rarest schedule."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_DATE = re.compile(r"(date|yesterday)(?::(.+))?", re.DOTALL)


def resolve_run(config: RunConfig) -> tuple[RunSpec, WeightsFile]:
    """Return the settings and the weights of a run. Writes nothing.

    Raises:
        ConfigError: no weights are named, options contradict each other, or INPUT and OUTPUT lie
            inside one another.
        WeightsError: the weights are missing or `check_can_segment` refuses them, or they have
            another number of classes than the label set.
        LabelSetError: the label set is unknown or not readable.
        StoreError: a store cannot be read.
    """
    if config.model.weights is None:
        raise ConfigError(
            where="--weights",
            found="nothing",
            expected="a weights file",
            remedy="For the weights that come with fcnseg: --weights demo.",
        )
    if config.model.precision == "int8" and config.compute.plain_forward:
        raise ConfigError(
            where="--precision",
            found="int8 with the plain forward pass",
            expected="int8 with the fast forward pass",
            remedy="Remove --plain-forward.",
        )
    plan = resolve_plan(config)
    weights = load_weights(config.model.weights, config.input.store)
    check_can_segment(weights, config.model.precision)
    labels = resolve_labels(config.input.label_set, weights, config.input.store)
    limits = ChunkLimits(config.limits.chunk_images, config.limits.chunk_bytes)
    manifest = make_manifest(plan.images.url, weights, labels, config.model.precision, limits)
    manifest = replace(manifest, config=saved_config(config))
    spec = RunSpec(
        **(vars(plan) | {"fingerprint": manifest.fingerprint}),
        labels=labels,
        manifest=manifest,
        masks=config.output.masks,
    )
    return spec, weights


def resolve_plan(config: RunConfig) -> PlanSpec:
    """Return the settings of a plan that accepts commits of any fingerprint. Needs no weights.

    Raises:
        ConfigError: INPUT and OUTPUT lie inside one another, options contradict each other, or
            `input.since` is not a time.
    """
    images = Store(config.input.url, config.input.store)
    output = Store(config.output.url, config.output.store)
    refuse_overlap("OUTPUT", output, "INPUT", images)
    _check_split(config)
    since = config.input.since
    moment = None if since is None else parse_since(since, time.time())
    labels = config.input.labels
    return PlanSpec(
        config=config,
        images=images,
        label_folder=Store(labels, config.input.store) if labels else None,
        output=output,
        selection=Selection(config.input.include, config.input.exclude, moment),
    )


def _check_split(config: RunConfig) -> None:
    layout, split = config.input.layout, config.input.split
    if (layout is None) != (split is None):
        raise ConfigError(
            where="--split" if layout is None else "--layout",
            found=f"{split or layout!r} alone",
            expected="a layout and one of its splits",
            remedy="Name both: --layout voc --split val.",
        )
    if layout is not None and config.input.labels is not None:
        raise ConfigError(
            where="--labels",
            found="a folder together with --layout voc",
            expected="the labels of the development kit",
            remedy="Remove --labels.",
        )


def load_weights(url: str, options: StoreOptions | None = None) -> WeightsFile:
    """Return a weights file from any URL, or the one that comes with fcnseg ("demo").

    Raises:
        WeightsError: the file does not exist, or is not a weights file of this project.
        StoreError: the file cannot be read.
    """
    if url == DEMO_WEIGHTS:
        return read_weights(url)
    try:
        data = read_url(url, options)
    except MissingError as error:
        raise WeightsError(
            where=f"weights {masked(url)}",
            found="no such file",
            expected="a .safetensors file, or the word demo",
            remedy="Check the name.",
        ) from error
    return WeightsFile(data, f"weights {masked(url)}")


def check_can_segment(weights: WeightsFile, precision: str) -> None:
    """Refuse weights that cannot segment image files.

    Args:
        weights: weights of any network.
        precision: arithmetic that the run will use.

    Raises:
        WeightsError: the network is not trained, reads depth or HHA channels, or has no ranges for
            int8.
    """
    weights.check_is_trained()
    if precision == "int8":
        weights.info.check_int8_ranges(weights.where)
    network = weights.info.architecture
    if network.input_channels != 3:
        raise WeightsError(
            where=weights.where,
            found=f"{network.variant} reads {network.input_channels} channels",
            expected="a network for RGB images: an input holds nothing else",
            remedy="Use fcn_core.Predictor on arrays of those channels (docs/networks.md).",
        )


def resolve_labels(
    name: str | None, weights: WeightsFile, options: StoreOptions | None = None
) -> LabelSet:
    """Return the label set of a run: the named one, else the one of the weights.

    Args:
        name: a built-in name, or the path or URL of a YAML file; None takes the weights' own.
        weights: weights that the label set must fit.
        options: how the store of the YAML file is reached.

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
            where=weights.where,
            found=f"{own.num_classes} classes ({own.name})",
            expected=f"label set {labels.name!r} has {labels.num_classes}",
            remedy="Name the label set the weights were trained on, or other weights.",
        )
    if labels.classes != own.classes:
        log.warning(
            "the weights call their classes %s, the label set %r calls them %s: "
            "classes are matched by position",
            ", ".join(own.classes),
            labels.name,
            ", ".join(labels.classes),
        )
    return labels


def read_label_set(url: str, options: StoreOptions | None = None) -> LabelSet:
    """Return the label set of a YAML file.

    Raises:
        LabelSetError: the URL is not a YAML file, or the document is not a label set.
        ConfigError: the file does not exist, or is not valid YAML.
    """
    if not url.lower().endswith((".yaml", ".yml", ".json")):
        return label_set(url)  # raises, listing the names
    where = f"label set {masked(url)}"
    try:
        return LabelSet.from_dict(read_yaml(read_url(url, options)), where)
    except (yaml.YAMLError, MissingError) as error:
        invalid = f"not valid YAML ({' '.join(str(error).split())})"
        raise ConfigError(
            where=where,
            found="no such file" if isinstance(error, MissingError) else invalid,
            expected="a YAML file with name, classes, ignore and palette",
            remedy="Check --label-set.",
        ) from error


def refuse_dates(config: RunConfig) -> None:
    """Refuse `{date}` and `{yesterday}` in URLs where no schedule resolves them.

    Raises:
        ConfigError: naming the URL.
    """
    for name, url in (("INPUT", config.input.url), ("OUTPUT", config.output.url)):
        if any(_DATE.fullmatch(word) for word in _BRACES.findall(url)):
            raise ConfigError(
                where=f"{name} {url}",
                found="a date that only scheduled runs of Prefect fill in",
                expected="the place itself",
                remedy="Let the shell fill it in: $(date +%F).",
            )


def resolve_dates(config: RunConfig, moment: datetime) -> RunConfig:
    """Return the configuration with real dates in `input.url`, `input.labels` and `output.url`.

    `{date}` is the day of the moment in `input.time_zone` as 2026-11-23, `{yesterday}` the day
    before; `{date:%Y/%m/%d}` has another form, by the codes of `strftime`. The moment is the one
    that a run was scheduled for. It stays the same however late the run starts and however often
    it is retried, so that a run that is resumed after midnight keeps its own day.

    Args:
        config: configuration; one without dates is returned as it is.
        moment: scheduled start, with a time zone.

    Raises:
        ConfigError: an unknown word or time zone, or another input every day while the output
            stays the same.
    """
    urls = {"input.url": config.input.url, "output.url": config.output.url}
    if config.input.labels is not None:
        urls["input.labels"] = config.input.labels
    if not any(_BRACES.search(url) for url in urls.values()):
        return config
    local = moment.astimezone(_zone(config.input.time_zone))
    resolved = {name: _fill_in(name, url, local) for name, url in urls.items()}
    changed = {name for name, url in urls.items() if resolved[name] != url}
    if "input.url" in changed and "output.url" not in changed:
        raise ConfigError(
            where=f"config output.url {config.output.url}",
            found=f"no {{date}}, but input.url is {config.input.url}",
            expected="an output for every input: one belongs to the other",
            remedy="Put the same {date} into output.url, or leave it out of input.url.",
        )
    images = {"url": resolved["input.url"], "labels": resolved.get("input.labels")}
    return config.model_copy(
        update={
            "input": config.input.model_copy(update=images),
            "output": config.output.model_copy(update={"url": resolved["output.url"]}),
        }
    )


def earlier_outputs(config: RunConfig, moment: datetime) -> Iterator[str]:
    """Yield the URLs of outputs of earlier days, latest first, as far as they differ.

    Args:
        config: configuration whose dates are not resolved yet.
        moment: scheduled start of the present run.
    """
    present = resolve_dates(config, moment).output.url
    seen = {present}
    # Calendar days of the time zone: some have 23 or 25 hours.
    local = moment
    if present != config.output.url:
        local = moment.astimezone(_zone(config.input.time_zone))
    for days in range(1, _DAYS_BACK + 1):
        url = resolve_dates(config, local - timedelta(days=days)).output.url
        if url not in seen:
            seen.add(url)
            yield url


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(
            where="config input.time_zone",
            found=repr(name),
            expected="the name of a time zone, for example Europe/Berlin or UTC",
            remedy="Correct it.",
        ) from None


def _fill_in(name: str, url: str, local: datetime) -> str:
    def value(match: re.Match[str]) -> str:
        known = _DATE.fullmatch(match[1])
        if known is None:
            raise ConfigError(
                where=f"config {name}",
                found=f"{match[0]} in {url}",
                expected="{date}, {yesterday}, or a form such as {date:%Y/%m/%d}",
                remedy="Correct it.",
            )
        day = local - timedelta(days=1) if known[1] == "yesterday" else local
        return day.strftime(known[2] or "%Y-%m-%d")

    return _BRACES.sub(value, url)
