"""Prepare a training: resolve and check its configuration, and claim its directory."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fcn_core.labels import LabelSet
from fcn_core.networks.architecture import Architecture
from fcn_core.preprocessing import CENTRED_RGB, PREPROCESSINGS, Preprocessing
from fcn_core.weights.weights_file import WeightsFile
from pipeline.config import InputConfig
from pipeline.errors import ConfigError, MissingError, OutputError
from pipeline.paths import MANIFEST, SUCCESS
from pipeline.resolve import load_weights, read_label_set
from pipeline.storage.store import Store, refuse_overlap
from pipeline.text import first_difference
from pipeline.training.config import SCRATCH, TrainConfig, check_consistent
from pipeline.training.source import TrainingSource, list_source

PATH = "_train.json"

FORMAT = 1

CHECKPOINTS = "checkpoints"


log = logging.getLogger("fcnseg")


@dataclass(frozen=True)
class PreparedTraining:
    """A training with resolved and checked settings; nothing is written yet.

    Attributes:
        config: configuration as given.
        output: store of the training's directory.
        labels: label set of the training.
        data: training data.
        val: validation data; None without VAL.
        init: initial weights; None to start from scratch.
        preprocessing: preprocessing stored in the weights.
        parts: all settings and digests that determine the weights, JSON-able.
    """

    config: TrainConfig
    output: Store
    labels: LabelSet
    data: TrainingSource
    val: TrainingSource | None
    init: WeightsFile | None
    preprocessing: Preprocessing
    parts: Mapping[str, Any]

    def architecture(self, stage: int) -> Architecture:
        """Return the architecture of a stage's network."""
        return _architecture(self.config, stage, self.labels)

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.config.variants())

    @property
    def stage_steps(self) -> int:
        """Number of optimizer steps in each stage."""
        return self.config.recipe().max_steps

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps in all stages."""
        return self.stages * self.stage_steps


def prepare_training(config: TrainConfig) -> PreparedTraining:
    """Resolve and check everything that a training needs; list the inputs, write nothing.

    Raises:
        ConfigError, LabelSetError: contradicting values, no label set, or overlapping locations.
        WeightsError: the initial weights are not valid, or do not fit this network.
        InputError: the training data is empty.
        StoreError: a store cannot be read.
    """
    check_consistent(config)  # again here: a config from a Prefect form was not checked yet
    init = None
    if config.model.init != SCRATCH:
        init = load_weights(config.model.init, config.input.store)
    labels = _labels(config.input, init)
    output = Store(config.output.url, config.output.store)
    sources = {"input": config.input, "val": config.val}
    for source in sources.values():
        if source is not None:
            refuse_overlap("OUTPUT", output, "INPUT", Store(source.url, source.store))
    data = list_source(config.input, labels, config.limits)
    val = None
    if config.val is not None:
        val = list_source(config.val, _val_labels(config.val, labels), config.limits)
    _architecture(config, 0, labels)
    _advise(config, init)
    preprocessing = _preprocessing(config.model.preprocessing, init)
    parts = {
        "recipe": asdict(config.recipe()),
        "variants": list(config.variants()),
        "width": config.model.width,
        "upsampling": config.model.upsampling,
        "init_sha256": init.sha256 if init else None,
        "preprocessing": preprocessing.to_dict(),
        "labels": labels.to_dict(),
        **{name: getattr(config.train, name)
           for name in ("seed", "precision", "shuffle_samples", "eval_every", "eval_images")},
        "chunks": [config.limits.chunk_images, config.limits.chunk_bytes],
        "max_image_pixels": config.limits.max_image_pixels,
        "input": data.digest,
        "val": val.digest if val else None,
        "val_labels": val.labels.to_dict() if val else None,
    }  # fmt: skip
    # A round trip through JSON, so that later comparisons see the same types as the file.
    parts = json.loads(json.dumps(parts))
    return PreparedTraining(config, output, labels, data, val, init, preprocessing, parts)


def _architecture(config: TrainConfig, stage: int, labels: LabelSet) -> Architecture:
    network = Architecture(
        config.variants()[stage],
        labels.num_classes,
        config.model.width,
        upsampling=config.model.upsampling,
    )
    if network.input_channels != 3:
        raise ConfigError(
            where="--variant", found=f"{network.variant} with {network.input_channels} channels",
            expected="a network for RGB images, because inputs hold RGB images only",
            remedy="Choose another variant.",
        )  # fmt: skip
    return network


def _labels(config: InputConfig, init: WeightsFile | None) -> LabelSet:
    if config.label_set is not None:
        return read_label_set(config.label_set, config.store)
    if init is None:
        raise ConfigError(
            where="--label-set", found="no label set", expected="the meaning of the label values",
            remedy="Add --label-set voc, or a YAML file (docs/label-sets.md).",
        )  # fmt: skip
    return init.info.labels


def _val_labels(config: InputConfig, labels: LabelSet) -> LabelSet:
    own = labels if config.label_set is None else read_label_set(config.label_set, config.store)
    if own.classes != labels.classes:
        raise ConfigError(
            where="val.label_set", found=f"classes {', '.join(own.classes)}",
            expected=f"the classes of the training: {', '.join(labels.classes)}",
            remedy="Name a label set with these classes.",
        )  # fmt: skip
    return own


def _preprocessing(name: str | None, init: WeightsFile | None) -> Preprocessing:
    if name is None:
        return init.info.preprocessing if init else CENTRED_RGB
    return CENTRED_RGB if name == "centred" else PREPROCESSINGS[name]


def _advise(config: TrainConfig, init: WeightsFile | None) -> None:
    """Warn about combinations of recipe and initial weights that usually fail."""
    recipe, variant = config.recipe(), config.variants()[0]
    if recipe.loss != "sum" or config.train.learning_rate is not None:
        return
    if init is None:
        log.warning(
            "recipe %s needs weights pretrained on ImageNet (fcnseg weights convert --from "
            "vgg-caffe-pth); from scratch its learning rates are too low: use --recipe modern",
            recipe.name,
        )
    elif variant in recipe.stage_rates and init.info.is_initialisation:
        log.warning(
            "recipe %s trains %s as a later stage, at a learning rate of %g: from VGG-16 use "
            "--stages 32s,16s,8s, or --variant fcn8s-atonce",
            recipe.name,
            variant,
            recipe.stage_rates[variant],
        )


def check_directory(output: Store, parts: Mapping[str, Any]) -> None:
    """Refuse a directory that belongs to a run or to another training; write nothing.

    A directory with neither a checkpoint nor the marker of a finished training is free.

    Raises:
        OutputError: the directory is taken; names the first difference.
    """
    if _read(output, MANIFEST) is not None:
        raise OutputError(
            where=output.location(MANIFEST), found="the output of fcnseg run",
            expected="a directory used only by this training", remedy="Choose another --output.",
        )  # fmt: skip
    data = _read(output, PATH)
    if data is None or not (output.objects(CHECKPOINTS) or _read(output, SUCCESS)):
        return
    where = output.location(PATH)
    try:
        document = json.loads(data)
        existing, version = dict(document["parts"]), document["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(
            where=where, found=f"unreadable ({error})", expected="the _train.json of a training",
            remedy="Use a new directory.",
        ) from error  # fmt: skip
    if version != FORMAT:
        raise OutputError(
            where=where,
            found=f"format {version}",
            expected=f"format {FORMAT}",
            remedy="Use a new directory.",
        )
    # Older versions wrote fewer parts: only the parts that the file has are compared.
    names = [name for name in parts if name in existing]
    then, now = ({name: source[name] for name in names} for source in (existing, parts))
    difference = first_difference(then, now)
    if difference is not None:
        found, expected = difference.describe("a training with {}", "{}, as requested now")
        raise OutputError(
            where=where, found=found, expected=expected,
            remedy="Use a new --output (--init can start from these weights), or resume with the "
            "settings and data of the existing training.",
        )  # fmt: skip


def claim_directory(output: Store, parts: Mapping[str, Any]) -> None:
    """Claim a directory for this training; only the holder of the lease may call this.

    Raises:
        OutputError: see `check_directory`.
    """
    check_directory(output, parts)
    document = {"format": FORMAT, "parts": dict(parts)}
    data = json.dumps(document, indent=1, sort_keys=True).encode()
    if _read(output, PATH) != data:
        output.write(PATH, data)


def _read(output: Store, path: str) -> bytes | None:
    try:
        return output.read(path)
    except MissingError:
        return None
