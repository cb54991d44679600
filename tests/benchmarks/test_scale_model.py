"""The model of a large run: its arithmetic by hand, and the documents that print it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import scale_model
from benchmarks.scale_model import GIVEN, Driver, Pieces, driver, whole_run

# 1 ms of work and 1 ms for each request.
PIECES = Pieces(0.00025, 0.00025, 0.00025, 0.00025, 5000, 0.001, 0.002)
TWO_REQUESTS = Driver(threads=4, window=8, requests=2)
ROOT = Path(__file__).parents[2]


def test_a_driver_that_keeps_up_reaches_the_rate() -> None:
    found = driver(PIECES, 10, 0.05, TWO_REQUESTS)
    assert (found.reached_per_second, found.limit) == (10, "receipts")
    assert found.cpu_ms_per_shard == pytest.approx(3)
    assert found.commit_ms == pytest.approx(100.75)  # two answers, and the commit's own work


def test_waiting_for_answers_limits_a_driver_of_few_threads() -> None:
    found = driver(PIECES, 100, 0.05, TWO_REQUESTS)
    assert found.limit == "waiting for answers"
    assert found.reached_per_second == pytest.approx(4 / 0.10075)
    assert found.commit_ms == pytest.approx(1000 * 8 / (4 / 0.10075))  # the window is full
    serial = driver(PIECES, 0, 0.05, scale_model.SERIAL)
    assert serial.reached_per_second == pytest.approx(1 / 0.10075)


def test_one_core_limits_a_driver_of_many_threads() -> None:
    many = replace(TWO_REQUESTS, threads=100)
    assert driver(PIECES, 1000, 0.05, many).limit == "one core"
    assert driver(PIECES, 1000, 0.05, many).reached_per_second == pytest.approx(1000 / 3)
    half = replace(PIECES, core_share=0.5)
    assert driver(half, 1000, 0.05, many).reached_per_second == pytest.approx(500 / 3)


def test_a_whole_run_by_hand() -> None:
    given = {name: item.value for name, item in GIVEN.items()} | {
        "images": 512_000, "GPUs": 10, "images a second and GPU": 51.2, "images a shard": 512,
        "seconds until S3 answers": 0.05, "seconds until a wave works": 30,
        "GPU failures a GPU hour": 0.36, "chunks in flight a GPU": 2,
    }  # fmt: skip
    found = whole_run(PIECES, TWO_REQUESTS, given)
    assert found["shards"] == 1000 and found["shards a second that the GPUs make"] == 1
    assert found["minutes of segmenting, without starts"] == pytest.approx(1000 / 60)
    assert found["minutes of starting waves"] == 0.5
    # 3 puts, 6 gets and a deletion for each shard, and one page.
    assert found["million requests"] == pytest.approx(0.010001)
    assert found["dollars for requests"] == pytest.approx(3001 * 5e-6 + 6000 * 4e-7)
    assert found["GPUs that fail"] == pytest.approx(1)
    assert found["images segmented twice"] == pytest.approx(1024)


def test_the_document_has_the_tables_that_the_model_prints() -> None:
    figures, before = (json.loads(path.read_text()) for path in
                       (scale_model.FIGURES, scale_model.BEFORE))  # fmt: skip
    assert scale_model.tables(figures, before) in (ROOT / "docs/simulation.md").read_text()
