"""The documentation as a site: built strictly, whole, and without anything from elsewhere."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

# What a browser fetches by itself: these attributes, and links of these relations.
LOADED = {
    **dict.fromkeys(("script", "img", "iframe", "source", "video", "audio", "embed"), "src"),
    **dict.fromkeys(("use", "image"), "href"),
    "object": "data",
}
RELATIONS = {
    *("stylesheet", "icon", "preload", "modulepreload", "prefetch", "manifest"),
    *("preconnect", "dns-prefetch"),
}


class Read(HTMLParser):
    """What a page loads, where it links to, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        self.classes |= set(found.get("class", "").split())
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in LOADED and LOADED[tag] in found:
            self.loads.append(found[LOADED[tag]])
        if "srcset" in found:
            self.loads += [part.split()[0] for part in found["srcset"].split(",")]
        if tag == "link" and RELATIONS & set(found.get("rel", "").split()):
            self.loads.append(found["href"])


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", site],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Read]:
    found = {path: Read(path.read_text()) for path in sorted(site.rglob("*.html"))}
    assert len(found) > 50
    return found


def is_elsewhere(address: str) -> bool:
    return address.startswith("//") or urlsplit(address).scheme in ("http", "https", "ftp")


def test_every_page_of_docs_is_in_the_site(site: Path) -> None:
    for path in DOCS.rglob("*.md"):
        assert (site / path.relative_to(DOCS).with_suffix(".html")).is_file(), path


def test_pages_load_nothing_from_elsewhere(site: Path, pages: dict[Path, Read]) -> None:
    for path, page in pages.items():
        assert page.loads
        assert [address for address in page.loads if is_elsewhere(address)] == [], path
        # The theme would fetch the library that draws these.
        assert "mermaid" not in page.classes, path
    styles = [path.read_text() for path in site.rglob("*.css")]
    styles += re.findall(r"<style>(.*?)</style>", (site / "how-it-works.html").read_text(), re.S)
    assert len(styles) >= 4
    for style in styles:
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style)


def test_links_and_anchors_of_the_site_hold(site: Path, pages: dict[Path, Read]) -> None:
    looked_at = 0
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            if path.name == "404.html" or urlsplit(link).scheme or not link:
                continue
            address, anchor = urldefrag(link)
            target = (path.parent / unquote(address)).resolve() if address else path
            assert target.is_file(), f"{path.relative_to(site)}: {link}"
            if anchor and target in pages:
                assert unquote(anchor) in pages[target].ids, f"{path.relative_to(site)}: {link}"
            looked_at += 1
    assert looked_at > 2000


def test_links_out_of_docs_lead_to_copies(site: Path, pages: dict[Path, Read]) -> None:
    assert "project/deploy/iam-policy.json" in pages[site / "deploy.html"].links
    copy = site / "project/deploy/iam-policy.json"
    assert copy.read_bytes() == (ROOT / "deploy/iam-policy.json").read_bytes()
    assert "../poison.html" in pages[site / "project/SECURITY.html"].links


def test_a_broken_link_anchor_or_forgotten_page_fails(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# A\n\n[b](b.md), [c](other.md#c), [d](/d.md)\n")
    (tmp_path / "docs/other.md").write_text("# Other\n")
    (tmp_path / "docs/forgotten.md").write_text("# Forgotten\n")
    (tmp_path / "mkdocs.yml").write_text(
        f"INHERIT: {ROOT}/mkdocs.yml\ndocs_dir: docs\nhooks: []\nextra_css: []\n"
        "nav: [index.md, other.md]\n"
    )
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    for fault in ("'b.md'", "'other.md#c'", "'/d.md'", "forgotten.md"):
        assert re.search(rf"WARNING.*{fault}|- {fault}", done.stderr), (fault, done.stderr)


def test_diagrams_are_what_their_script_draws(tmp_path: Path) -> None:
    drawn = runpy.run_path(str(DOCS / "images/diagrams.py"))
    for name, draw in (("flow", drawn["flow"]), ("fcn8s", drawn["network"])):
        draw(tmp_path / f"{name}.svg")
        assert (tmp_path / f"{name}.svg").read_text() == (DOCS / f"images/{name}.svg").read_text()


def test_diagrams_stand_in_their_pages(pages: dict[Path, Read], site: Path) -> None:
    for name in ("how-it-works", "paper"):
        assert "diagram" in pages[site / f"{name}.html"].classes


@pytest.fixture
def opened(chromium: Any, site: Path) -> Iterator[Any]:
    """A tab, and whatever went wrong in it; nothing must."""
    page = chromium.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: trouble.append(request.url)
            if not request.url.startswith(("file:", "data:", "blob:")) else None)  # fmt: skip
    yield page
    page.close()
    assert trouble == []


@pytest.mark.browser
def test_pages_open_from_a_disk_on_a_phone(opened: Any, site: Path) -> None:
    for name in ("index", "how-it-works", "costs", "operations", "api/fcn_core", "networks"):
        opened.goto((site / f"{name}.html").as_uri())
        assert opened.evaluate("document.body.dataset.mdColorScheme") == "slate"
        assert opened.evaluate("document.documentElement.scrollWidth") <= 390, name


@pytest.mark.browser
def test_search_works_without_a_server(opened: Any, site: Path) -> None:
    opened.set_viewport_size({"width": 1280, "height": 900})
    opened.goto((site / "index.html").as_uri())
    opened.locator(".md-search__input").fill("quarantine")
    opened.wait_for_selector(".md-search-result__item", timeout=30_000)
    assert opened.locator(".md-search-result__item").count() >= 3
