"""Convert a configuration to a Ray job's command line and metadata, and metadata back.

The metadata identifies a job: it holds the URL of OUTPUT, the configuration, and the command.
"""

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


def make_entrypoint(config: JobConfig, python: str = "python") -> str:
    """Return the shell command line that starts the driver of a run or training.

    The line begins with `exec`, so that signals reach the driver and not a shell, and the exit code
    is the driver's.

    Args:
        config: configuration of the run or training.
        python: Python interpreter on the cluster.

    Raises:
        ConfigError: the configuration holds a secret.
    """
    tree = make_portable(config)
    source, target = tree["input"].pop("url"), tree["output"].pop("url")
    if isinstance(config, TrainConfig):
        words = ["train", source, "--output", target]
    else:
        words = ["run", source, target]
    for name, value in flatten(tree):
        words += ["--set", f"{name}={_yaml(value)}"]
    return shlex.join(["exec", python, "-m", "pipeline", *words])


def make_portable(config: JobConfig) -> dict[str, Any]:
    """Return a configuration as a cluster gets it: absolute paths, the Ray executor, no secrets.

    Returns:
        The sections as JSON values, without the fields that have their defaults.

    Raises:
        ConfigError: a URL of the configuration holds a secret.
    """
    given = config.model_dump(mode="json", exclude_defaults=True)
    for section, name in PLACES:
        value = (given.get(section) or {}).get(name)
        if value is not None and has_secret(value):
            raise ConfigError(
                where=masked(value),
                found="credentials in a URL",
                expected="a URL without them: everyone with access to the cluster sees the command "
                "lines of its jobs",
                remedy="Set them in the environment of the cluster's nodes.",
            )
    tree = portable(config)
    tree["output"]["url"] = Store(config.output.url).url
    compute = tree.setdefault("compute", {})
    if isinstance(config, TrainConfig):
        compute["ray_address"] = "auto"  # even one worker runs on Ray, which assigns the GPUs
    else:
        compute.pop("ray_address", None)
        compute["executor"] = "ray"
    return tree


def parse_metadata(metadata: Mapping[str, str] | None) -> JobConfig | None:
    """Return the configuration in a job's metadata; None if `fcnseg` did not submit the job."""
    metadata = metadata or {}
    kind = TrainConfig if metadata.get(COMMAND_KEY) == "train" else RunConfig
    try:
        return kind.model_validate(json.loads(metadata[CONFIG_KEY]))
    except (KeyError, TypeError, ValueError):  # includes pydantic's ValidationError
        return None


def make_metadata(config: JobConfig) -> dict[str, str]:
    """Return the metadata that identifies the job of a configuration.

    Raises:
        ConfigError: the configuration holds a secret.
    """
    tree = make_portable(config)
    return {
        OUTPUT_KEY: tree["output"]["url"],
        CONFIG_KEY: json.dumps(tree, sort_keys=True, separators=(",", ":")),
        COMMAND_KEY: "train" if isinstance(config, TrainConfig) else "run",
    }


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield ("section.field", value) of every field of a nested configuration."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _yaml(value: Any) -> str:
    """Return a value as `--set` parses it: YAML on one line, in ASCII."""
    return yaml.safe_dump([value], default_flow_style=True, width=float("inf")).strip()[1:-1]
