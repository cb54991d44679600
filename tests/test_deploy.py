"""What deploy/ names exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "deploy/README.md").read_text()


@pytest.mark.parametrize("entry", sorted(set(re.findall(r"`(\w+(?:\.\w+)+):(\w+)`", TEXT))))
def test_every_named_entry_point_imports(entry: tuple[str, str]) -> None:
    module, name = entry
    assert callable(getattr(importlib.import_module(module), name))


def test_entry_points_are_named() -> None:
    assert "`flows.label:label_dataset`" in TEXT and "`pipeline.entry:main`" in TEXT
