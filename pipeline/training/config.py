"""The configuration of a training: the sections of a run where they mean the same, and its own.

The docstring under a field is its help text everywhere. What a recipe decides is None here unless
it is to be decided otherwise.
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
    """Where the weights go."""

    url: str
    """Directory that belongs to this training; any fsspec URL."""
    store: StoreOptions = StoreOptions()
    """How it is reached."""


class NetworkConfig(Section):
    """Which network, and from where it starts."""

    variant: Variant = "fcn8s"
    """The network; with train.stages the last stage says it."""
    width: float = Field(default=1.0, gt=0)
    """Multiplies the channels of VGG-16: 1.0 as published, 0.125 for a slim network."""
    upsampling: Upsampling = "fixed"
    """fixed: bilinear, as in the authors' code; learned: bilinear to begin with."""
    init: str = SCRATCH
    """Weights to start from (.safetensors; any URL), or scratch."""
    preprocessing: str | None = None
    """By name (docs/training.md); default: that of the initial weights, else centred."""

    @field_validator("preprocessing")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name not in (None, "centred", *PREPROCESSINGS):
            raise ValueError(f"one of centred, {', '.join(PREPROCESSINGS)}")
        return name


class TrainingConfig(Section):
    """How to train. Values that the recipe decides default to the recipe's."""

    recipe: RecipeName = "modern"
    """heavy, accum, online (the authors'), or modern (from scratch)."""
    stages: tuple[TrainStage, ...] = ()
    """Networks to be trained one after the other, each from the one before: 32s,16s,8s."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of each stage."""
    seed: int = Field(default=0, ge=0)
    """Of initial weights, order, crops, jitter and dropout."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the forward and backward pass; weights and loss are fp32 always."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Of weights, after the warm-up, in every stage."""
    batch_size: int | None = Field(default=None, ge=1)
    """Pictures per step, of all workers together."""
    crop: int | None = Field(default=None, ge=0)
    """Side of the crops, px; 0: whole pictures."""
    scale: tuple[PositiveFloat, PositiveFloat] | None = None
    """Least and greatest factor by which pictures are enlarged before they are cropped."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Probability at fc6 and fc7."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Of weights; biases have none."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps over which the rate rises; never more than a tenth of all."""
    shuffle_samples: int = Field(default=1024, ge=1)
    """Samples that are shuffled together; about so many are in memory, encoded, twice."""
    check_labels: bool = True
    """Whether every label is looked at before the first step."""
    checkpoint_every: int = Field(default=1000, ge=1)
    """Steps between two checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """The newest ones are kept."""
    eval_every: int = Field(default=1000, ge=1)
    """Steps between two evaluations on VAL."""
    eval_images: int | None = Field(default=None, ge=1)
    """At most so many images of VAL, the first ones; default: all."""
    overlays: int = Field(default=4, ge=0)
    """Images of VAL that are drawn with their masks at each evaluation."""
    log_every: int = Field(default=20, ge=1)
    """Steps whose mean loss makes one line of metrics.jsonl."""

    @field_validator("scale")
    @classmethod
    def _rises(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and scale[0] > scale[1]:
            raise ValueError("the least factor first, like [0.75, 1.5]")
        return scale


class TrainComputeConfig(Section):
    """Who does the work. Nothing here changes a result, but for the rounding of sums."""

    workers: int = Field(default=1, ge=1)
    """Processes that share every batch, by Ray Train; 1 without an address: this process."""
    ray_address: str | None = None
    """Ray cluster to train on; None with several workers starts an embedded one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where a worker sees a device."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of one worker; the same number gives the same bytes. Default: torch's own."""
    loaders: int = Field(default=2, ge=1)
    """Threads of one worker that decode and augment."""


class TrainConfig(Section):
    """A training."""

    input: InputConfig
    val: InputConfig | None = None
    """Labelled images that say which weights are best; never trained on."""
    output: TrainOutputConfig
    model: NetworkConfig = NetworkConfig()
    train: TrainingConfig = TrainingConfig()
    compute: TrainComputeConfig = TrainComputeConfig()
    limits: LimitsConfig = LimitsConfig()

    @field_validator("val", mode="before")
    @classmethod
    def _none_of_an_empty_address(cls, value: Any) -> Any:
        """A deployment's variable that is not set leaves an empty string."""
        is_empty = isinstance(value, Mapping) and value.get("url") == ""
        return None if is_empty else value

    def ray_address(self) -> str | None:
        """The cluster to train on, if one is named."""
        return self.compute.ray_address or None

    def variants(self) -> tuple[Variant, ...]:
        """The network of each stage."""
        if not self.train.stages:
            return (self.model.variant,)
        known = {variant.removeprefix("fcn"): variant for variant in get_args(Variant)}
        return tuple(known[stage] for stage in self.train.stages)

    def recipe(self) -> Recipe:
        """The recipe, with what is to be decided otherwise."""
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
    """The configuration from all its sources; later ones win.

    Args:
        file_text: YAML, or None.
        sets: "section.field=value" each; the value is read as YAML.
        flags: dotted name to value; None means "not given".
        where: the file's name, for errors.

    Raises:
        ConfigError: unknown key, missing key, impossible value, or values that contradict.
    """
    config = validate_as(TrainConfig, merged(file_text, sets, flags, where))
    check_consistent(config)
    return config


def check_consistent(config: TrainConfig) -> None:
    """Values that only together make no sense.

    Raises:
        ConfigError: naming them.
    """
    variants, batch = config.variants(), config.recipe().batch_size
    if config.train.stages and config.model.variant != variants[-1]:
        raise ConfigError(
            where="--stages", found=f"{','.join(config.train.stages)} with --variant {config.model.variant}",
            expected="stages that end with the variant", remedy="Name the variant of the last stage.",
        )  # fmt: skip
    if len(set(variants)) < len(variants):
        raise ConfigError(
            where="--stages",
            found="a stage twice",
            expected="each stage once",
            remedy="Remove one.",
        )
    if batch % config.compute.workers:
        raise ConfigError(
            where="--workers", found=f"{config.compute.workers} workers for batches of {batch}",
            expected="batches that can be shared evenly",
            remedy="Choose another number, or --set train.batch_size=….",
        )  # fmt: skip
