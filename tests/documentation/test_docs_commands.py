"""Commands and code of the documentation: run here, or marked as not run, with a reason."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documentation.test_docs import COMMANDS, ROOT, shell_lines

DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
RUN = {"quick-start.md", "prefect.md"}
"""Pages whose shell blocks are run: here, and in tests/flows/test_docs_prefect.py."""
RUN_PYTHON = ["migrating.md", "tuning.md", "export.md"]
MARK = re.compile(r"\(Not run[^:]*(: |because )[^)]{20,}")
PARSED = "A test parses every `fcnseg` line."
"""What a page says once of commands whose names of files and buckets are made up."""


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """(what stands in a block, the line after it)."""
    form = rf"(?ms)^```(?:{'|'.join(languages)})\n(.*?)^```\n+(?=([^\n]*))"
    return re.findall(form, (DOCS / page).read_text() + "\n\n")


def is_ours(line: str) -> bool:
    """Whether test_docs.py parses it."""
    words = line.split()
    return words[0] == "fcnseg" and any(" ".join(words[1:n]) in COMMANDS for n in (2, 3))


def why_not_run(page: str) -> list[str]:
    """Blocks that are neither run nor marked."""
    text = (DOCS / page).read_text()
    if "None of what follows was run: " in text or page in RUN:
        return []
    found = []
    for block, after in blocks(page, "sh", "console"):
        lines = shell_lines(f"```sh\n{block}```")
        parsed = all(is_ours(line) for line in lines) and PARSED in text
        if not parsed and not MARK.match(after):
            found.append(block)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page: str) -> None:
    assert why_not_run(page) == []
    if blocks(page, "python"):
        assert page in RUN_PYTHON or page == "networks.md"
    for reason in re.findall(r"(?m)^\(Not run.*", (DOCS / page).read_text()):
        assert MARK.match(reason), reason


def test_networks_of_the_page_are_made() -> None:
    import torch

    ((code, _),) = blocks("networks.md", "python")
    with torch.device("meta"):
        exec(code, {})


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands of the quick start were run; their output is in `said`."""
    folder = tmp_path_factory.mktemp("walk")
    found = [block for block, after in blocks("quick-start.md", "sh") if not MARK.match(after)]
    assert len(found) == 5
    (folder / "said").write_text(shell(folder, "\n".join(found)))
    (folder / "photos/broken.jpg").unlink()
    return folder


def shell(folder: Path, script: str) -> str:
    """What commands print, on both streams; they must not fail."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", script], cwd=folder, env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (script, done.stdout)
    return done.stdout


@pytest.mark.slow
def test_the_quick_start_prints_what_it_says(walked: Path) -> None:
    said = (walked / "said").read_text()
    promised = "".join(block for block, _ in blocks("quick-start.md", "text")).splitlines()
    assert len(promised) == 5
    # Another processor moves a few pixels: figures stand for figures.
    for line in promised:
        form = re.sub(r"\\?\d[\d\\.,]*", r"[\\d.,]+", re.escape(line))
        assert re.search(form, said), line
    assert "exit code 3\n" in said
    assert (walked / "looks/scenes-000_scene-5000000-side.png").is_file()
    assert list((walked / "labelled/png").rglob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_PYTHON)
def test_python_of_the_pages_runs(page: str, walked: Path) -> None:
    if page == "export.md":
        for form, place in (("hf", "masks"), ("webdataset", "tars")):
            shell(walked, f"fcnseg export demo/output {place} --format {form}")
        first = min((walked / "tars").rglob("*.tar"))
        (walked / "shards").mkdir()
        first.rename(walked / "shards/a.tar")
    elif page == "tuning.md" and not (walked / "out").exists():
        shell(walked, "fcnseg run photos out --weights demo")
    code = "\n".join(block for block, _ in blocks(page, "python"))
    if page == "export.md":
        code += "\nassert next(iter(dataset))['mask.png'].dtype == np.uint8\n"
    # `run` starts processes, and they import the main module.
    (walked / f"{page}.py").write_text(code)
    printed = shell(walked, f"python {page}.py")
    expected = {"migrating.md": "% of the pixels are the same", "tuning.md": "ms an image"}
    assert expected.get(page, "") in printed
