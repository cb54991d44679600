"""The flow: its states and artifacts, on a real temporary Prefect server and an embedded Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import label
from flows.label import final_state, label_dataset, summary
from pipeline.job import ShardFailure
from pipeline.outcome import RunResult
from tests import world


def result(**changes: object) -> RunResult:
    scores = {"classes": ["a"], "iou": [0.5], "class_pixels": [3], "mean_iou": 0.5}
    values = {
        "output": "s3://b/out", "labels": world.TINY, "scores": scores, "images": 10,
        "failures": 0, "shards": 3, "committed": 3, "done_now": 3, "failed": (),
        "over_limit": False, "vanished": 0, "passed_over": (), "seconds": 1.0,
    }  # fmt: skip
    return RunResult(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({}, "Completed", "3 shards labelled, 3 of 3 done"),
        ({"done_now": 0}, "Completed", "nothing pending: all 3 shards are done"),
        ({"failures": 2}, "CompletedWithQuarantine", "2 images quarantined"),
        ({"over_limit": True, "failures": 9}, "Failed", "9 images quarantined: over the limit"),
        ({"failed": (ShardFailure("s", "s: cut", "ShardError"),)}, "Failed", "s: cut"),
    ],
)
def test_state_says_what_happened(changes: dict[str, object], name: str, message: str) -> None:
    state = final_state(result(**changes))
    assert state.name == name and message in (state.message or "")


def test_summary_takes_no_markup_from_data() -> None:
    failure = ShardFailure("s", "shard <b>*x*</b> [link](http://a)", "ShardError")
    text = summary(result(failed=(failure,)))
    assert "<b>" not in text.replace("\\<", "") and r"\[link\]" in text


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
        artifacts = {artifact.key: artifact for artifact in client.read_artifacts()}
    assert '"mean IU"' in str(artifacts["fcnseg-class-iou"].data)
    assert "3 of 3 done" in str(artifacts["fcnseg-summary"].data)
    again = label_dataset(config, return_state=True)
    assert "nothing pending" in (again.message or "")
    label.run_pipeline(world.config(shards, tmp_path / "local", weights))
    assert world.tree(tmp_path / "ray") == world.tree(tmp_path / "local")


@pytest.mark.prefect
@pytest.mark.filterwarnings("ignore")
def test_flow_fails_with_the_reason_in_one_line(
    prefect_server: None, weights: Path, tmp_path: Path
) -> None:
    config = world.config(tmp_path / "nothing", tmp_path / "out", weights)
    state = label_dataset(config, return_state=True)
    assert state.name == "Failed"
    assert (state.message or "").startswith(f"{tmp_path}/nothing: no such prefix")
    assert "\n" not in (state.message or "")
