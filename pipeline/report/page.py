"""The report's page: a template, styles and scripts as one file that asks nobody for anything.

Its policy (CSP) lets only the scripts run whose digests it names, and loads nothing from
anywhere. What comes from data is either escaped by the template or stands in a block of JSON.
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
"""The charting library, byte for byte as released; `make vendor-charts` fetches it."""


UNPACKER = "fflate.js"
"""Likewise: reads zlib at once. The browser's own way answers later, and printing does not wait."""


SCRIPTS = (CHARTS, UNPACKER, "report.js", "charts.js", "gallery.js")

LICENSES = ("echarts.NOTICE", "echarts.LICENSE", "echarts.LICENSE-d3", "fflate.LICENSE")


_FOLDER = "report/assets"

_MAX_TEXT = 400

_USER_INFO = re.compile(r"(?<=://)[^/\s@]*@")


def page(context: Mapping[str, Any], data: Mapping[str, Any]) -> bytes:
    """The page as UTF-8.

    Args:
        context: what the template names.
        data: for the scripts, JSON-able.
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
    # A file name that is no UTF-8 must not cost the report.
    return html.encode("utf-8", "replace")


def json_block(data: Any) -> str:
    r"""JSON as it may stand in a `<script>` element, whatever is in it.

    >>> json_block({"key": "</script><!--"})
    '{"key":"\\u003c/script\\u003e\\u003c!--"}'
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def shown(text: str, limit: int = _MAX_TEXT) -> str:
    """A text from data as it may appear: of bounded length, and no credentials in its URLs.

    >>> shown("s3://key:secret@bucket/a.tar: nothing there", 22)
    's3://bucket/a.tar: no…'
    """
    text = _USER_INFO.sub("", text)
    return shorten(text, limit)


def percent(value: float | None, digits: int = 1) -> str:
    """A share for people.

    >>> percent(0.52349), percent(0.00001), percent(None)
    ('52.3%', '<0.1%', '—')
    """
    if value is None:
        return "—"
    least: float = 10**-digits
    return f"<{least}%" if 0 < value * 100 < least / 2 else f"{value * 100:.{digits}f}%"


@lru_cache(maxsize=16)
def asset(name: str) -> str:
    """The text of a file of the package."""
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
