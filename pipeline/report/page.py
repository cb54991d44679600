"""Render the page of the report: template, styles, scripts and data in one HTML file.

The content security policy (CSP) allows only the scripts whose digests it lists, and no requests.
Text from data is escaped by the template or held in a JSON block.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.text import shorten

CHARTS = "echarts.min.js"
"""Charting library, byte for byte as released; fetched by `make vendor-charts`."""


UNPACKER = "fflate.js"
"""Zlib library, byte for byte as released. It is synchronous, unlike the browser's own
DecompressionStream, and printing cannot wait."""


SCRIPTS = (CHARTS, UNPACKER, "report.js", "charts.js", "gallery.js")

LICENSES = ("echarts.NOTICE", "echarts.LICENSE", "echarts.LICENSE-d3", "fflate.LICENSE")


_FOLDER = "report/assets"

_MAX_TEXT = 400

_USER_INFO = re.compile(r"(?<=://)[^/\s@]*@")


def page(context: Mapping[str, Any], data: Mapping[str, Any]) -> bytes:
    """Return the page as UTF-8.

    Args:
        context: variables of the template.
        data: data of the scripts, JSON-able.
    """
    html = (
        _environment()
        .get_template("report.html")
        .render(
            **context,
            styles=asset("report.css"),
            scripts=[asset(name) for name in SCRIPTS],
            licenses=[asset(name) for name in LICENSES],
            policy=_policy(),
            data=json_block(data),
        )
    )
    # A file name that is not valid UTF-8 must not prevent the report.
    return html.encode("utf-8", "replace")


def json_block(data: Any) -> str:
    r"""Return data as JSON that is safe inside a `<script>` element.

    >>> json_block({"key": "</script><!--"})
    '{"key":"\\u003c/script\\u003e\\u003c!--"}'
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def shown(text: str, limit: int = _MAX_TEXT) -> str:
    """Return a text from data, shortened, and without credentials in its URLs.

    Args:
        text: text from data, such as a key, a URL or a reason.
        limit: longest result, in characters.

    >>> shown("s3://key:secret@bucket/a.tar: nothing there", 22)
    's3://bucket/a.tar: no…'
    """
    text = _USER_INFO.sub("", text)
    return shorten(text, limit)


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share between 0 and 1 as a percentage; a dash for None.

    >>> percent(0.52349), percent(0.00001), percent(None)
    ('52.3%', '<0.1%', '—')
    """
    if value is None:
        return "—"
    least: float = 10**-digits
    return f"<{least}%" if 0 < value * 100 < least / 2 else f"{value * 100:.{digits}f}%"


@lru_cache(maxsize=16)
def asset(name: str) -> str:
    """Return the text of a file in `report/assets`."""
    return (files("pipeline") / _FOLDER / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _policy() -> str:
    digests = (hashlib.sha256(asset(name).encode()).digest() for name in SCRIPTS)
    sources = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline", _FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "shown": shown}
    return environment
