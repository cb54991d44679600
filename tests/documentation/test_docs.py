"""The documentation cannot fall behind: commands, options, fields and files that it must name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from pipeline.cli.app import app
from pipeline.config import RunConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCS = README + "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))


def _commands(group: Any, prefix: str = "") -> dict[str, Any]:
    """Every command by the words that call it: "run", "weights convert"."""
    found = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= _commands(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


COMMANDS = _commands(typer.main.get_command(app))
MAKEFILE = (ROOT / "Makefile").read_text()


def shell_lines(text: str) -> list[str]:
    """Command lines of all shell blocks: what stands behind `$ `, or all of a block without any."""
    lines = []
    for block in re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL):
        joined = block.replace("\\\n", " ")
        marked = [line[2:] for line in joined.splitlines() if line.startswith("$ ")]
        lines += marked or [line for line in joined.splitlines() if line.strip()]
    return lines


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_is_documented(name: str) -> None:
    command = COMMANDS[name]
    assert command.help and command.help.strip()
    assert f"fcnseg {name}" in DOCS
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name} has no help"


def test_every_documented_fcnseg_line_parses() -> None:
    lines = [line for line in shell_lines(DOCS) if "fcnseg " in line]
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(re.split(r" \|\|? ", line)[0], comments=True)
        words = words[[w.rpartition("/")[2] for w in words].index("fcnseg") + 1 :]
        depth = 1 if words[0] in COMMANDS else 2
        command = COMMANDS[" ".join(words[:depth])]
        if "--help" not in words:
            command.make_context(words[0], words[depth:])  # raises on an unknown option


def test_every_make_target_in_the_docs_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z][a-z-]+)", "\n".join(shell_lines(DOCS))))
    assert named and named <= targets


def test_every_make_target_has_help() -> None:
    phony = re.search(r"\.PHONY: (.*)", MAKEFILE)
    assert phony is not None
    for target in phony.group(1).split():
        assert re.search(rf"^{target}:.*## \S", MAKEFILE, re.MULTILINE), target


def _fields(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str | None]]:
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += _fields(inner, f"{prefix}{name}.")
        else:
            found.append((prefix + name, field.description))
    return found


@pytest.mark.parametrize(("name", "description"), _fields(RunConfig))
def test_every_config_field_is_described_and_documented(name: str, description: str) -> None:
    assert description
    assert f"`{name}`" in DOCS


def test_relative_links_lead_somewhere() -> None:
    others = [ROOT / "README.md", ROOT / "benchmarks/RESULTS.md"]
    for path in [*others, *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
            if not target.startswith(("http:", "https:", "mailto:")):
                assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_exit_codes_are_documented() -> None:
    for code in ("0", "1", "2", "3", "4", "75", "130", "143"):
        assert re.search(rf"^\| {code} \|", DOCS, re.MULTILINE), code


def test_changelog_has_the_output_format_and_its_version() -> None:
    from pipeline.manifest import OUTPUT_FORMAT

    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "### Output format" in changelog
    assert f"Version {OUTPUT_FORMAT}" in changelog


def test_lock_names_no_address() -> None:
    assert "://" not in (ROOT / "requirements.lock").read_text()


def test_ci_calls_the_test_command_of_the_readme() -> None:
    assert "make test" in shell_lines(README)
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
