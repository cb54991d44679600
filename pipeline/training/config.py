"""The configuration of a training: sections shared with a run, and sections of its own.

The docstring under a field is its help text in the CLI and the docs. A field that the recipe
decides is None by default; a value overrides the recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

from pydantic import Field, PositiveFloat, field_validator

from fcn_core.networks.architecture import Upsampling, Variant
from fcn_core.preprocessing import PREPROCESSINGS
from fcn_core.training.recipes import RECIPES, Recipe
from pipeline.config import InputConfig, LimitsConfig, Section, merged, validate_as
from pipeline.errors import ConfigError
from pipeline.storage.options import StoreOptions

RecipeName = Literal["heavy", "accum", "online", "modern"]

TrainStage = Literal["32s", "16s", "8s", "8s-atonce"]

SCRATCH = "scratch"


class TrainOutputConfig(Section):
    """Destination of the weights."""

    url: str
    """Directory used only by this training; any fsspec URL."""
    store: StoreOptions = StoreOptions()
    """Options of the store that holds the directory."""


class NetworkConfig(Section):
    """The network and its initial weights."""

    variant: Variant = "fcn8s"
    """Network variant; with train.stages it must be the variant of the last stage."""
    width: float = Field(default=1.0, gt=0)
    """Factor of the channels of VGG-16: 1.0 as published, 0.125 for a slim network."""
    upsampling: Upsampling = "fixed"
    """fixed: bilinear, as in the authors' code; learned: initialized as bilinear, then trained."""
    init: str = SCRATCH
    """Initial weights (.safetensors; any URL), or scratch."""
    preprocessing: str | None = None
    """Name of the preprocessing (docs/training.md); default: from init, otherwise centred."""

    @field_validator("preprocessing")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name not in (None, "centred", *PREPROCESSINGS):
            raise ValueError(f"one of centred, {', '.join(PREPROCESSINGS)}")
        return name


