"""A run or a training as a job: its driver's command line, and its metadata, there and back."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.manifest import PLACES, portable
from pipeline.redact import has_secret, masked
from pipeline.storage.store import Store
from pipeline.training.config import TrainConfig

JobConfig = RunConfig | TrainConfig


OUTPUT_KEY = "fcnseg_output"

CONFIG_KEY = "fcnseg_config"

COMMAND_KEY = "fcnseg_command"


def entrypoint(config: JobConfig, python: str = "python") -> str:
    """The driver's command line, for a shell: what a person could have typed.

    `exec`, so that signals and the exit code are the driver's and not a shell's.

    Raises:
        ConfigError: the configuration holds a secret.
    """
    tree = travelling(config)
    source, target = tree["input"].pop("url"), tree["output"].pop("url")
    if isinstance(config, TrainConfig):
        words = ["train", source, "--output", target]
    else:
        words = ["run", source, target]
    for name, value in flat(tree):
        words += ["--set", f"{name}={_yaml(value)}"]
    return shlex.join(["exec", python, "-m", "pipeline", *words])


def travelling(config: JobConfig) -> dict[str, Any]:
    """A configuration as it is sent to a cluster: from any directory, on Ray, without secrets.

    Raises:
        ConfigError: it holds a secret.
    """
    given = config.model_dump(mode="json", exclude_defaults=True)
    for section, name in PLACES:
        value = (given.get(section) or {}).get(name)
        if value is not None and has_secret(value):
            raise ConfigError(
                where=masked(value),
                found="credentials in a URL",
                expected="a URL alone: everybody who sees the cluster's jobs sees their command lines",
                remedy="Put them into the environment of the cluster's nodes.",
            )
    tree = portable(config)
    tree["output"]["url"] = Store(config.output.url).url
    compute = tree.setdefault("compute", {})
    if isinstance(config, TrainConfig):
        compute["ray_address"] = "auto"  # one worker, too, belongs to Ray, which knows the GPUs
    else:
        compute.pop("ray_address", None)
        compute["executor"] = "ray"
    return tree


def config_of(metadata: Mapping[str, str] | None) -> JobConfig | None:
    """The configuration of a job by its metadata; None if it is not one of ours."""
    metadata = metadata or {}
    kind = TrainConfig if metadata.get(COMMAND_KEY) == "train" else RunConfig
    try:
        return kind.model_validate(json.loads(metadata[CONFIG_KEY]))
    except (KeyError, TypeError, ValueError):  # pydantic's ValidationError is one
        return None


def metadata_of(config: JobConfig) -> dict[str, str]:
    """What tells the job of a configuration from others.

    Raises:
        ConfigError: the configuration holds a secret.
    """
    tree = travelling(config)
    return {
        OUTPUT_KEY: tree["output"]["url"],
        CONFIG_KEY: json.dumps(tree, sort_keys=True, separators=(",", ":")),
        COMMAND_KEY: "train" if isinstance(config, TrainConfig) else "run",
    }


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """(section.field, value) of a configuration, level by level."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _yaml(value: Any) -> str:
    """A value as `--set` reads it: YAML on one line, in ASCII."""
    return yaml.safe_dump([value], default_flow_style=True, width=float("inf")).strip()[1:-1]
