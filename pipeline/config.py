"""Configuration of a run. Its sources, in increasing priority: a YAML file, `--set`, and flags.

The docstring under a field is its help text: in the documentation, and in the form of Prefect.
Credentials are never part of a configuration; see `pipeline.storage.options.StoreOptions`.
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
    """A section of a configuration: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class InputConfig(Section):
    """Where the images and labels are, and which of them a run reads."""

    url: str
    """Path or URL of WebDataset tars, of Parquet files with an image column, or of a folder of
    images."""
    labels: str | None = None
    """Folder of label PNGs with the same relative paths as the images of a folder."""
    label_set: str | None = None
    """Name or YAML file of the label set; by default the label set of the weights."""
    layout: Literal["voc"] | None = None
    """voc: INPUT is a PASCAL VOC development kit, and the run reads the images of the split."""
    split: str | None = None
    """Split of a layout: name of a list in ImageSets/Segmentation, or path or URL of a file of
    ids."""
    shard_size: int = Field(default=256, ge=1)
    """Images per virtual shard of a folder of images."""
    limit_shards: int | None = Field(default=None, ge=1)
    """Segment at most this many pending shards, then finish."""
    include: tuple[str, ...] = ()
    """Globs of shards to read (in a folder: of images); none means all."""
    exclude: tuple[str, ...] = ()
    """Globs of shards not to read (in a folder: of images); they have priority over include."""
    since: str | None = None
    """Read only what changed since an age (36h, 7d) or a date (2026-11-01, UTC)."""
    time_zone: str = "UTC"
    """Time zone of {date} and {yesterday} in the URLs of a scheduled run, like Europe/Berlin."""
    store: StoreOptions = StoreOptions()
    """Connection to the stores of the images, the labels, the weights and the label set."""


class ModelConfig(Section):
    """The network and its precision."""

    weights: str | None = None
    """Path or URL of a weights file (.safetensors), or `demo` for the included weights."""
    precision: Literal["fp32", "tf32", "bf16", "fp16", "int8"] = "fp32"
    """Precision of the convolutions; part of the fingerprint, because it changes masks."""


class OutputConfig(Section):
    """Where the results are written, and in which formats."""

    url: str
    """Path or URL of the folder for the results; it belongs to one input and one set of weights."""
    masks: tuple[MaskFormatName, ...] = Field(default=("parquet",), min_length=1)
    """Formats of the masks: parquet, png, tar (WebDataset); confidence adds a gray PNG of
    confidences per image."""
    store: StoreOptions = StoreOptions()
    """Connection to the store of the results."""

    @field_validator("masks")
    @classmethod
    def _has_masks(cls, masks: tuple[MaskFormatName, ...]) -> tuple[MaskFormatName, ...]:
        if set(masks) == {"confidence"}:
            raise ValueError("a format of the masks besides confidence: parquet, png or tar")
        return masks


