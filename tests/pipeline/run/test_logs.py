"""Logs as JSON: every line is an object, ids where they exist, no secrets."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline import logs
from tests.support import world

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    logger = logging.getLogger(logs.LOGGER)
    before = logger.handlers, logger.propagate, logger.level
    yield
    logs.use_text(logging.NullHandler())
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


def lines(text: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    for line in found:
        assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)
        assert line["time"].endswith("Z") and {"level", "logger", "message"} <= set(line)
    return found


def test_a_run_logs_objects_with_ids(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Command
) -> None:
    (shards / "s1.tar").write_bytes(world.tar({**world.samples(1), "bad.jpg": b"no image"}))
    (shards / "cut.tar").write_bytes(world.tar(world.samples(5))[:3000])
    out = tmp_path / "out"
    ran = ("run", shards, out, "--weights", weights, "--set", "limits.chunk_images=3")
    code, stdout, stderr = fcnseg(*ran, "--log-format", "json", "--json")
    assert code == 4
    found, name = lines(stderr), json.loads(stdout)["run"]["run"]
    committed = [line for line in found if line["message"].startswith("shard committed")]
    assert {line["shard"] for line in committed} == {"s0", "s1", "s2"}
    assert {line["run"] for line in committed} == {name}
    (bad,) = [line for line in found if line["message"].startswith("quarantined")]
    assert (bad["run"], bad["shard"], bad["chunk"], bad["level"]) == (name, "s1", 1, "warning")
    (failed,) = [line for line in found if line["level"] == "error"]
    assert failed["shard"] == "cut" and failed["message"].startswith("shard failed: ")
    # The next command of this process is for people again, whatever this one was.
    code, stdout, stderr = fcnseg(*ran)
    assert code == 4 and stderr.startswith("segmenting: ")


def test_the_configuration_may_say_so_and_errors_are_objects_too(
    tmp_path: Path, weights: Path, fcnseg: Command
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("monitoring: {log_format: json}\n")
    code, _, stderr = fcnseg("run", tmp_path / "none", tmp_path / "out", "--config", file)
    (line,) = lines(stderr)
    assert code == 2 and line["level"] == "error" and "--weights" in line["message"]
    options = ("--weights", weights, "--set", "limits.nothing=1", "--log-format", "json")
    code, _, stderr = fcnseg("run", tmp_path / "none", tmp_path / "out", *options)
    assert code == 2 and "limits.nothing" in lines(stderr)[0]["message"]


def test_evaluate_and_train_log_objects(
    shards: Path, weights: Path, tmp_path: Path, fcnseg: Command
) -> None:
    code, _, stderr = fcnseg("evaluate", shards, "--weights", weights, "--log-format", "json")
    assert code == 0 and lines(stderr)[-1]["message"].startswith("scoring: 3/3 shards")
    sets = ["max_steps=2", "crop=16", "batch_size=2", "log_every=1", "eval_every=2"]
    options = [word for name in sets for word in ("--set", f"train.{name}")]
    options += ["--init", weights, "--variant", "fcn8s", "--val", shards]
    options += [
        "--set",
        "model.width=0.03125",
        "--set",
        "compute.threads=1",
        "--log-format",
        "json",
    ]
    code, _, stderr = fcnseg("train", shards, "--output", tmp_path / "weights", *options)
    assert code == 0, stderr
    assert any("step 2/2" in line["message"] for line in lines(stderr))


def test_a_process_of_its_own_says_nothing_else(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "pipeline", "run", shards, tmp_path / "out"]
    words += ["--weights", weights, "--log-format", "json"]
    fine = subprocess.run(words, capture_output=True, text=True, check=True)
    assert lines(fine.stderr)[-1]["message"].startswith("segmenting: 3/3 shards")
    script = (
        "import logging\nfrom pipeline import logs\nlogs.use_json()\n"
        "logging.getLogger('somebody').warning('else')\nlogging.getLogger('x').info('no')\n"
        "1 / 0\n"
    )
    broken = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    other, fault = lines(broken.stderr)
    assert (other["logger"], other["message"]) == ("somebody", "else")
    assert fault["level"] == "critical" and "ZeroDivisionError" in fault["traceback"]


def test_secrets_are_masked_and_threads_keep_their_ids_apart() -> None:
    def line(text: str, *args: object) -> dict[str, Any]:
        record = logging.LogRecord("fcnseg", logging.INFO, "", 0, text, args, None)
        return dict(json.loads(logs.JsonLines().format(record)))

    assert line("GET %s", "https://me:word@host/a?sig=abc")["message"] == (
        "GET https://***@host/a?sig=***"
    )
    with logs.of_run("r"), logs.about(shard="s\udcff", chunk=2):
        found = line("x")
    assert (found["run"], found["shard"], found["chunk"]) == ("r", "s\udcff", 2)
    assert set(line("x")) == {"time", "level", "logger", "message"}
    try:
        raise OSError("http://me:word@host refused")
    except OSError:
        record = logging.LogRecord("fcnseg", logging.ERROR, "", 0, "x", (), sys.exc_info())
    assert "word" not in logs.JsonLines().format(record)


def test_what_a_signal_handler_writes_is_an_object(capfd: pytest.CaptureFixture[str]) -> None:
    logs.use_json()
    os.write(2, logs.encode_warning("stopping"))
    assert lines(capfd.readouterr().err)[0]["message"] == "stopping"
