"""The Grafana dashboard shows what the code exports, and all of it; Grafana can load it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from pipeline.monitoring.metrics import METRICS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy/grafana/fcn-pipeline.json").read_text()
DASHBOARD = json.loads(TEXT)
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
PAGE = (ROOT / "docs/monitoring.md").read_text()
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def expressions() -> Iterator[str]:
    for panel in PANELS:
        for target in panel.get("targets", ()):
            assert target["datasource"] == DATASOURCE, panel["title"]
            yield target["expr"]


def own(text: str) -> set[str]:
    return set(re.findall(r"(?<![a-z])fcnseg_[a-z_]+", text))


def test_it_shows_every_metric_and_no_other() -> None:
    assert own("".join(expressions())) == {metric.name for metric in METRICS}
    assert own(TEXT) == {metric.name for metric in METRICS}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_labels_that_it_asks_for_exist(metric: Any) -> None:
    for found in re.findall(r"{([^}]*\b" + metric.name + r'"[^}]*)}', "".join(expressions())):
        labels = set(re.findall(r"(\w+)=", found)) - {"__name__", "name"}
        assert labels <= {metric.label}


@pytest.mark.parametrize("expression", [*expressions()])
def test_every_query_is_promql(expression: str) -> None:
    promql_parser.parse(expression.replace("$__rate_interval", "5m"))
    with pytest.raises(ValueError):
        promql_parser.parse(f"{expression})")


def test_counters_are_shown_as_rates() -> None:
    for expression in expressions():
        for selector in re.findall(r"(\w*)\(?{__name__=~\"\(ray_\)\?\w+_total", expression):
            assert selector == "rate", expression


def test_grafana_can_load_it() -> None:
    assert DASHBOARD["schemaVersion"] >= 36 and DASHBOARD["uid"] and DASHBOARD["title"]
    assert "id" not in DASHBOARD  # of one Grafana's database
    variables = {item["name"]: item for item in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["name"]["datasource"] == DATASOURCE
    used = set(re.findall(r"\$\{?(\w+)", TEXT))
    assert used == {*variables, "__rate_interval"}
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["type"] in ("row", "stat", "timeseries", "table") and panel["title"]
        if panel["type"] != "row":
            assert panel["datasource"] == DATASOURCE and panel["targets"] and panel["description"]
            letters = [target["refId"] for target in panel["targets"]]
            assert len(set(letters)) == len(letters)


def test_panels_lie_beside_one_another() -> None:
    places = [panel["gridPos"] for panel in PANELS]
    for place in places:
        assert 0 <= place["x"] and 0 < place["w"] and place["x"] + place["w"] <= 24
    for a, b in combinations(places, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (a, b)


def test_the_page_has_the_table_of_the_code() -> None:
    rows = re.findall(r"(?m)^\| `(fcnseg_\w+)` \| (\w+) \| ([^|]+) \| ([^|]*) \| ([^|]+) \|$", PAGE)
    wanted = [
        (m.name, m.kind, m.unit, f"`{m.label}`" if m.label else "", m.meaning) for m in METRICS
    ]
    assert [tuple(cell.strip() for cell in row) for row in rows] == wanted
