"""Who is told of a night that failed: a server, a worker, our automations, and a webhook."""

from __future__ import annotations

import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from tests.support.prefect_site import POOL, Site, site, until

pytestmark = [pytest.mark.prefect, pytest.mark.slow]


class _Ear(BaseHTTPRequestHandler):
    """A webhook that keeps what it hears."""

    heard: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.heard.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


_BLOCK = """
from prefect.blocks.notifications import CustomWebhookNotificationBlock
words = {"text": "{{subject}} {{body}}"}
CustomWebhookNotificationBlock(name="ear", url="URL", json_data=words).save("ear", overwrite=True)
"""


def test_somebody_is_told_of_a_run_that_failed(tmp_path: Path) -> None:
    settings = {
        "FCNSEG_POOL": POOL, "FCNSEG_INPUT": str(tmp_path / "in"), "FCNSEG_WEIGHTS": "nothing",
        "FCNSEG_OUTPUT": str(tmp_path / "out"), "FCNSEG_TIME_ZONE": "UTC",
    }  # fmt: skip
    ear = ThreadingHTTPServer(("127.0.0.1", 0), _Ear)
    Thread(target=ear.serve_forever, daemon=True).start()
    with ear, site(settings) as here:
        code = _BLOCK.replace("URL", f"http://127.0.0.1:{ear.server_port}/")
        python(here, "-c", code)
        python(here, "-m", "flows.automations", "--notify", "custom-webhook/ear")
        run = here.run("nightly")
        state = here.ended(run)
        assert state["name"] == "Failed" and "\n" not in state["message"]
        [heard] = until("it is told", lambda: [told for told in _Ear.heard if run in told])
        assert "label-dataset: Failed" in heard and state["message"] in heard
        ear.shutdown()


def python(here: Site, *words: str) -> None:
    subprocess.run([sys.executable, *words], env=here.environment, check=True, timeout=300)
