"""One configuration for every way in: file, then `--set`, then flags; Prefect's form shows it too.

The docstring under a field is its help text everywhere. Credentials are never part of it: they come
from the environment or from the provider's own chain.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.errors import ConfigError
from pipeline.formats import read_yaml
from pipeline.redact import masked
from pipeline.storage.options import StoreOptions

MaskFormatName = Literal["parquet", "png", "tar", "confidence"]

Config = TypeVar("Config", bound=BaseModel)


class Section(BaseModel):
    """Part of a configuration: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class InputConfig(Section):
    """Where the images are and what their labels mean."""

    url: str
    """WebDataset tars, Parquet files with an image column, or a folder of images; any URL."""
    labels: str | None = None
    """Folder of label PNGs parallel to a folder of images."""
    label_set: str | None = None
    """Name or YAML file of the label set; by default the one the weights were trained on."""
    layout: Literal["voc"] | None = None
    """voc: INPUT is a PASCAL VOC development kit; its images are those of the split."""
    split: str | None = None
    """With a layout: name of a list in ImageSets/Segmentation, or path or URL of a file of ids."""
    shard_size: int = Field(default=256, ge=1)
    """Images per virtual shard when the input is a folder of loose images."""
    limit_shards: int | None = Field(default=None, ge=1)
    """Label at most this many pending shards, then finish."""
    include: tuple[str, ...] = ()
    """Globs of shards (of a folder: of images) to look at; none means all."""
    exclude: tuple[str, ...] = ()
    """Globs of shards (of a folder: of images) not to look at; they win over include."""
    since: str | None = None
    """Look only at what changed since an age (36h, 7d) or a date (2026-11-01), UTC."""
    time_zone: str = "UTC"
    """Of {date} and {yesterday} in the URLs of a scheduled run, for example Europe/Berlin."""
    store: StoreOptions = StoreOptions()
    """How the images, their labels, the weights and the label set are reached."""


class ModelConfig(Section):
    """Which network, and how exactly it computes."""

    weights: str | None = None
    """Weights file (.safetensors; any fsspec URL), or `demo` for the shipped ones."""
    precision: Literal["fp32", "tf32", "bf16", "fp16", "int8"] = "fp32"
    """Of the convolutions; part of the fingerprint because it changes masks."""


class OutputConfig(Section):
    """Where the results go, and in which forms."""

    url: str
    """Prefix that belongs to this input and these weights; any fsspec URL."""
    masks: tuple[MaskFormatName, ...] = Field(default=("parquet",), min_length=1)
    """Forms of the masks: parquet, png, tar (WebDataset); and confidence: a grey PNG per image."""
    store: StoreOptions = StoreOptions()
    """How the results are reached."""

    @field_validator("masks")
    @classmethod
    def _has_masks(cls, masks: tuple[MaskFormatName, ...]) -> tuple[MaskFormatName, ...]:
        if set(masks) == {"confidence"}:
            raise ValueError("a form of the masks beside the maps: parquet, png or tar")
        return masks


