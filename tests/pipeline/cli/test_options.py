"""The table of shared options, and the commands whose signatures it makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from pipeline.cli.options import OPTIONS, AsJson, GivenOptions, OptionSpec, takes
from pipeline.config import RunConfig


def call(command: Any, *words: str) -> Any:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(command)
    return CliRunner().invoke(app, [*words])


def test_a_command_gets_fields_and_its_own_options() -> None:
    calls: list[tuple[Mapping[str, Any], list[str], bool]] = []

    @takes("input masks exact include sets as_json")
    def example(
        given: GivenOptions,
        exact: Annotated[bool, typer.Option(help="Exact.")] = False,
        as_json: AsJson = False,
    ) -> None:
        """Do something."""
        calls.append((given.fields, given.sets, exact and as_json))

    ended = call(example, "in", "--masks", "png, tar", "--exact", "--json", "--set", "a.b=1")
    assert ended.exit_code == 0, ended.output
    fields = {"input.url": "in", "output.masks": ["png", "tar"], "input.include": None}
    assert calls == [(fields, ["a.b=1"], True)]


def test_help_lists_options_in_the_order_of_the_names() -> None:
    @takes("output weights last as_json")
    def example(
        given: GivenOptions,
        as_json: AsJson = False,
        last: Annotated[int, typer.Option(help="Last.")] = 1,
    ) -> None:
        """Do something."""

    text = call(example, "--help").output
    places = [text.index(word) for word in ("output <str>", "--weights", "--last", "--json")]
    assert places == sorted(places)
    assert call(example).exit_code == 2  # OUTPUT must be given


def test_a_command_may_declare_a_shared_option_differently() -> None:
    @takes(
        "output",
        output=OptionSpec(
            Annotated[str, typer.Option(help="Other.")], "output.url", is_required=True
        ),
    )
    def example(given: GivenOptions) -> None:
        """Do something."""

    assert call(example).exit_code == 2
    assert call(example, "--output", "x").exit_code == 0


def test_an_option_without_a_place_is_refused() -> None:
    def example(given: GivenOptions, as_json: AsJson = False) -> None: ...

    with pytest.raises(TypeError, match="as_json"):
        takes("input")(example)


def test_every_field_of_the_table_is_one_of_the_configuration() -> None:
    for name, option in OPTIONS.items():
        if option.field:
            section, _, field = option.field.partition(".")
            model: Any = RunConfig.model_fields[section].annotation
            assert field in model.model_fields, name