class TrainingConfig(Section):
    """Settings of the training; unset values come from the recipe."""

    recipe: RecipeName = "modern"
    """heavy, accum, online (the authors'), or modern (from scratch)."""
    stages: tuple[TrainStage, ...] = ()
    """Networks trained in sequence, each from the weights of the one before: 32s,16s,8s."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of each stage."""
    seed: int = Field(default=0, ge=0)
    """Seed of initial weights, sample order, crops, jitter and dropout."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the forward and backward pass; weights and loss are always fp32."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Learning rate of weights after the warm-up, in every stage."""
    batch_size: int | None = Field(default=None, ge=1)
    """Images per step, over all workers."""
    crop: int | None = Field(default=None, ge=0)
    """Side length of the crops, px; 0: whole images."""
    scale: tuple[PositiveFloat, PositiveFloat] | None = None
    """Smallest and largest random scale factor before cropping."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout probability after fc6 and fc7."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Weight decay of weights; biases have none."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of rising learning rate; at most a tenth of all steps."""
    shuffle_samples: int = Field(default=1024, ge=1)
    """Samples shuffled together; memory holds about twice this number, encoded."""
    check_labels: bool = True
    """Whether every label is checked before the first step."""
    checkpoint_every: int = Field(default=1000, ge=1)
    """Steps between two checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of checkpoints to keep, the newest ones."""
    eval_every: int = Field(default=1000, ge=1)
    """Steps between two validations on VAL."""
    eval_images: int | None = Field(default=None, ge=1)
    """Number of VAL images to score, the first ones; default: all."""
    overlays: int = Field(default=4, ge=0)
    """Images of VAL drawn with their masks at each validation."""
    log_every: int = Field(default=20, ge=1)
    """Steps per line of metrics.jsonl; the line holds their mean loss."""

    @field_validator("scale")
    @classmethod
    def _rises(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and scale[0] > scale[1]:
            raise ValueError("the smaller factor first, like [0.75, 1.5]")
        return scale


class TrainComputeConfig(Section):
    """Workers, device and threads; these change results only by the rounding of sums."""

    workers: int = Field(default=1, ge=1)
    """Processes that share every batch (Ray Train); 1 without ray_address: this process."""
    ray_address: str | None = None
    """Address of the Ray cluster; unset with several workers: start an embedded Ray."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda if a worker has a GPU, otherwise cpu."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads per worker; equal numbers give equal bytes. Default: chosen by torch."""
    loaders: int = Field(default=2, ge=1)
    """Threads per worker that decode and augment."""


class TrainConfig(Section):
    """The configuration of one training."""

    input: InputConfig
    val: InputConfig | None = None
    """Labeled images for validation; they choose the best weights and are never trained on."""
    output: TrainOutputConfig
    model: NetworkConfig = NetworkConfig()
    train: TrainingConfig = TrainingConfig()
    compute: TrainComputeConfig = TrainComputeConfig()
    limits: LimitsConfig = LimitsConfig()

    @field_validator("val", mode="before")
    @classmethod
    def _none_of_an_empty_address(cls, value: Any) -> Any:
        """Read an empty URL as None: an unset variable of a deployment is an empty string."""
        is_empty = isinstance(value, Mapping) and value.get("url") == ""
        return None if is_empty else value

    def ray_address(self) -> str | None:
        """Return the address of the Ray cluster, or None."""
        return self.compute.ray_address or None

    def variants(self) -> tuple[Variant, ...]:
        """Return the network variant of each stage."""
        if not self.train.stages:
            return (self.model.variant,)
        known = {variant.removeprefix("fcn"): variant for variant in get_args(Variant)}
        return tuple(known[stage] for stage in self.train.stages)

    def recipe(self) -> Recipe:
        """Return the recipe with the overrides of this configuration."""
        recipe, own = RECIPES[self.train.recipe], self.train
        names = ("batch_size", "dropout", "weight_decay", "warmup_steps", "max_steps")
        changes = {name: value for name in names if (value := getattr(own, name)) is not None}
        if own.learning_rate is not None:
            changes |= {"learning_rate": own.learning_rate, "stage_rates": {}}
            changes["rate_by_width"] = False
        view = recipe.augmentation
        if own.crop is not None:
            view = replace(view, crop=own.crop or None)
        view = replace(view, scale=(own.scale or view.scale) if view.crop else (1.0, 1.0))
        changes["augmentation"] = view
        return replace(recipe, **changes)


def load_train_config(
    file_text: str | None, sets: Iterable[str], flags: Mapping[str, Any], where: str = "--config"
) -> TrainConfig:
    """Merge a YAML file, `--set` values and flags into a configuration; later sources win.

    Args:
        file_text: text of the YAML file, or None.
        sets: values "section.field=value"; the value is parsed as YAML.
        flags: values by dotted name; None means "not given".
        where: name of the file, for errors.

    Raises:
        ConfigError: unknown or missing key, value out of range, or contradicting values.
    """
    config = validate_as(TrainConfig, merged(file_text, sets, flags, where))
    check_consistent(config)
    return config


def check_consistent(config: TrainConfig) -> None:
    """Check that the values of a configuration fit together.

    Raises:
        ConfigError: contradicting values; names the flags.
    """
    variants, batch = config.variants(), config.recipe().batch_size
    if config.train.stages and config.model.variant != variants[-1]:
        raise ConfigError(
            where="--stages",
            found=f"{','.join(config.train.stages)} with --variant {config.model.variant}",
            expected="stages that end with the variant",
            remedy="Set --variant to the variant of the last stage.",
        )  # fmt: skip
    if len(set(variants)) < len(variants):
        raise ConfigError(
            where="--stages",
            found="a stage twice",
            expected="each stage once",
            remedy="Remove the repeated stage.",
        )
    if batch % config.compute.workers:
        raise ConfigError(
            where="--workers", found=f"{config.compute.workers} workers for batches of {batch}",
            expected="a batch size that is a multiple of the number of workers",
            remedy="Choose another number of workers, or --set train.batch_size=….",
        )  # fmt: skip
