"""Paths below OUTPUT are spelled in `pipeline/paths.py` and nowhere else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pipeline import paths
from pipeline.stages.mask_formats import MASK_FORMATS

ROOT = Path(__file__).parents[2]
MODULES = [
    path
    for package in ("pipeline", "flows")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path != ROOT / "pipeline/paths.py"
]
OBJECTS = {value for name, value in vars(paths).items() if name.isupper() and name[0] != "_"}
FOLDERS = {f"{kind.folder}/" for kind in MASK_FORMATS.values()}
TEMPLATES = {("pipeline/report/page.py", paths.REPORT)}
"""Names that only look like a path below OUTPUT: the template of the report."""


def texts(path: Path) -> set[str]:
    """String constants of a module, without its docstrings."""
    tree = ast.parse(path.read_text())
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_spells_a_path(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    folders = (*(f"{name}/" for name in OBJECTS if "." not in name), *FOLDERS)
    spelled = {
        text
        for text in texts(path)
        if text in OBJECTS - {paths.REVIEWS} or text.startswith(folders)
    }
    assert not {text for text in spelled if (where, text) not in TEMPLATES}


def test_names_are_read_back() -> None:
    for shard in ("a", "a/b.c", "x.json", "_commits/x"):
        assert paths.committed_shard(paths.commit_path(shard)) == shard
        assert paths.quarantined_shard(paths.quarantine_path(shard)) == shard
        assert paths.is_commit(paths.commit_path(shard))
        assert paths.is_quarantine(paths.quarantine_path(shard))
