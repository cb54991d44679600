"""What several commands have in common: their options, and how these become a configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from pipeline.cli import console
from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError
from pipeline.resolve import refuse_dates
from pipeline.storage.store import Store, read_url


def chosen_log_format(value: str | None) -> str | None:
    """Log like that from now on."""
    if value is not None:
        console.use_log_format(value)
    return value


Input = Annotated[str, typer.Argument(help="Tars, Parquet files or a folder of images; any URL.")]

Output = Annotated[str, typer.Argument(help="Where the results are; any URL.")]

Weights = Annotated[str | None, typer.Option(help="Weights file or URL, or `demo`.")]

Labels = Annotated[str | None, typer.Option(help="Folder of label PNGs parallel to the images.")]

LabelSetName = Annotated[
    str | None,
    typer.Option(
        help="Built-in name (voc, camvid, nyudv2, cityscapes, …) or YAML file. "
        "Default: the weights' own."
    ),
]

Layout = Annotated[str | None, typer.Option(help="voc: INPUT is a PASCAL VOC development kit.")]

Split = Annotated[
    str | None, typer.Option(help="With --layout: which list of ids; its name, or a file or URL.")
]

Masks = Annotated[str | None, typer.Option(help="Comma-separated: parquet,png,tar,confidence.")]

ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file of a RunConfig.")]

Sets = Annotated[
    list[str] | None, typer.Option("--set", help="section.field=value; may be repeated.")
]

ShardSize = Annotated[
    int | None,
    typer.Option(min=1, help="Images per new shard of a folder; earlier ones stay as they are."),
]

LimitShards = Annotated[int | None, typer.Option(min=1, help="At most this many pending shards.")]

Include = Annotated[
    list[str] | None,
    typer.Option(help="Glob of shards (or images) to look at; repeatable. * matches / too."),
]

Exclude = Annotated[
    list[str] | None, typer.Option(help="Glob of shards (or images) to leave out; repeatable.")
]

Since = Annotated[
    str | None, typer.Option(help="Only what changed since: 36h, 7d, 2026-11-01 (UTC).")
]

PlainForward = Annotated[
    bool | None,
    typer.Option("--plain-forward", help="Compute all of the padded canvas: to compare with."),
]

LogFormat = Annotated[
    Literal["text", "json"] | None,
    typer.Option(
        help="Of stderr: text for people, json for machines: an object per line.",
        # At once, so that errors in all other options are told in that form.
        is_eager=True,
        callback=chosen_log_format,
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def run_flags(
    input: str,
    output: str,
    weights: str | None,
    labels: str | None,
    label_set: str | None,
    masks: str | None,
) -> dict[str, Any]:
    """The fields that `run` and its relatives set by name."""
    return {
        "input.url": input,
        "output.url": output,
        "model.weights": weights,
        "input.labels": labels,
        "input.label_set": label_set,
        "output.masks": [name.strip() for name in masks.split(",")] if masks is not None else None,
    }


def selected(
    limit: int | None, include: list[str] | None, exclude: list[str] | None, since: str | None
) -> dict[str, Any]:
    """The flags that say which part of an input a run looks at."""
    return {
        "input.limit_shards": limit,
        "input.include": include or None,
        "input.exclude": exclude or None,
        "input.since": since,
    }


def load_logged_config(
    config: str | None, sets: list[str] | None, flags: dict[str, Any]
) -> RunConfig:
    """As `load_run_config`; and from then on this process logs as the configuration says.

    Raises:
        ConfigError: unknown key, missing key or impossible value.
    """
    loaded = load_run_config(config, sets, flags)
    console.use_log_format(loaded.monitoring.log_format)
    return loaded


def load_run_config(config: str | None, sets: list[str] | None, flags: dict[str, Any]) -> RunConfig:
    """The configuration of a command: file, then --set, then flags.

    Raises:
        ConfigError: unknown key, missing key or impossible value.
    """
    loaded = load_config(read_text(config), sets or [], flags, config or "--config")
    refuse_dates(loaded)
    return loaded


def read_text(config: str | None, option: str = "--config") -> str | None:
    """The text of a file that an option names, if there is one.

    Raises:
        ConfigError: it is no text.
        StoreError: it cannot be read.
    """
    try:
        return read_url(config).decode() if config else None
    except UnicodeDecodeError:
        raise ConfigError(
            where=f"{option} {config}",
            found="bytes that are no UTF-8",
            expected="a YAML file",
            remedy="Check the file.",
        ) from None


def output_store(output: str, config: str | None, sets: list[str] | None) -> Store:
    """The store of a command that only looks at OUTPUT, reached as `output.store` says.

    Raises:
        ConfigError: as `load_run_config`.
    """
    # No INPUT is needed here, but a configuration has one.
    loaded = load_run_config(config, [*(sets or []), "input.url=none"], {"output.url": output})
    return Store(loaded.output.url, loaded.output.store)
