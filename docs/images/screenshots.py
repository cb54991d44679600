"""Draw docs/images/report-*.png: the report of rendered scenes in Chromium.

Usage: python docs/images/screenshots.py   (Debian: apt-get install chromium)
"""

import io
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from pipeline.cli.commands.demo import make_scene_shards
from pipeline.config import load_config
from pipeline.driver import run
from pipeline.storage.store import Store

HERE = Path(__file__).parent
SHARDS, IMAGES = 16, 32


def main() -> None:
    """Label scenes in two runs, open the report, take its pictures."""
    with tempfile.TemporaryDirectory(prefix="scenes-") as folder:
        make_scene_shards(Store(f"{folder}/shards"), SHARDS, IMAGES)
        flags = {"input.url": f"{folder}/shards", "output.url": f"{folder}/output"}
        for limit in (SHARDS // 2, None):
            more = {"model.weights": "demo", "input.limit_shards": limit}
            run(load_config(None, [], {**flags, **more}))
        take(Path(folder, "output/report.html"))


def take(report: Path) -> None:
    """Write all pictures of one report."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium",
                                             args=["--no-sandbox"])  # fmt: skip

        def opened(width: int, height: int, scheme: Any) -> Any:
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            page.goto(report.as_uri())
            # The place it was made at is of no interest.
            page.evaluate("document.querySelector('h1').textContent = 's3://bucket/scenes'")
            for holder in page.locator(".canvas").all():
                holder.scroll_into_view_if_needed()
                page.wait_for_function("e => e.dataset.drawn", arg=holder.element_handle())
            page.evaluate("scrollTo({top: 0, behavior: 'instant'})")
            return page

        def see(page: Any, section: str) -> Any:
            page.evaluate(
                "id => document.getElementById(id).scrollIntoView({behavior: 'instant'})", section
            )
            page.wait_for_timeout(500)
            return page

        save("report-light", opened(1280, 1500, "light").screenshot())
        save("report-dark", see(opened(1280, 1500, "dark"), "confusion").screenshot())
        page = see(opened(1280, 860, "light"), "pictures")
        page.locator(".card").nth(1).click()
        page.wait_for_timeout(500)
        save("report-viewer", page.screenshot())
        phones = [opened(390, 1300, "light"), see(opened(390, 1300, "dark"), "confusion"),
                  see(opened(390, 1300, "light"), "pictures")]  # fmt: skip
        save("report-phone", *(page.screenshot() for page in phones))
        browser.close()


def save(name: str, *shots: bytes) -> None:
    """One picture of one or several beside each other, in 256 colours."""
    pictures = [Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots]
    width = sum(picture.width for picture in pictures) + 20 * (len(pictures) - 1)
    whole = Image.new("RGB", (width, pictures[0].height), "white")
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + 20
    few = whole.quantize(256, dither=Image.Dither.NONE)
    few.save(HERE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
