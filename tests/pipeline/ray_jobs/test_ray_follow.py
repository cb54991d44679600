"""Metadata, end and log of a job: properties that need no cluster."""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError
from pipeline.executors.ray_connection import check_token
from pipeline.output.lease import Holder
from pipeline.ray_jobs import ray_follow, ray_submit
from pipeline.ray_jobs.job_metadata import (
    make_entrypoint,
    make_metadata,
    make_portable,
    parse_metadata,
)
from pipeline.ray_jobs.ray_client import UnreachableError
from pipeline.ray_jobs.ray_follow import MEANINGS, LogTail, describe_end
from pipeline.ray_jobs.ray_submit import JobOptions, make_runtime_env
from pipeline.training.config import load_train_config
from tests.documentation.test_docs import DOCS
from tests.support import world

# --- the configuration in the command line and the metadata ----------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def parse_entrypoint(line: str) -> RunConfig:
    """Return the configuration that `fcnseg run` reads from a command line of a shell."""
    words = shlex.split(line)
    assert words[:5] == ["exec", "python", "-m", "pipeline", "run"]
    assert words[7::2] == ["--set"] * len(words[8::2])
    return load_config(None, words[8::2], {"input.url": words[5], "output.url": words[6]})


@given(text, st.lists(text, max_size=3), st.floats(0, 1), st.booleans())
def test_a_configuration_arrives_unchanged(
    name: str, globs: list[str], fraction: float, anonymous: bool
) -> None:
    tree = {
        "input": {"url": "s3://b/in", "include": globs, "store": {"anonymous": anonymous}},
        "output": {"url": "s3://b/out", "masks": ["png", "tar"], "store": {"profile": name}},
        "model": {"weights": "demo"},
        "compute": {"executor": "local", "ray_address": "http://elsewhere:8265", "workers": 3},
        "limits": {"max_bad_fraction": fraction, "worker_memory": "8GiB"},
    }
    config = RunConfig.model_validate(tree)
    expected = config.model_dump()
    expected["compute"] |= {"executor": "ray", "ray_address": None}
    assert parse_entrypoint(make_entrypoint(config)).model_dump() == expected
    sent = make_portable(config)
    assert RunConfig.model_validate(sent).model_dump() == expected


@pytest.mark.parametrize(
    "flags",
    [
        {"input__url": "s3://key:secret@bucket/in"},
        {"model__weights": "https://host/w.safetensors?X-Amz-Signature=secret"},
    ],
)
def test_a_secret_is_refused(flags: dict[str, str]) -> None:
    config = world.config("s3://b/in", "s3://b/out", "demo", **flags)
    with pytest.raises(ConfigError, match=r"\*\*\*.*environment of the cluster") as caught:
        make_entrypoint(config)
    assert "secret@" not in str(caught.value) and "=secret" not in str(caught.value)


