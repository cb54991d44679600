"""Command-line options that several commands share, and how they become a configuration.

`OPTIONS` declares each option once: type, help text, and the config field it sets. `takes` builds
the signature of a command from it, and hands the command a `GivenOptions` with the values:

    @takes("input output weights config sets", "as_json")
    def plan(given: GivenOptions, as_json: AsJson = False) -> None:
        config = given.load_run_config()

Options of one command alone are parameters of its function, as usual with typer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.models import ArgumentInfo

from pipeline.cli import console
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.storage.store import Store


def split_list(text: str) -> list[str]:
    """Return the items of a comma-separated list.

    >>> split_list("parquet, png")
    ['parquet', 'png']
    """
    return [item.strip() for item in text.split(",")]


@dataclass(frozen=True)
class OptionSpec:
    """One option or argument of the command line.

    Attributes:
        annotation: `Annotated` type of its value, with typer's declaration (help, flag, range).
        field: config field that it sets, such as "input.url"; "" if it sets none.
        parse: what turns its value into the value of the field; None leaves the value as it is.
        is_required: whether an option must be given; an argument always must.
    """

    annotation: Any
    field: str = ""
    parse: Callable[[Any], Any] | None = None
    is_required: bool = False

    def as_parameter(self, name: str) -> inspect.Parameter:
        """Return the parameter of a function from which typer makes this option."""
        [declaration] = self.annotation.__metadata__
        is_required = self.is_required or isinstance(declaration, ArgumentInfo)
        return inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if is_required else None,
            annotation=self.annotation,
        )


def _set_log_format(value: str | None) -> str | None:
    if value is not None:
        console.use_log_format(value)
    return value


AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

Labels = Annotated[
    str | None, typer.Option(help="Folder of label PNGs, at the same relative paths as the images.")
]

PlainForward = Annotated[
    bool | None,
    typer.Option(
        "--plain-forward",
        help="Compute the whole padded canvas: slower, equal up to rounding.",
    ),
]

LogFormat = Annotated[
    Literal["text", "json"] | None,
    typer.Option(
        help="Format of stderr: text for people, or json with one object per line.",
        # Eager, so that errors in all other options are printed in this format already.
        is_eager=True,
        callback=_set_log_format,
    ),
]

OPTIONS: Mapping[str, OptionSpec] = {
    "input": OptionSpec(
        Annotated[
            str,
            typer.Argument(help="Tar or Parquet files, or a folder of images; path or URL."),
        ],
        "input.url",
    ),
    "output": OptionSpec(
        Annotated[str, typer.Argument(help="Where the results are; path or URL.")],
        "output.url",
    ),
    "weights": OptionSpec(
        Annotated[str | None, typer.Option(help="Weights file (path or URL), or `demo`.")],
        "model.weights",
    ),
    "labels": OptionSpec(Labels, "input.labels"),
    "label_set": OptionSpec(
        Annotated[
            str | None,
            typer.Option(
                help="Name (voc, camvid, nyudv2, cityscapes, …) or YAML file of the label set. "
                "Default: the one in the weights file."
            ),
        ],
        "input.label_set",
    ),
    "layout": OptionSpec(
        Annotated[str | None, typer.Option(help="voc, if INPUT is a PASCAL VOC development kit.")],
        "input.layout",
    ),
    "split": OptionSpec(
        Annotated[
            str | None,
            typer.Option(help="With --layout: name of the list of image ids, or its path or URL."),
        ],
        "input.split",
    ),
    "masks": OptionSpec(
        Annotated[
            str | None,
            typer.Option(help="Comma-separated formats: parquet,png,tar,confidence."),
        ],
        "output.masks",
        split_list,
    ),
    "executor": OptionSpec(Annotated[str | None, typer.Option(help="local or ray.")]),
    "address": OptionSpec(
        Annotated[str | None, typer.Option(help="Address of the Ray cluster to run on.")],
        "compute.ray_address",
    ),
    "workers": OptionSpec(
        Annotated[int | None, typer.Option(min=1, help="Number of worker processes.")],
        "compute.workers",
    ),
    "gpus_per_worker": OptionSpec(
        Annotated[float | None, typer.Option(help="GPUs per worker on Ray; may be a fraction.")],
        "compute.gpus_per_worker",
    ),
    "memory_limit": OptionSpec(
        Annotated[
            str | None,
            typer.Option(help="Memory limit of all workers on one machine, such as 8GiB."),
        ],
        "limits.memory",
    ),
    "precision": OptionSpec(
        Annotated[str | None, typer.Option(help="fp32, tf32, bf16, fp16 or int8.")],
        "model.precision",
    ),
    "plain_forward": OptionSpec(PlainForward, "compute.plain_forward"),
    "limit_shards": OptionSpec(
        Annotated[int | None, typer.Option(min=1, help="Process at most N pending shards.")],
        "input.limit_shards",
    ),
    "include": OptionSpec(
        Annotated[
            list[str] | None,
            typer.Option(
                help="Pattern of shards (or images) to include; may be repeated. * matches / too."
            ),
        ],
        "input.include",
    ),
    "exclude": OptionSpec(
        Annotated[
            list[str] | None,
            typer.Option(help="Pattern of shards (or images) to exclude; may be repeated."),
        ],
        "input.exclude",
    ),
    "since": OptionSpec(
        Annotated[
            str | None,
            typer.Option(
                help="Only shards (or images) changed since an age (36h, 7d) or date "
                "(2026-11-01), UTC."
            ),
        ],
        "input.since",
    ),
    "shard_size": OptionSpec(
        Annotated[
            int | None,
            typer.Option(
                min=1, help="Images per new shard of a folder; existing shards do not change."
            ),
        ],
        "input.shard_size",
    ),
    "config": OptionSpec(
        Annotated[str | None, typer.Option("--config", help="YAML file with configuration fields.")]
    ),
    "sets": OptionSpec(
        Annotated[
            list[str] | None,
            typer.Option(
                "--set", help="Set a configuration field: section.field=value; may be repeated."
            ),
        ]
    ),
    "log_format": OptionSpec(LogFormat, "monitoring.log_format"),
    "metrics_port": OptionSpec(
        Annotated[
            int | None,
            typer.Option(min=0, help="Port that serves metrics to Prometheus during the run."),
        ],
        "monitoring.metrics_port",
    ),
}
"""Every shared option, by the name of its parameter."""


@dataclass(frozen=True)
class GivenOptions:
    """The shared options of one call of a command.

    Attributes:
        values: value of each option by its name; None where it was not given.
        fields: config field to value, for the options that set one; None where it was not given.
    """

    values: Mapping[str, Any]
    fields: Mapping[str, Any]

    @property
    def config(self) -> str | None:
        """Path or URL of the file after --config."""
        value: str | None = self.values.get("config")
        return value

    @property
    def sets(self) -> list[str]:
        """Texts after --set."""
        return self.values.get("sets") or []

    def load_run_config(self, more: Mapping[str, Any] | None = None) -> RunConfig:
        """Return the configuration: the file, then --set, then the options on top.

        Args:
            more: config field to value, for fields that win over the options.

        Raises:
            ConfigError: an unknown key, a missing key or an impossible value.
            StoreError: the file cannot be read.
        """
        from pipeline.config import load_config
        from pipeline.resolve import refuse_dates

        fields = {**self.fields, **(more or {})}
        config = load_config(read_text(self.config), self.sets, fields, self.config or "--config")
        refuse_dates(config)
        return config

    def load_logged_config(self, more: Mapping[str, Any] | None = None) -> RunConfig:
        """Return the configuration as `load_run_config` does, and log in its format from now on.

        Raises:
            ConfigError: an unknown key, a missing key or an impossible value.
            StoreError: the file cannot be read.
        """
        config = self.load_run_config(more)
        console.use_log_format(config.monitoring.log_format)
        return config

    def open_output(self) -> Store:
        """Return the store of OUTPUT for a command without INPUT, with the options `output.store`.

        Raises:
            ConfigError: an unknown key or an impossible value.
            StoreError: the file cannot be read.
        """
        from pipeline.storage.store import Store

        # A configuration needs an INPUT; this command does not read any.
        config = self.load_run_config({"input.url": "none"})
        return Store(config.output.url, config.output.store)


Command = Callable[..., None]


def takes(*order: str, **changed: OptionSpec) -> Callable[[Command], Command]:
    """Return a decorator that gives a command its options, in the order of `--help`.

    Args:
        *order: names of all its options, separated by spaces. A name is a parameter of the
            decorated function, or else an entry of `changed`, or else one of `OPTIONS`.
        **changed: options that this command declares differently from `OPTIONS`, or alone.

    Raises:
        TypeError: the names do not fit the function.
    """
    names = " ".join(order).split()

    def decorate(function: Command) -> Command:
        _, *parameters = inspect.signature(function, eval_str=True).parameters.values()
        own = {parameter.name: parameter for parameter in parameters}
        shared = {name: changed.get(name) or OPTIONS[name] for name in names if name not in own}
        unused = (own.keys() | changed.keys()) - set(names)
        if unused:
            raise TypeError(f"{function.__name__}: options without a place: {sorted(unused)}")

        def command(**values: Any) -> None:
            given = {name: values[name] for name in shared}
            fields = {
                option.field: _field_value(option, given[name])
                for name, option in shared.items()
                if option.field
            }
            options = GivenOptions(given, fields)
            function(options, **{name: values[name] for name in own})

        signature = inspect.Signature(
            [
                own[name].replace(kind=inspect.Parameter.KEYWORD_ONLY)
                if name in own
                else shared[name].as_parameter(name)
                for name in names
            ]
        )
        command.__name__ = function.__name__
        command.__module__ = function.__module__
        command.__doc__ = function.__doc__
        command.__annotations__ = {
            parameter.name: parameter.annotation for parameter in signature.parameters.values()
        }
        command.__signature__ = signature  # type: ignore[attr-defined]  # what typer reads
        return command

    return decorate


def _field_value(option: OptionSpec, value: Any) -> Any:
    if value is None or value == []:
        return None
    return value if option.parse is None else option.parse(value)


def read_text(file: str | None, option: str = "--config") -> str | None:
    """Return the text of the file that an option names, or None where it names none.

    Args:
        file: path or URL.
        option: name of the option, for errors.

    Raises:
        ConfigError: the file is not valid UTF-8.
        StoreError: the file cannot be read.
    """
    if not file:
        return None
    from pipeline.storage.store import read_url

    try:
        return read_url(file).decode()
    except UnicodeDecodeError:
        raise ConfigError(
            where=f"{option} {file}",
            found="bytes that are not valid UTF-8",
            expected="a YAML file",
            remedy="Check the file.",
        ) from None
