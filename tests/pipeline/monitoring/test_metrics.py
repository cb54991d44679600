"""What Prometheus sees of a run, by scraping one; and the file that it leaves."""

from __future__ import annotations

import logging
import re
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.driver import run
from pipeline.errors import ConfigError, StoreError
from pipeline.monitoring.metrics import METRICS, STAGES
from tests.support import world

Values = Mapping[tuple[str, str], float]


def values(text: str) -> dict[tuple[str, str], float]:
    """(name of the metric, its own label's value) to value; as Prometheus would read them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = {k: v for k, v in sample.labels.items() if k not in ("name", "version")}
            assert sample.labels["name"] == "nights" and len(own) <= 1
            found[sample.name, next(iter(own.values()), "")] = sample.value
    return found


@pytest.fixture
def port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def bad_shards(shards: Path) -> Path:
    (shards / "s1.tar").write_bytes(world.tar({**world.samples(1), "bad.jpg": b"no image"}))
    (shards / "cut.tar").write_bytes(world.tar(world.samples(5))[:3000])
    return shards


def scrape(port: int) -> dict[tuple[str, str], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return values(answer.read().decode())


def test_a_run_is_scraped_while_it_works_and_leaves_its_file(
    bad_shards: Path, weights: Path, tmp_path: Path, port: int
) -> None:
    kept = tmp_path / "fcnseg.prom"
    flags = {"monitoring__metrics_port": port, "monitoring__metrics_file": str(kept)}
    flags |= {"monitoring__metrics_name": "nights", "limits__chunk_images": 3}
    scraped: list[Values] = []
    result = run(
        world.config(bad_shards, tmp_path / "out", weights, **flags),
        lambda _: scraped.append(scrape(port)),
    )
    first, last = scraped[0], scraped[-1]
    assert first["fcnseg_shards", "pending"] == 4 and first["fcnseg_images_total", ""] == 0
    assert last["fcnseg_shards", "pending"] == 0
    assert (last["fcnseg_shards", "committed"], last["fcnseg_shards", "failed"]) == (3, 1)
    assert last["fcnseg_images_total", ""] == result.images == 12
    assert last["fcnseg_quarantined_images_total", ""] == result.failures == 1
    assert last["fcnseg_chunks_total", ""] == 6
    assert all(last["fcnseg_stage_seconds_total", stage] > 0 for stage in STAGES)
    assert last["fcnseg_network_copies", ""] == 1
    assert 0 < last["fcnseg_network_busy_ratio", ""] <= 1
    for one, other in pairwise(scraped):  # counters only grow
        assert all(one[key] <= other[key] for key in one if key[0].endswith("_total"))
    with pytest.raises(OSError):
        scrape(port)
    left = values(kept.read_text())
    assert left["fcnseg_run_exit_code", ""] == result.exit_code == 4
    assert left["fcnseg_run_end_time_seconds", ""] >= left["fcnseg_run_start_time_seconds", ""]
    assert result.record is not None and left["fcnseg_run_info", result.record.run] == 1
    assert {name for name, _ in left} == {metric.name for metric in METRICS}
    assert set(first) <= set(last) < set(left)


def test_watching_changes_no_byte(shards: Path, weights: Path, tmp_path: Path, port: int) -> None:
    flags = {"monitoring__metrics_port": port, "monitoring__log_format": "json"}
    run(world.config(shards, tmp_path / "a", weights, **flags))
    run(world.config(shards, tmp_path / "b", weights))
    assert world.tree(tmp_path / "a") == world.tree(tmp_path / "b")
    again = run(world.config(shards, tmp_path / "a", weights))  # the same fingerprint
    assert again.done_now == 0 and again.committed == 3


def test_the_file_says_how_a_run_ended(shards: Path, weights: Path, tmp_path: Path) -> None:
    kept = tmp_path / "fcnseg.prom"
    flags = {"monitoring__metrics_file": str(kept), "monitoring__metrics_name": "nights"}
    config = world.config(shards, tmp_path / "out", weights, **flags)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/masks").write_text("a file where a folder should be")
    with pytest.raises(StoreError):
        run(config)
    assert values(kept.read_text())["fcnseg_run_exit_code", ""] == 1

    (tmp_path / "out/masks").unlink()

    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, interrupt)
    assert values(kept.read_text())["fcnseg_run_exit_code", ""] == 130
    assert run(config).exit_code == 0
    assert values(kept.read_text())["fcnseg_run_exit_code", ""] == 0
    run(config)  # nothing pending: that is told as well
    left = values(kept.read_text())
    assert left["fcnseg_run_exit_code", ""] == left["fcnseg_shards", "committed"] == 0


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged, whatever commands in this process have set up."""
    logger = logging.getLogger("fcnseg")
    before, logger.propagate = logger.propagate, True
    yield caplog
    logger.propagate = before


def test_what_cannot_be_told_ends_no_run(
    shards: Path, weights: Path, tmp_path: Path, heard: pytest.LogCaptureFixture
) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        flags = {
            "monitoring__metrics_port": taken.getsockname()[1],
            "monitoring__metrics_file": str(tmp_path / "no folder/x.prom"),
        }
        assert run(world.config(shards, tmp_path / "out", weights, **flags)).exit_code == 0
    said = [record.getMessage() for record in heard.records]
    assert sum("metrics are not served" in text for text in said) == 1
    assert sum("metrics are not written" in text for text in said) == 1


@pytest.mark.parametrize("path", ["metrics.txt", "s3://bucket/x.prom"])
def test_a_file_that_no_collector_reads_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.prom"):
        world.config("in", "out", None, monitoring__metrics_file=path)


def test_names_follow_the_rules_of_prometheus() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"fcnseg_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        if metric.unit in ("seconds", "Unix time"):
            assert "_seconds" in metric.name
        assert metric.meaning.endswith(".")
