"""The words of the project: one word per meaning, and no word that a reader must guess."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for room in ("fcn_core", "pipeline", "flows") for path in (ROOT / room).rglob("*.py")
)
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

# Each pattern, and the words to write in its place.
BANNED = {
    r"(?i:\bpictures?\b)": "image",
    r"(?i:\b(un)?labell(ed|ing|ers?)\b)": "labeled (has ground truth), segment (a prediction)",
    r"(?i:\blabels? (images|it)\b)": "segment",
    r"(?i:\bmean IU\b)": "mean IoU",
    r"(?i:\bwhoever\b)": "callers, readers, the process that",
    r"(?i:\bnobody\b)": "no one is needed: name the process or the reader",
    r"(?i:\bby lot\b)": "randomly sampled",
    r"(?i:\bthe morning\b)": "run summary, scheduled run",
    r"(?i:\bto be had\b)": "available",
    r"(?i:\bcopies of the network\b)": "replicas, workers",
    r"(?i:\b(bury|buried|buries)\b)": "collect a failure",
    r"\b(that|which) (is|are) no [A-Z]": "is not a",
    r"\bbytes that are no\b": "not valid",
    r"^See above\.": "a sentence, or no docstring",
    r"^Nothing is\b": "a sentence, or no docstring",
    r"\b(Errand|Patient|Crew|Tally|Spill|Desk)\b": "the field's word",
}
PATTERNS = {re.compile(pattern, re.MULTILINE): better for pattern, better in BANNED.items()}

# Text that keeps a banned word: path, pattern of the text, and the reason.
ALLOWED = [
    ("pipeline/predict/find_images.py", r"\Afcnseg\.pictures\Z", "the name of a logger"),
    ("pipeline/predict/find_images.py", r"\Apicture\Z", "the name of a result"),
    ("", "lowest mean IU", "a value in files that were written by earlier versions"),
    ("", "drawn by lot", "a value in files that were written by earlier versions"),
    ("docs/terminology.md", r"\"mean IU\"", "the glossary explains once that the paper writes IU"),
    ("fcn_core/labels/tables.py", r"\Apicture\Z", "a class of NYUDv2"),
    ("flows/artifacts.py", r"\Apictures\Z", "a part of an artifact key"),
    (
        "docs/prefect.md",
        r"fcnseg-pictures|prefect-pictures\.png",
        "an artifact key, and a file name",
    ),
    (
        "pipeline/report/build.py",
        r"\Apictures\Z",
        "a key of the data that the scripts of the page read",
    ),
    ("docs/weights.md", r"--pictures\b", "an option"),
    ("docs/predict.md", r"\bPICTURES\b", "an argument"),
    ("docs/quick-start.md", r"`labelled(/\w+/)?`", "a folder that the commands of the page make"),
]
HISTORY = re.compile(r"docs/decisions/00(0\d|1[0-2])-")  # decisions stay in the words of their time


def _without_allowed(path: str, text: str) -> str:
    for where, phrase, _ in ALLOWED:
        if path.startswith(where):
            text = re.sub(phrase, lambda match: "·" * len(match[0]), text)
    return text


def _without_code(page: str) -> str:
    """Blank the code blocks of a page, and keep its line numbers."""
    return re.sub(
        r"^( *)```.*?^\1```",
        lambda block: "\n" * block[0].count("\n"),
        page,
        flags=re.DOTALL | re.MULTILINE,
    )


def _source_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every string literal, docstring and comment."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _hits(path: str, line: int, text: str) -> Iterator[str]:
    text = _without_allowed(path, text)
    for pattern, better in PATTERNS.items():
        for match in pattern.finditer(text):
            at = line + text.count("\n", 0, match.start())
            yield f"{path}:{at}: {match[0]!r}; write: {better}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_words_of_a_module(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    assert not [
        hit for line, text in _source_texts(path.read_text()) for hit in _hits(name, line, text)
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_words_of_a_page(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    if HISTORY.match(name):
        return
    assert not list(_hits(name, 1, _without_code(path.read_text())))


def test_the_check_finds_words_in_docstrings_messages_comments_and_text() -> None:
    source = 'def f():\n    """Draw a picture."""\n    raise E(f"{x}: nobody")  # by lot\n'
    hits = [hit for line, text in _source_texts(source) for hit in _hits("a.py", line, text)]
    assert [hit.split(";")[0] for hit in hits] == [
        "a.py:2: 'picture'",
        "a.py:3: 'nobody'",
        "a.py:3: 'by lot'",
    ]
    assert not list(_hits("a.md", 1, _without_code("```sh\nfcnseg run pictures labelled\n```\n")))
