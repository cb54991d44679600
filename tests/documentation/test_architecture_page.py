"""The pages for contributors and for language models name what exists, and all of it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.test_architecture import ROOMS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGE = (DOCS / "architecture.md").read_text()
LLMS = (DOCS / "llms.txt").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def section(heading: str) -> str:
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def rows(heading: str) -> list[list[str]]:
    """Cells of the table of a section, without its head."""
    lines = [line for line in section(heading).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_rooms_of_the_page_are_the_list() -> None:
    assert [re.findall(r"`([^`]+)`", row[0])[0] for row in rows("The rooms")] == list(ROOMS)


def test_every_module_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`((?:fcn_core|pipeline|flows|stages|workers|tests)/[\w./]+)`", PAGE))
    assert len(named) > 40
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "pipeline" / name).exists(), name


def test_every_name_that_the_page_puts_into_a_module_is_in_it() -> None:
    found = re.findall(r"`(\w+)` in `([\w/]+\.py)`", PAGE)
    assert len(found) >= 10
    for name, path in found:
        tree = ast.parse((ROOT / path).read_text())
        assert name in {
            getattr(target, "id", None) or getattr(target, "name", None)
            for node in tree.body
            for target in (
                *getattr(node, "targets", ()),
                *([node.target] if isinstance(node, ast.AnnAssign) else ()),
                node,
            )
        }, f"{path} has no {name}"


def test_the_page_answers_where_a_line_goes() -> None:
    answers = rows("Where does my line go?")
    assert len(answers) >= 25
    assert len({row[0] for row in answers}) == len(answers)


def test_the_tree_has_every_path_below_an_output() -> None:
    from pipeline import paths
    from pipeline.stages.mask_formats import MASK_FORMATS

    values = [value for name, value in vars(paths).items() if name.isupper() and name[0] != "_"]
    folders = [found.folder for found in MASK_FORMATS.values()]
    tree = section("The tree of OUTPUT")
    for path in (*values, *folders):
        assert re.search(rf"`{re.escape(path)}\b|`{re.escape(path)}\*", tree), path


PAGES = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_llms_txt_names_every_page(page: str) -> None:
    assert f"]({page}): " in LLMS


def test_llms_txt_has_its_form_and_links_to_files() -> None:
    # https://llmstxt.org: a title, a summary, prose, then lists of links under headings.
    title, _, summary, *_ = LLMS.splitlines()
    assert title.startswith("# ") and summary.startswith("> ")
    lists = LLMS.partition("\n## ")[2].splitlines()[1:]
    for line in lists:
        assert not line or line.startswith("## ") or re.match(r"- \[[^]]+\]\([^)]+\): \S", line)
    for target in re.findall(r"\]\(([^)]+)\)", LLMS):
        assert (DOCS / target).is_file(), target


def test_examples_of_contributing_are_code_of_the_project() -> None:
    signature, error = re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL)
    assert signature in (ROOT / "fcn_core/images.py").read_text()
    words = ast.unparse(ast.parse(error).body[0])
    tree = ast.parse((ROOT / "pipeline/training/config.py").read_text())
    assert words in {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Raise)}


def test_links_of_contributing_and_readme_exist() -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", CONTRIBUTING):
        assert target.startswith("http") or (ROOT / target).exists(), target
    readme = (ROOT / "README.md").read_text()
    assert "](CONTRIBUTING.md)" in readme
    assert "](../CONTRIBUTING.md)" in (DOCS / "index.md").read_text()
    assert [line for line in readme.splitlines() if len(line) > 100] == []
