"""Terminal manners: completion, colours, widths."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from pipeline.cli import console
from pipeline.cli.app import app


def complete(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setenv("_FCNSEG_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    with pytest.raises(SystemExit):
        app([], prog_name="fcnseg")
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("fcnseg ex", "export"),
        ("fcnseg weights con", "convert"),
        ("fcnseg export --for", "--format"),
        ("fcnseg run --limit", "--limit-shards"),
    ],
)
def test_tab_completes_commands_and_options(
    words: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complete(words, monkeypatch, capsys).split() == [expected]


def rendered(monkeypatch: pytest.MonkeyPatch, width: int) -> str:
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, width=width, soft_wrap=True)
    monkeypatch.setattr(console.out, "rich", terminal)
    console.print_rows(("shard", "reason"), [("s0", "[red]broken[/red]"), ("s1", "cut")])
    return out.getvalue()


def test_no_color_means_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = rendered(monkeypatch, 60)
    assert "\x1b[3" not in text and "[red]broken[/red]" in text


@pytest.mark.parametrize("width", [20, 60])
def test_tables_fit_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    lines = rendered(monkeypatch, width).replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert max(map(len, lines)) <= width


def test_help_fits_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in (["--help"], ["run", "--help"], ["export", "--help"]):
        with pytest.raises(SystemExit):
            app(words)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) > 10 and max(map(len, lines)) <= 80


def test_the_list_of_commands_is_not_cut(fcnseg: Callable[..., tuple[int, str, str]]) -> None:
    code, stdout, _ = fcnseg("--help")
    assert code == 0 and stdout.count("\n  ") > 17 and "..." not in stdout.partition("\n")[2]
