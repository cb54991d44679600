"""Hooks of MkDocs: add linked project files to the site, and put diagrams into their pages.

Pages are also read on a code host, where a link may lead out of docs/. In the site, such a link
leads to a copy of the file below project/; Markdown files become pages. Diagrams become part of
their page, so that they follow its colors.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/RESULTS.md",
    "deploy/README.md",
)
_DIAGRAM = re.compile(r'<img alt="[^"]*" src="(?:[^"]*/)?(\w+)\.svg" ?/?>')
_LINK = re.compile(r"(\]\()([^)#\s:]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of PAGES, and the project files that these and the pages of docs/ link to."""
    wanted = set(PAGES)
    for page in [*PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]:
        text = (ROOT / page).read_text()
        targets = {_target(page, link) for _, link in _LINK.findall(text)}
        wanted |= {t for t in targets if not t.startswith("docs/") and (ROOT / t).is_file()}
    for path in sorted(wanted):
        files.append(File.generated(config, f"project/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace links out of docs/ or into docs/ with links of the site."""
    here = _in_project(page.file.src_uri)

    def turned(match: re.Match[str]) -> str:
        target = _target(here, match[2])
        if here.startswith("docs/") and target.startswith("docs/"):
            return match[0]
        return match[1] + posixpath.relpath(
            _in_site(target), posixpath.dirname(page.file.src_uri) or "."
        )

    return _LINK.sub(turned, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace `img` elements of diagrams with the SVG text."""
    images = Path(config.docs_dir, "images")
    return _DIAGRAM.sub(lambda match: (images / f"{match[1]}.svg").read_text(), html)


def _target(page: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _in_project(uri: str) -> str:
    return uri.removeprefix("project/") if uri.startswith("project/") else f"docs/{uri}"


def _in_site(path: str) -> str:
    return path.removeprefix("docs/") if path.startswith("docs/") else f"project/{path}"
