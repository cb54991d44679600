"""From a configuration to things that exist: stores, weights, label set, identity, job.

`{date}` and `{yesterday}` in the URLs of a scheduled run: each night its own input and output.

Whoever schedules runs resolves them, once, from the moment that a run was scheduled for. That
moment stays the same however late the run starts and however often it is retried, so that a run
resumed after midnight goes on with its own night. Commands resolve nothing: a shell has `date`.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from pipeline.inputs.shard import ChunkLimits, Sources
from pipeline.manifest import Manifest, make_manifest, remembered
from pipeline.plan import PlanRequest
from pipeline.redact import masked
from pipeline.stages.spec import RunSpec
from pipeline.storage.options import StoreOptions
from pipeline.storage.store import Store, read_url

log = logging.getLogger("fcnseg")


@dataclass(frozen=True)
class Prepared:
    """A run whose every part has been found and checked, before anything is written."""

    config: RunConfig
    weights: WeightsFile
    identity: Manifest
    job: RunSpec
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
            where="--weights",
            found="nothing",
            expected="a weights file",
            remedy="For the shipped ones: --weights demo.",
        )
    if config.model.precision == "int8" and config.compute.plain_forward:
        raise ConfigError(
            where="--precision", found="int8 in the plain forward pass", expected="the fast one",
            remedy="Leave --plain-forward out.",
        )  # fmt: skip
    request = plan_request(config)
    weights = load_weights(config.model.weights, config.input.store)
    check_can_label(weights, config.model.precision)
    labels = resolve_labels(config.input.label_set, weights, config.input.store)
    images, output = request.images, request.output
    limits = ChunkLimits(config.limits.chunk_images, config.limits.chunk_bytes)
    mine = make_manifest(images.url, weights, labels, config.model.precision, limits)
    mine = replace(mine, config=remembered(config))
    job = RunSpec(
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
            where="--split" if layout is None else "--layout",
            found=f"{split or layout!r} alone",
            expected="a layout and the split of it that is meant",
            remedy="Name both: --layout voc --split val.",
        )
    if layout is not None and config.input.labels is not None:
        raise ConfigError(
            where="--labels", found="a folder beside --layout voc", expected="the labels of the development kit",
            remedy="Leave --labels out.",
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
            where=f"weights {masked(url)}",
            found="no such file",
            expected="a .safetensors file, or the word demo",
            remedy="Check the name.",
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
        weights.info.check_int8_ranges(weights.where)
    network = weights.info.architecture
    if network.input_channels != 3:
        raise WeightsError(
            where=weights.where,
            found=f"{network.variant} reads {network.input_channels} channels",
            expected="a network for RGB pictures, which is all that an input holds",
            remedy="Use fcn_core.predictor.Predictor on arrays of those channels (docs/networks.md).",
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
            where=weights.where,
            found=f"{own.num_classes} classes ({own.name})",
            expected=f"label set {labels.name!r} has {labels.num_classes}",
            remedy="Name the label set the weights were trained on, or other weights.",
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
            where=where,
            found=detail,
            expected="a YAML file with name, classes, ignore and palette",
            remedy="Check --label-set.",
        ) from error


def refuse_overlap(images: Store, output: Store) -> None:
    """Refuse an output inside its input, or the other way round.

    Raises:
        ConfigError: naming both.
    """
    if images.overlaps(output):
        raise ConfigError(
            where=output.url,
            found=f"OUTPUT and INPUT ({images.url}) lie inside one another",
            expected="two places apart: masks would become images of the next run",
            remedy="Choose another OUTPUT.",
        )


_WORD = re.compile(r"\{([^{}]*)\}")

_KNOWN = re.compile(r"(date|yesterday)(?::(.+))?", re.DOTALL)

_NIGHTS = 31
"""How far back an earlier output is looked for: a run every month is the rarest."""


def refuse_dates(config: RunConfig) -> None:
    """Refuse words that nobody resolves here: a folder named `{date}` is not what was meant.

    Raises:
        ConfigError: naming the URL.
    """
    for name, url in (("INPUT", config.input.url), ("OUTPUT", config.output.url)):
        if any(_KNOWN.fullmatch(word) for word in _WORD.findall(url)):
            raise ConfigError(
                where=f"{name} {url}",
                found="a date that only scheduled runs of Prefect fill in",
                expected="the place itself",
                remedy="Let the shell fill it in: $(date +%F).",
            )


def resolve_dates(config: RunConfig, moment: datetime) -> RunConfig:
    """The configuration with real dates in `input.url`, `input.labels` and `output.url`.

    `{date}` is the day of the moment in `input.time_zone` as 2026-11-23, `{yesterday}` the day
    before; `{date:%Y/%m/%d}` has another form, by the codes of `strftime`.

    Args:
        config: perhaps without any of these words; then it is returned as it is.
        moment: with a time zone.

    Raises:
        ConfigError: an unknown word, an unknown zone, or an input of its own every night whose
            output is always the same.
    """
    urls = {"input.url": config.input.url, "output.url": config.output.url}
    if config.input.labels is not None:
        urls["input.labels"] = config.input.labels
    if not any(_WORD.search(url) for url in urls.values()):
        return config
    local = moment.astimezone(_zone(config.input.time_zone))
    found = {name: _resolve(name, url, local) for name, url in urls.items()}
    changed = {name for name, url in urls.items() if found[name] != url}
    if "input.url" in changed and "output.url" not in changed:
        raise ConfigError(
            where=f"config output.url {config.output.url}",
            found=f"no {{date}}, but input.url is {config.input.url}",
            expected="an output for every input: one belongs to the other",
            remedy="Put the same {date} into output.url, or leave it out of input.url.",
        )
    images = {"url": found["input.url"], "labels": found.get("input.labels")}
    return config.model_copy(
        update={
            "input": config.input.model_copy(update=images),
            "output": config.output.model_copy(update={"url": found["output.url"]}),
        }
    )


def earlier_outputs(config: RunConfig, moment: datetime) -> Iterator[str]:
    """Outputs of the runs of the days before, latest first, where they are other ones.

    Args:
        config: not resolved yet.
        moment: of the present run.
    """
    here = resolve_dates(config, moment).output.url
    seen = {here}
    # Days of the wall: some have 23 or 25 hours.
    local = moment
    if here != config.output.url:
        local = moment.astimezone(_zone(config.input.time_zone))
    for days in range(1, _NIGHTS + 1):
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


def _resolve(name: str, url: str, local: datetime) -> str:
    def value(match: re.Match[str]) -> str:
        known = _KNOWN.fullmatch(match[1])
        if known is None:
            raise ConfigError(
                where=f"config {name}",
                found=f"{match[0]} in {url}",
                expected="{date}, {yesterday}, or a form such as {date:%Y/%m/%d}",
                remedy="Correct it.",
            )
        day = local - timedelta(days=1) if known[1] == "yesterday" else local
        return day.strftime(known[2] or "%Y-%m-%d")

    return _WORD.sub(value, url)