class ComputeConfig(Section):
    """Where the work runs. Only device, threads_per_worker and plain_forward can change masks."""

    executor: Literal["auto", "local", "ray"] = "auto"
    """auto: ray if an address is known or the process is a Ray job, else local."""
    ray_address: str | None = None
    """Address of a Ray cluster; without one, the executor ray starts a local cluster."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda if a worker sees a CUDA device, else cpu."""
    workers: int | None = Field(default=None, ge=1)
    """Workers, each with a replica of the network; default: one per GPU, or cores divided by
    threads_per_worker."""
    min_workers: int | None = Field(default=None, ge=1)
    """On Ray: workers to request at the start, even if the cluster has room for fewer
    (autoscaling)."""
    max_workers: int | None = Field(default=None, ge=1)
    """On Ray: largest number of workers when nodes join; default: no limit on GPUs, no growth on
    CPUs."""
    threads_per_worker: int = Field(default=2, ge=1)
    """CPU threads of a worker; the same number gives the same bytes."""
    gpus_per_worker: float | None = Field(default=None, gt=0)
    """On Ray: GPUs that a worker reserves; default 1 if it computes on a GPU. With device cpu, it
    only reserves them."""
    worker_labels: tuple[str, ...] = ()
    """On Ray: labels of the nodes for workers, like ray.io/accelerator-type=L4."""
    io_labels: tuple[str, ...] = ()
    """On Ray: labels of the nodes for reading and writing, like ray.io/market-type=on-demand."""
    batch_size: int | None = Field(default=None, ge=1)
    """Images of one size per forward pass; default: 1 on a CPU, 8 on a GPU."""
    decoders: int | None = Field(default=None, ge=0)
    """Threads of a worker that decode images ahead of the network; default: 0 on a CPU, up to 8 on
    a GPU."""
    plain_forward: bool = False
    """Compute the whole padded canvas of every image: slower, and equal except for rounding."""

    @field_validator("worker_labels", "io_labels")
    @classmethod
    def _have_values(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if not all("=" in label for label in labels):
            raise ValueError(
                "key=value each, as in the label selectors of Ray (a, !a, in(a,b), !in(a))"
            )
        return labels

    @model_validator(mode="after")
    def _has_one_size(self) -> ComputeConfig:
        least, most = self.min_workers, self.max_workers
        if self.workers is not None and (least or most):
            raise ValueError("either workers, or min_workers and max_workers")
        if least and most and least > most:
            raise ValueError("min_workers that is not larger than max_workers")
        return self


class LimitsConfig(Section):
    """Limits for failures, chunk sizes, memory and time."""

    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Fraction of quarantined images above which the run ends with exit code 4; never for fewer
    than 3 images."""
    max_bad_fraction_per_shard: float = Field(default=0.05, ge=0, le=1)
    """Fraction of quarantined images above which a shard is not committed; never for fewer than 3
    images."""
    chunk_images: int = Field(default=512, ge=1)
    """Images per chunk; a shard with more images is split."""
    chunk_bytes: int = Field(default=64 * 2**20, ge=1)
    """Encoded bytes per chunk; a shard with more bytes is split."""
    max_image_pixels: int = Field(default=100_000_000, ge=1)
    """Pixels of an image; larger images are quarantined before they are decoded."""
    stall_seconds: float = Field(default=600, gt=0)
    """Seconds without progress after which a worker process is restarted, and its images are tried
    one by one."""
    memory: ByteSize | None = Field(default=None, ge=2**20)
    """Memory of all worker processes on a machine, like 8GiB; default: 90% of its memory."""
    worker_memory: ByteSize | None = Field(default=None, ge=2**20)
    """Memory of one worker process, like 8GiB; default: its share of limits.memory."""
    max_hours: float | None = Field(default=None, gt=0)
    """Hours after which a Prefect flow stops the run; the next flow run resumes it. Default: no
    limit."""


class DriftConfig(Section):
    """Comparison with earlier runs at the end of a run, and images for review."""

    window: int = Field(default=7, ge=0)
    """Number of earlier runs on this output to compare with; 0 compares nothing."""
    reference: str | None = None
    """OUTPUT of other runs to compare with instead; reached with the options of output.store."""
    moderate: float = Field(default=0.1, gt=0)
    """Population stability index from which a quantity counts as changed."""
    major: float = Field(default=0.25, gt=0)
    """Population stability index from which a run counts as drifted."""
    min_images: int = Field(default=30, ge=1)
    """Fewest images of a run that is compared, now or earlier."""
    false_alarms: float = Field(default=0.01, gt=0, lt=1)
    """Expected fraction of runs without drift that count as drifted by chance."""
    review_images: int = Field(default=16, ge=0, le=256)
    """Images of a run in its review table, the worst ones; as many previews are kept per chunk."""


class MonitoringConfig(Section):
    """Logs and metrics for machines. No field changes a result."""

    log_format: Literal["text", "json"] = "text"
    """json: every line on stderr is an object with time, level, logger, message and ids."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port on which the driver serves metrics for Prometheus during a run; 0: no server."""
    metrics_host: str = "127.0.0.1"
    """Address of the metrics server; 0.0.0.0 allows other machines, without a password."""
    metrics_file: str | None = None
    """Local file of metrics for the textfile collector of node_exporter; its name ends in .prom."""
    metrics_name: str = "run"
    """Label `name` of every metric, which distinguishes several outputs in one Prometheus."""

    @field_validator("metrics_file")
    @classmethod
    def _is_collected(cls, path: str | None) -> str | None:
        if path is not None and ("://" in path or not path.endswith(".prom")):
            raise ValueError("a local path that ends in .prom, as node_exporter requires")
        return path


class RunConfig(Section):
    """Configuration of a segmentation run."""

    input: InputConfig
    output: OutputConfig
    model: ModelConfig = ModelConfig()
    compute: ComputeConfig = ComputeConfig()
    limits: LimitsConfig = LimitsConfig()
    drift: DriftConfig = DriftConfig()
    monitoring: MonitoringConfig = MonitoringConfig()

    def resolved_executor(self) -> Literal["local", "ray"]:
        """Return the executor, with "auto" resolved by the Ray address and the environment."""
        if self.compute.executor != "auto":
            return self.compute.executor
        # `ray job submit` sets RAY_JOB_CONFIG_JSON_ENV_VAR for the driver that it starts.
        hints = (self.ray_address(), os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"))
        return "ray" if any(hints) else "local"

    def ray_address(self) -> str | None:
        """Return the address of the Ray cluster, from the configuration or RAY_ADDRESS, or None."""
        return self.compute.ray_address or os.environ.get("RAY_ADDRESS") or None


def load_config(
    file_text: str | None, sets: Iterable[str], flags: Mapping[str, Any], where: str = "--config"
) -> RunConfig:
    """Return the configuration of a run from all its sources; later ones have priority.

    Args:
        file_text: YAML text; None without a file.
        sets: items "section.field=value"; the value is YAML.
        flags: values by dotted name, "section.field"; None means "not given".
        where: name of the file, for messages.

    Raises:
        ConfigError: an unknown key, a missing key, or an impossible value.
    """
    return validate(merged(file_text, sets, flags, where))


def merged(
    file_text: str | None, sets: Iterable[str], flags: Mapping[str, Any], where: str = "--config"
) -> dict[str, Any]:
    """Return the configuration from all its sources as a nested mapping; see `load_config`.

    Raises:
        ConfigError: invalid YAML, or a `--set` that is not "section.field=value".
    """
    tree = parse_yaml(file_text, where) if file_text else {}
    for item in sets:
        name, separator, value = item.partition("=")
        if not separator or "." not in name:
            raise ConfigError(
                where=f"--set {item}",
                found="not section.field=value",
                expected="for example limits.chunk_images=64",
            )
        _put(tree, name.strip(), _parse_yaml_value(value, item))
    for name, value in flags.items():
        if value is not None:
            _put(tree, name, value)
    return tree


def validate(tree: Mapping[str, Any]) -> RunConfig:
    """Return the configuration of a run from a nested mapping.

    Raises:
        ConfigError: the first problem, with the name of its field.
    """
    return validate_as(RunConfig, tree)


def validate_as(kind: type[Config], tree: Mapping[str, Any]) -> Config:
    """Return a configuration of a given class from a nested mapping.

    Raises:
        ConfigError: the first problem, with the name of its field.
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
        if first["type"] == "missing":
            name = _first_required(kind, first["loc"])
            raise ConfigError(
                where=f"config {name}",
                found="no value",
                expected="this field is required",
                remedy=f"Set it in the configuration, or with --set {name}=VALUE.",
            ) from None
        found = masked(repr(first["input"]))
        expected = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise ConfigError(
            where=f"config {name}", found=found, expected=expected, remedy="Correct this value."
        ) from None


def _field_names(model: type[BaseModel], sections: Iterable[int | str]) -> list[str]:
    for name in sections:
        model = _section(model, name) or model
    return list(model.model_fields)


def _section(model: type[BaseModel], name: int | str) -> type[BaseModel] | None:
    """Return the class of a section, None for a field with a value."""
    annotation = model.model_fields[str(name)].annotation
    for choice in (annotation, *get_args(annotation)):  # an optional section is a union with None
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def _first_required(model: type[BaseModel], missing: tuple[int | str, ...]) -> str:
    """Return the dotted name of a missing field; of a missing section, its first required field."""
    names = [str(name) for name in missing]
    section: type[BaseModel] | None = model
    for name in names:
        section = _section(section, name) if section else None
    while section is not None:
        name = next(name for name, field in section.model_fields.items() if field.is_required())
        names.append(name)
        section = _section(section, name)
    return ".".join(names)


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """Return the sections of a YAML configuration.

    Args:
        text: YAML text.
        where: name of the file, for messages.

    Raises:
        ConfigError: invalid YAML, or not a mapping of sections.
    """
    try:
        tree = read_yaml(text) or {}
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise ConfigError(
            where=where, found=f"not valid YAML ({detail})", expected="a YAML file of sections"
        ) from error
    if not isinstance(tree, dict):
        raise ConfigError(
            where=where, found=f"a {type(tree).__name__}", expected="sections with fields, as YAML"
        )
    # A section with all fields commented out is null in YAML.
    return {name: section for name, section in tree.items() if section is not None}


def _parse_yaml_value(text: str, item: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            where=f"--set {item}", found="an invalid value", expected="a YAML value"
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
