"""A reader that leaves early is no error: `fcnseg report OUT | head -1`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.console import PipeSafeStream
from pipeline.driver import run
from tests.support import world


def leave_at_once(*arguments: object, stderr_too: bool = False) -> tuple[int, bytes]:
    """(exit code, stderr) of a command whose stdout no process reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        found = subprocess.run(
            [sys.executable, "-m", "pipeline", *map(str, arguments)],
            stdout=writer,
            stderr=writer if stderr_too else subprocess.PIPE,
            timeout=120,
        )
    finally:
        os.close(writer)
    return found.returncode, found.stderr or b""


@pytest.fixture(scope="module")
def finished_output(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    root = tmp_path_factory.mktemp("streams")
    run(world.config(world.write_shards(root / "in", 1, 2), root / "out", weights))
    return root / "out"


@pytest.mark.parametrize("arguments", [("report",), ("report", "--json")], ids=str)
def test_a_command_ends_as_if_it_had_been_read(
    finished_output: Path, arguments: tuple[str]
) -> None:
    (finished_output / "report.html").unlink(missing_ok=True)
    assert leave_at_once(*arguments, finished_output) == (0, b"")
    assert (finished_output / "report.html").exists()


def test_so_does_help() -> None:
    assert leave_at_once("run", "--help") == (0, b"")


def test_an_error_keeps_its_code_when_no_process_reads_it(tmp_path: Path) -> None:
    assert leave_at_once("report", tmp_path, stderr_too=True)[0] == 2


def test_what_is_read_arrives_and_the_rest_is_dropped() -> None:
    reader, writer = os.pipe()
    stream = PipeSafeStream(writer, "wb")
    assert stream.write(b"heard") == 5 and os.read(reader, 9) == b"heard"
    os.close(reader)
    assert stream.write(b"unheard") == 7 and stream.write(b"still there") == 11
    stream.close()
