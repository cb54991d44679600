"""Take the pictures of docs/prefect.md: three nights on a server, a worker and a head of their own.

Usage: python -m docs.images.prefect   (from the root, with `chromium` on the PATH)

The third night shows another scene than the two before, and a picture that cannot be decoded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from pipeline.cli.commands.demo import make_scene_shards
from pipeline.storage.store import Store
from tests.support import world
from tests.support.prefect_site import POOL, Site, dark_scenes, site
from tests.support.ray_head import ray_head

HERE = Path(__file__).parent
MOST_BYTES = 300_000


def main() -> None:
    """Three nights, three pictures."""
    base = Path(tempfile.mkdtemp(prefix="nights-"))
    source = Store(str(base / "in"))
    with ray_head() as head:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": head.token}
        os.environ.update(token)
        settings = {
            "FCNSEG_POOL": POOL, "FCNSEG_INPUT": str(base / "in"),
            "FCNSEG_OUTPUT": str(base / "out"), "FCNSEG_WEIGHTS": "demo",
            "FCNSEG_TIME_ZONE": "Europe/Berlin", "FCNSEG_RAY": head.dashboard,
        }  # fmt: skip
        with site({**token, **settings}) as here:
            for night in range(3):
                make_scene_shards(source, 2 * (night + 1), 16)
                if night == 2:
                    source.write("scenes-004.tar", world.tar({"cut.jpg": b"no picture"}))
                    source.write("scenes-005.tar", dark_scenes(32))
                run = here.run("nightly")
                print(here.ended(run)["message"])
            keys = {a["key"].split("-")[1]: a["id"] for a in _artifacts(here, run)}
            shoot(here, f"runs/flow-run/{run}", "prefect-run", 1000)
            shoot(here, f"artifacts/artifact/{keys['classes']}", "prefect-classes", 620)
            shoot(here, f"artifacts/artifact/{keys['pictures']}", "prefect-pictures", 1000)
    shutil.rmtree(base)


def _artifacts(here: Site, run: str) -> list[dict[str, str]]:
    wanted = {"artifacts": {"flow_run_id": {"any_": [run]}}}
    found: list[dict[str, str]] = here.api("artifacts/filter", wanted)
    return found


def shoot(here: Site, page: str, name: str, height: int) -> None:
    """A picture of a page of the server, as a PNG of few colours."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "page.png")
        subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--user-data-dir={folder}/profile", f"--window-size=1250,{height}",
             "--virtual-time-budget=20000", f"--screenshot={picture}",
             f"http://127.0.0.1:{here.port}/{page}"],
            check=True, capture_output=True, timeout=300,
        )  # fmt: skip
        small = Image.open(picture).convert("RGB").quantize(128)
        small.save(HERE / f"{name}.png", optimize=True)
    size = (HERE / f"{name}.png").stat().st_size
    assert size < MOST_BYTES, (name, size)


if __name__ == "__main__":
    main()
