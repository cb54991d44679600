"""The runbook and the list of messages quote messages that the code really gives."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def messages() -> str:
    """All texts of the code; parts of one f-string apart by a line."""
    found = []
    for package in ("fcn_core", "pipeline", "flows"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


@pytest.mark.parametrize(("page", "least"), [("operations", 18), ("troubleshooting", 35)])
def test_every_quoted_message_is_in_the_code(page: str, least: int) -> None:
    text = (ROOT / f"docs/{page}.md").read_text()
    quoted = re.findall(r"(?m)^\| `([^`]+ [^`]+)`", text)
    assert len(quoted) >= least
    said = messages()
    assert [text for text in quoted if text not in said] == []