class ComputeConfig(Section):
    """Who does the work. Only device, threads_per_worker and plain_forward change a result."""

    executor: Literal["auto", "local", "ray"] = "auto"
    """auto: ray when an address is known or the process is a Ray job, else local."""
    ray_address: str | None = None
    """Ray cluster to run on; None with executor ray starts an embedded one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where a worker sees a device."""
    workers: int | None = Field(default=None, ge=1)
    """Copies of the network; default: one per GPU, else cores / threads_per_worker."""
    min_workers: int | None = Field(default=None, ge=1)
    """On Ray: ask for so many at the start, though there is room for fewer (autoscaling)."""
    max_workers: int | None = Field(default=None, ge=1)
    """On Ray: the pool grows up to here when nodes join; default: GPUs no bound, CPUs no growth."""
    threads_per_worker: int = Field(default=2, ge=1)
    """CPU threads of one copy; the same number gives the same bytes."""
    gpus_per_worker: float | None = Field(default=None, gt=0)
    """Ray's GPUs of one copy; default 1 where it computes on GPUs. With device cpu: a place."""
    worker_labels: tuple[str, ...] = ()
    """On Ray: labels of the nodes for copies of the network, like ray.io/accelerator-type=L4."""
    io_labels: tuple[str, ...] = ()
    """On Ray: labels of the nodes for reading and writing, like ray.io/market-type=on-demand."""
    batch_size: int | None = Field(default=None, ge=1)
    """Images of one shape per forward pass; default 1 on a CPU, 8 on a GPU."""
    decoders: int | None = Field(default=None, ge=0)
    """Threads of one copy that decode ahead of the network; default 0 on a CPU, up to 8 else."""
    plain_forward: bool = False
    """Compute the whole padded canvas of every picture: slower, equal but for rounding."""

    @field_validator("worker_labels", "io_labels")
    @classmethod
    def _have_values(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if not all("=" in label for label in labels):
            raise ValueError("key=value each, as in Ray's label selectors (a, !a, in(a,b), !in(a))")
        return labels

    @model_validator(mode="after")
    def _has_one_size(self) -> ComputeConfig:
        least, most = self.min_workers, self.max_workers
        if self.workers is not None and (least or most):
            raise ValueError("workers, or min_workers and max_workers: not both")
        if least and most and least > most:
            raise ValueError("min_workers that is no larger than max_workers")
        return self


class LimitsConfig(Section):
    """How much may go wrong, and how large a piece of work may be."""

    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Quarantined share of all images above which the run exits 4 (never for fewer than 3)."""
    max_bad_fraction_per_shard: float = Field(default=0.05, ge=0, le=1)
    """Quarantined share above which a shard is not committed (never for fewer than 3)."""
    chunk_images: int = Field(default=512, ge=1)
    """A shard with more images is split."""
    chunk_bytes: int = Field(default=64 * 2**20, ge=1)
    """A shard with more encoded bytes is split."""
    max_image_pixels: int = Field(default=100_000_000, ge=1)
    """Larger pictures are quarantined before they are decoded."""
    stall_seconds: float = Field(default=600, gt=0)
    """A worker process without progress for so long is restarted, the picture tried alone."""
    memory: ByteSize | None = Field(default=None, ge=2**20)
    """Most memory of all worker processes on a machine, like 8GiB; default: nine tenths of it."""
    worker_memory: ByteSize | None = Field(default=None, ge=2**20)
    """Most memory of one worker process, like 8GiB; default: its share of limits.memory."""
    max_hours: float | None = Field(default=None, gt=0)
    """A Prefect flow stops the run after so long; the next one resumes. Default: never."""


class DriftConfig(Section):
    """What a run is compared with when it is done, and what a person is to look at."""

    window: int = Field(default=7, ge=0)
    """Runs before this one, on this output, that it is compared with; 0 compares nothing."""
    reference: str | None = None
    """OUTPUT of other runs to compare with instead, reached as output.store says."""
    moderate: float = Field(default=0.1, gt=0)
    """Population stability index from which a quantity is said to have moved."""
    major: float = Field(default=0.25, gt=0)
    """Population stability index from which a run counts as drifted."""
    min_images: int = Field(default=30, ge=1)
    """Fewer images, now or before, are not compared."""
    false_alarms: float = Field(default=0.01, gt=0, lt=1)
    """About this share of runs without drift may be taken for drifted by chance."""
    review_images: int = Field(default=16, ge=0, le=256)
    """Images of a run put into review/ for a person to look at, the worst; small pictures of as
    many are kept of every chunk."""


class MonitoringConfig(Section):
    """How a run is watched by machines. Nothing here changes a result."""

    log_format: Literal["text", "json"] = "text"
    """json: every line on stderr is an object with time, level, logger, message, and ids."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port at which the driver serves metrics to Prometheus while it runs; 0: none."""
    metrics_host: str = "127.0.0.1"
    """Address that it listens on; 0.0.0.0 lets other machines ask, and they need no password."""
    metrics_file: str | None = None
    """Local file of metrics, for node_exporter's textfile collector; its name ends in .prom."""
    metrics_name: str = "run"
    """Label `name` of every metric: tells apart what one Prometheus sees of several outputs."""

    @field_validator("metrics_file")
    @classmethod
    def _is_collected(cls, path: str | None) -> str | None:
        if path is not None and ("://" in path or not path.endswith(".prom")):
            raise ValueError("a local path that ends in .prom, or nobody collects it")
        return path


class RunConfig(Section):
    """A labelling run."""

    input: InputConfig
    output: OutputConfig
    model: ModelConfig = ModelConfig()
    compute: ComputeConfig = ComputeConfig()
    limits: LimitsConfig = LimitsConfig()
    drift: DriftConfig = DriftConfig()
    monitoring: MonitoringConfig = MonitoringConfig()

    def resolved_executor(self) -> Literal["local", "ray"]:
        """`local` unless the config, RAY_ADDRESS or a surrounding Ray job says otherwise."""
        if self.compute.executor != "auto":
            return self.compute.executor
        # RAY_JOB_CONFIG_JSON_ENV_VAR is what `ray job submit` sets for the driver it starts.
        hints = (self.ray_address(), os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"))
        return "ray" if any(hints) else "local"

    def ray_address(self) -> str | None:
        """The cluster to connect to, if one is named."""
        return self.compute.ray_address or os.environ.get("RAY_ADDRESS") or None


def load_config(
    file_text: str | None, sets: Iterable[str], flags: Mapping[str, Any], where: str = "--config"
) -> RunConfig:
    """The configuration from all its sources; later ones win.

    Args:
        file_text: YAML, or None.
        sets: "section.field=value" each; the value is read as YAML.
        flags: dotted name to value; None means "not given".
        where: the file's name, for errors.

    Raises:
        ConfigError: unknown key, missing key or impossible value.
    """
    return validate(merged(file_text, sets, flags, where))


def merged(
    file_text: str | None, sets: Iterable[str], flags: Mapping[str, Any], where: str = "--config"
) -> dict[str, Any]:
    """The nested mapping of a configuration from all its sources; see `load_config`.

    Raises:
        ConfigError: no YAML, or a `--set` without a section.
    """
    tree = parse_yaml(file_text, where) if file_text else {}
    for item in sets:
        name, separator, value = item.partition("=")
        if not separator or "." not in name:
            raise ConfigError(
                where=f"--set {item}",
                found="no section.field=value",
                expected="for example limits.chunk_images=64",
            )
        _put(tree, name.strip(), _parse_yaml_value(value, item))
    for name, value in flags.items():
        if value is not None:
            _put(tree, name, value)
    return tree


def validate(tree: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run, of a nested mapping.

    Raises:
        ConfigError: with the first problem, naming its field.
    """
    return validate_as(RunConfig, tree)


def validate_as(kind: type[Config], tree: Mapping[str, Any]) -> Config:
    """A configuration of some kind, of a nested mapping.

    Raises:
        ConfigError: with the first problem, naming its field.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = _field_names(kind, first["loc"][:-1])
            raise ConfigError(
                where=f"config {name}",
                found="an unknown key",
                expected=f"known here: {', '.join(known)}",
                remedy="Correct the spelling or remove it.",
            ) from None
        found = "nothing" if first["type"] == "missing" else masked(repr(first["input"]))
        expected = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise ConfigError(
            where=f"config {name}", found=found, expected=expected, remedy="Correct this value."
        ) from None


def _field_names(model: type[BaseModel], sections: Iterable[int | str]) -> list[str]:
    for name in sections:
        inner = model.model_fields[str(name)].annotation
        for choice in (inner, *get_args(inner)):  # a section that may be left out is a union
            if isinstance(choice, type) and issubclass(choice, BaseModel):
                model = choice
    return list(model.model_fields)


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """The sections of a YAML file.

    Raises:
        ConfigError: it is none.
    """
    try:
        tree = read_yaml(text) or {}
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise ConfigError(
            where=where, found=f"no YAML ({detail})", expected="a YAML file of sections"
        ) from error
    if not isinstance(tree, dict):
        raise ConfigError(
            where=where, found=f"a {type(tree).__name__}", expected="sections with fields, as YAML"
        )
    # A section whose fields are all commented out is null in YAML.
    return {name: section for name, section in tree.items() if section is not None}


def _parse_yaml_value(text: str, item: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            where=f"--set {item}", found="an unreadable value", expected="a YAML value"
        ) from error


def _put(tree: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        inner = tree.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                where=f"config {section}", found=repr(inner), expected="a section with fields"
            )
        tree = inner
    tree[last] = value
