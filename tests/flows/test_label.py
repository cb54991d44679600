"""The flow: its states and artifacts, on a real temporary Prefect server and an embedded Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fcn_core.errors import FcnError
from flows import execution as work
from flows import label
from flows.artifacts import artifact_key, class_rows, plain, read_outcome, summary
from flows.label import ScheduledRun, label_dataset
from flows.states import FlowEnding, final_state
from pipeline.driver import run as run_pipeline
from pipeline.errors import ConfigError, StoreError
from tests.support import world

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def outcome(root: Path, weights: Path, bad: int = 0, **flags: Any) -> Any:
    """What a real local run left behind."""
    for index in range(bad):
        members = {**world.samples(9), f"bad{index}.jpg": b"x"}
        (root / "in" / f"bad{index}.tar").write_bytes(world.tar(members))
    config = world.config(root / "in", root / "out", weights, **flags)
    run_pipeline(config)
    return read_outcome(config, LONG_AGO, [])


def scores_of(record: Any) -> dict[str, float]:
    iou = zip(record.scores["classes"], record.scores["iou"], strict=True)
    return {**dict(iou), "mean IoU": record.scores["mean_iou"]}


def test_states_say_what_happened(shards: Path, weights: Path) -> None:
    found = outcome(shards.parent, weights)
    state = final_state(FlowEnding(0), found)
    assert (state.name, state.message) == ("Completed", "3 shards segmented, 3 of 3 done")
    config = world.config(shards, shards.parent / "out", weights)
    later = read_outcome(config, datetime(2200, 1, 1, tzinfo=UTC), [])
    state = final_state(FlowEnding(0), later)
    assert (state.name, state.message) == ("Completed", "nothing pending: all 3 shards are done")


def test_quarantine_and_limits_have_their_states(shards: Path, weights: Path) -> None:
    found = outcome(shards.parent, weights, bad=2)
    state = final_state(FlowEnding(3), found)
    assert state.name == "CompletedWithQuarantine"
    assert state.message == "5 shards segmented, 5 of 5 done, 2 images quarantined"
    state = final_state(FlowEnding(4), found)
    assert (state.name, state.message) == ("Failed", "2 images quarantined: over the limit")


def test_a_shard_that_failed_is_the_reason(shards: Path, weights: Path) -> None:
    (shards / "cut.tar").write_bytes((shards / "s0.tar").read_bytes()[:700])
    state = final_state(FlowEnding(4), outcome(shards.parent, weights))
    assert state.name == "Failed" and "cut" in (state.message or "")
    assert "\n" not in (state.message or "")


@pytest.mark.parametrize(
    ("code", "again"),
    [(1, True), (75, True), (137, True), (139, True), (0, False), (2, False), (3, False),
     (4, False), (130, False), (143, False)],
)  # fmt: skip
def test_only_what_may_help_is_tried_again(code: int, again: bool) -> None:
    assert FlowEnding(code, "x").may_be_retried is again
    if code not in (0, 3, 4):
        state = final_state(FlowEnding(code, "first\nsecond"), None)
        assert (state.name, state.message) == ("Failed", "first second")


def test_classes_have_the_difference_to_the_run_before(shards: Path, weights: Path) -> None:
    root = shards.parent
    outcome(root, weights)
    (shards / "t.tar").write_bytes(world.tar(world.samples(7)))
    found = outcome(root, weights)
    rows = {row["class"]: row for row in class_rows(found)}
    assert set(rows) == {*world.TINY.classes, "mean IoU"}
    assert found.previous.shards == 3 and found.record.shards == 1
    now, then = (scores_of(record) for record in (found.record, found.previous))
    for name, row in rows.items():
        assert row["difference"] == f"{now[name] - then[name]:+.4f}"


def test_a_new_output_is_compared_with_that_of_an_earlier_night(
    shards: Path, weights: Path, tmp_path: Path
) -> None:
    first = ScheduledRun.of(
        world.config(shards, f"{tmp_path}/out-{{date}}", weights),
        datetime(2026, 11, 20, 2, tzinfo=UTC),
    )
    assert first.run.output.url.endswith("out-2026-11-20")
    local = first.run.model_copy(
        update={"compute": first.run.compute.model_copy(update={"executor": "local"})}
    )
    run_pipeline(local)
    second = ScheduledRun.of(first.config, datetime(2026, 11, 23, 2, tzinfo=UTC))
    run_pipeline(second.run)
    found = read_outcome(second.run, LONG_AGO, label.earlier_outputs(second.config, second.moment))
    assert found.previous is not None and found.previous.run != found.record.run
    assert [row["difference"] for row in class_rows(found)] == ["+0.0000"] * 4


def test_summary_takes_no_markup_from_data(shards: Path, weights: Path) -> None:
    found = outcome(shards.parent, weights)
    found.status.marker_document["failed_shards"] = {"s": "shard <b>*x*</b> [link](http://a)"}
    text = summary(found, [("Ray job", "http://h/#/jobs/j")])
    assert "<b>" not in text.replace("\\<", "") and r"\[link\]" in text
    assert "](http://h/#/jobs/j)" in text
    assert f"]({(shards.parent / 'out/report.html').as_uri()})" in text
    assert plain("a|b") == "a\\|b"


def test_keys_of_two_series_differ_and_are_keys() -> None:
    long = "s3://bucket/" + "a" * 300
    keys = {artifact_key("summary", url) for url in ("s3://b/out", "s3://b/Out", long, f"{long}b")}
    assert len(keys) == 4
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for key in keys)


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.mark.prefect
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Prefect's server and its database driver warn at will
def test_flow_labels_and_publishes(
    prefect_server: None, shards: Path, weights: Path, tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client

    (shards / "s2.tar").write_bytes(world.tar({**world.samples(2), "bad.jpg": b"x"}))
    config = world.config(shards, tmp_path / "ray", weights, compute__executor="auto")
    state = label_dataset(config, return_state=True)
    assert state.name == "CompletedWithQuarantine", state.message
    with get_client(sync_client=True) as client:
        artifacts = {str(a.key).split("-")[1]: a.data for a in client.read_artifacts()}
    assert {row["class"] for row in json.loads(str(artifacts["classes"]))} >= {"mean IoU"}
    assert "3 of 3 done" in str(artifacts["summary"])
    assert "data:image/jpeg;base64," in str(artifacts["pictures"])
    again = label_dataset(config, return_state=True)
    assert "nothing pending: all 3 shards are done" in (again.message or "")
    run_pipeline(world.config(shards, tmp_path / "local", weights))
    assert world.tree(tmp_path / "ray") == world.tree(tmp_path / "local")


@pytest.mark.prefect
@pytest.mark.filterwarnings("ignore")
def test_flow_fails_with_the_reason_in_one_line(
    prefect_server: None, weights: Path, tmp_path: Path
) -> None:
    config = world.config(tmp_path / "nothing", tmp_path / "out", weights)
    state = label_dataset(config, return_state=True)
    assert state.name == "Failed"
    assert (state.message or "").startswith(f"{tmp_path}/nothing: no objects: ")
    assert "\n" not in (state.message or "")
    dated = world.config(tmp_path / "{date}", tmp_path / "out", weights)
    assert "an output for every input" in str(label_dataset(dated, return_state=True).message)


@pytest.mark.prefect
@pytest.mark.filterwarnings("ignore")
def test_trouble_is_tried_again_and_a_wrong_configuration_never(
    prefect_server: None, shards: Path, weights: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    errors: list[FcnError] = [
        StoreError("s3://b", "timeout", "an answer"),
        ConfigError("config x", "1", "2"),
    ]
    calls = []

    def failing(*_: object) -> None:
        calls.append(errors[len(calls)])
        raise calls[-1]

    monkeypatch.setattr(work, "run_pipeline", failing)
    monkeypatch.setattr(work, "RETRY_SECONDS", (0.01, 0.01, 0.01))
    state = label_dataset(world.config(shards, tmp_path / "out", weights), return_state=True)
    assert calls == errors
    assert (state.name, state.message) == ("Failed", str(errors[1]))


@pytest.mark.prefect
@pytest.mark.filterwarnings("ignore")
def test_a_run_over_its_hours_is_stopped(
    prefect_server: None, shards: Path, weights: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    import time

    ends = []

    def endless(*_: object) -> None:
        try:
            while True:
                time.sleep(0.1)
        finally:
            ends.append("interrupted")

    monkeypatch.setattr(work, "run_pipeline", endless)
    config = world.config(shards, tmp_path / "out", weights, limits__max_hours=20 / 3600)
    state = label_dataset(config, return_state=True)
    assert ends == ["interrupted"]
    assert state.name == "Failed"
    assert state.message == "not done after 0.00555556 h: stopped; run again to resume"
