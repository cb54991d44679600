"""The runbook quotes messages that the code really gives."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUNBOOK = (ROOT / "docs/operations.md").read_text()


def messages() -> str:
    """All texts of the code; parts of one f-string apart by a line."""
    found = []
    for package in ("fcn_core", "pipeline", "flows"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def test_every_quoted_message_is_in_the_code() -> None:
    quoted = re.findall(r"(?m)^\| `([^`]+ [^`]+)`", RUNBOOK)
    assert len(quoted) >= 18
    said = messages()
    assert [text for text in quoted if text not in said] == []