def test_relative_paths_are_made_absolute(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sent = parse_entrypoint(make_entrypoint(world.config("in", "out", "w.safetensors")))
    assert sent.input.url == str(tmp_path / "in")
    assert sent.output.url == str(tmp_path / "out")
    assert sent.model.weights == str(tmp_path / "w.safetensors")


def test_a_training_configuration_arrives_unchanged() -> None:
    flags = {
        "input.url": "s3://b/in", "input.label_set": "scenes", "val.url": "s3://b/val",
        "output.url": "s3://b/out", "train.stages": ["32s", "8s"], "model.init": "vgg.safetensors",
        "compute.ray_address": "http://h:8265", "compute.workers": 2,
    }  # fmt: skip
    config = load_train_config(None, [], flags)
    words = shlex.split(make_entrypoint(config))
    assert words[:8] == "exec python -m pipeline train s3://b/in --output s3://b/out".split()
    assert words[8::2] == ["--set"] * len(words[9::2])
    places = {"input.url": words[5], "output.url": words[7]}
    arrived = load_train_config(None, words[9::2], places)
    expected = config.model_dump()
    expected["compute"]["ray_address"] = "auto"
    expected["model"]["init"] = os.path.abspath("vgg.safetensors")
    assert arrived.model_dump() == expected
    metadata = make_metadata(config)
    assert parse_metadata(metadata) == arrived and parse_metadata(make_metadata(arrived)) == arrived
    secret = load_train_config(None, [], {**flags, "model.init": "https://u:secret@h/w"})
    with pytest.raises(ConfigError, match="credentials in a URL"):
        make_entrypoint(secret)


def test_the_time_to_stop_is_set_unless_it_is_given() -> None:
    name = "RAY_JOB_STOP_WAIT_TIME_S"
    assert make_runtime_env(JobOptions()) == {"env_vars": {name: "60"}}
    given_one = {"env_vars": {name: "5", "A": "b"}, "working_dir": "."}
    assert make_runtime_env(JobOptions(runtime_env=given_one)) == given_one


def test_a_cluster_that_has_answered_may_be_unreachable_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[Any] = [UnreachableError("a cluster", "no answer", "one"), []]

    class Cluster:
        submit = page = staticmethod(lambda name, **_: bool(name))

        def all(self) -> list[Any]:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return list(answer)

    monkeypatch.setattr(ray_submit, "Jobs", lambda _: Cluster())
    flags = {"input.url": "s3://b/in", "output.url": "s3://b/out"}
    config = load_train_config(None, [], flags)
    assert not ray_submit.submit_or_attach(config).attached and not answers


def test_the_metadata_of_other_jobs_has_no_configuration() -> None:
    for metadata in (None, {}, {"fcnseg_config": "no JSON"}, {"fcnseg_config": '{"input": 1}'}):
        assert parse_metadata(metadata) is None


# --- the end of a job ------------------------------------------------------------------------


def ended(status: str, code: int | None, message: str | None = None) -> Any:
    return SimpleNamespace(
        status=SimpleNamespace(value=status), driver_exit_code=code, message=message
    )


LOG = "Job entrypoint command failed with exit code {}, last available logs:\nsegmenting\n{}\n"


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (ended("SUCCEEDED", 0), (0, "all done")),
        (ended("FAILED", 3, LOG.format(3, "x")), (3, MEANINGS[3])),
        (ended("FAILED", 143, LOG.format(143, "x")), (143, MEANINGS[143])),
        (ended("FAILED", -9, LOG.format(-9, "x")), (137, MEANINGS[137])),
        (ended("FAILED", 2, LOG.format(2, "error: config a.b: c; d.")), (2, "config a.b: c; d.")),
        (ended("FAILED", 75, LOG.format(75, "error: held by x")), (75, "held by x")),
        (
            ended("FAILED", 4, LOG.format(4, "limits exceeded: 9 of 10\nreport: x")),
            (4, "limits exceeded: 9 of 10"),
        ),
        (
            ended("FAILED", None, "runtime_env setup failed: no pip\ntraceback"),
            (1, "runtime_env setup failed: no pip"),
        ),
        (ended("FAILED", None, None), (1, "no reason given")),
        (ended("STOPPED", None), (143, MEANINGS[143])),
    ],
)  # fmt: skip
def test_an_end_has_an_exit_code_and_a_reason(job: Any, expected: tuple[int, str]) -> None:
    assert describe_end(job, None) == expected


def test_a_stopped_driver_that_kept_its_lease_was_killed() -> None:
    holder = Holder("o", "h", "b", 1, 1.0, 1.0)
    assert describe_end(ended("STOPPED", None), holder) == (137, MEANINGS[137])


@pytest.mark.parametrize("code", MEANINGS)
def test_the_meaning_of_every_exit_code_is_documented(code: int) -> None:
    assert f"| {code} |" in DOCS


# --- the log ---------------------------------------------------------------------------------


class BrokenJobs:
    """A log that arrives in pieces over connections that break; each sends it from the start."""

    def __init__(self, log: str, cuts: list[int], breaks: list[int]) -> None:
        self.pieces = [log[a:b] for a, b in zip([0, *cuts], [*cuts, len(log)], strict=True)]
        self.breaks = list(breaks)

    async def tail(self, _submission_id: str) -> AsyncIterator[str]:
        end = self.breaks.pop(0) if self.breaks else len(self.pieces)
        for piece in self.pieces[:end]:
            yield piece
        if end < len(self.pieces):
            raise RuntimeError("WebSocket connection closed unexpectedly")


@given(
    st.text("ab\nä", max_size=60),
    st.lists(st.integers(0, 60), max_size=5),
    st.lists(st.integers(0, 5), max_size=3),
)
def test_every_line_comes_once_however_often_the_connection_breaks(
    log: str, cuts: list[int], breaks: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_follow, "PAUSE_SECONDS", 0.0)
        broken: Any = BrokenJobs(log, sorted(cut for cut in cuts if cut <= len(log)), breaks)
        with LogTail(broken, "id") as tail:
            tail.finish(60)
        lines, left_out = tail.take(10_000)
    expected = log.split("\n")
    assert list(lines) == (expected if expected[-1] else expected[:-1])
    assert left_out == 0


def test_of_many_lines_the_newest_are_kept_and_the_others_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_follow, "MAX_KEPT_LINES", 100)
    jobs: Any = BrokenJobs("".join(f"{n}\n" for n in range(250)), [], [])
    with LogTail(jobs, "id") as tail:
        tail.finish(60)
    assert tail.take(30) == (tuple(str(n) for n in range(220, 250)), 220)
    assert tail.take(30) == ((), 0)


# --- tokens ----------------------------------------------------------------------------------


def test_a_missing_token_is_found_before_ray_aborts(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.errors import ClusterError

    path = tmp_path / "token"
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    check_token("here")  # RAY_AUTH_MODE does not ask for a token
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ClusterError, match=r"here: no token: .*token is missing.*RAY_AUTH_TOKEN"):
        check_token("here")
    path.write_text("abc\n")
    check_token("here")
