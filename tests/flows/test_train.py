"""The training flow: its states and artifacts, on a temporary Prefect server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.exceptions import TerminationSignal

import flows.train
import pipeline.training.driver
from flows import execution as work
from flows.artifacts import artifact_key
from flows.train import message, stop_training, summary, train_dataset, train_in_process
from pipeline.errors import ConfigError, StoreError
from pipeline.ray_jobs import ray_follow, ray_submit
from pipeline.ray_jobs.ray_follow import JobReading
from pipeline.ray_jobs.ray_submit import SubmittedJob
from pipeline.training.config import TrainComputeConfig, TrainConfig, load_train_config
from pipeline.training.progress import TrainResult
from tests.support import world


def result(**changes: object) -> TrainResult:
    best = {"step": 4, "evaluation": {"mean_iou": 0.5, "iou": [0.5, 0.5]}}
    values = {
        "output": "s3://b/w", "step": 6, "total_steps": 6, "variant": "fcn8s", "bad": 0,
        "last_sha256": "abc", "best": best, "classes": ("a", "b"), "trained_now": 6, "seconds": 1.0,
    }  # fmt: skip
    return TrainResult(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "6 steps, 6 of 6 done, best mean IoU 0.5000 at step 4"),
        ({"trained_now": 2, "best": None}, "2 steps, 6 of 6 done"),
        ({"trained_now": 0}, "finished before: all 6 steps are done"),
        ({"bad": 3, "best": None}, "6 steps, 6 of 6 done, 3 bad samples skipped"),
    ],
)
def test_a_message_says_what_happened(changes: dict[str, object], said: str) -> None:
    assert message(result(**changes)) == said
    assert said in summary(result(**changes))


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


def config(root: Path, **changes: object) -> TrainConfig:
    world.write_shards(root / "in", 1, 3)
    (root / "tiny.yaml").write_text("{name: tiny, classes: [ground, thing, stuff]}")
    flags = {
        "input.url": str(root / "in"), "input.label_set": str(root / "tiny.yaml"),
        "val.url": str(root / "in"), "output.url": str(root / "out"), "model.variant": "fcn32s",
        "model.width": 1 / 32, "train.max_steps": 2, "train.batch_size": 1, "train.crop": 16,
        **changes,
    }  # fmt: skip
    return load_train_config(None, [], flags)


@pytest.mark.prefect
@pytest.mark.filterwarnings("ignore")  # Prefect's server and its database driver warn at will
def test_flow_trains_publishes_and_leaves_a_finished_training_alone(
    prefect_server: None, tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client

    # As a deployment leaves it whose variable for the cluster is not set.
    wanted = config(tmp_path, **{"compute.ray_address": ""})
    state = train_dataset(wanted, return_state=True)
    assert state.name == "Completed", state.message
    assert (state.message or "").startswith("2 steps, 2 of 2 done, best mean IoU")
    assert (tmp_path / "out" / "last.safetensors").exists()
    with get_client(sync_client=True) as client:
        artifacts = {artifact.key: artifact for artifact in client.read_artifacts()}
    classes, summed, bar = (
        artifacts[artifact_key(f"train-{name}", wanted.output.url)].data
        for name in ("classes", "summary", "progress")
    )
    assert '"mean IoU"' in str(classes) and "last.safetensors" in str(summed)
    assert float(str(bar)) == 100
    again = train_dataset(wanted, return_state=True)
    assert "finished before" in (again.message or "")


@pytest.mark.prefect
@pytest.mark.filterwarnings("ignore")
def test_flow_fails_with_the_reason_in_one_line(prefect_server: None, tmp_path: Path) -> None:
    missing = config(tmp_path, **{"input.url": str(tmp_path / "nothing")})
    state = train_dataset(missing, return_state=True)
    assert state.name == "Failed"
    assert (state.message or "").startswith(f"{tmp_path}/nothing: no objects: ")


@pytest.mark.prefect
@pytest.mark.filterwarnings("ignore")
def test_flow_tries_again_what_may_be_better_and_nothing_else(
    prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config(tmp_path)
    errors = [StoreError("s3://b", "no answer", "an answer"), ConfigError("a", "b", "c")]
    calls: list[Exception] = []

    def failing(*_: object) -> None:
        calls.append(errors[len(calls)])
        raise calls[-1]

    monkeypatch.setattr(pipeline.training.driver, "train", failing)
    monkeypatch.setattr(work, "RETRY_SECONDS", (0.01, 0.01, 0.01))
    state = train_dataset(wanted, return_state=True)
    assert calls == errors
    assert (state.name, state.message) == ("Failed", str(errors[1]))


@pytest.mark.prefect
@pytest.mark.filterwarnings("ignore")
def test_flow_follows_a_job_and_reads_what_it_left(
    prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config(tmp_path, **{"compute.ray_address": "http://h:8265"})
    sent: list[tuple[TrainConfig, str]] = []

    def submit(config: TrainConfig, address: str, _options: object) -> SubmittedJob:
        sent.append((config, address))
        here = config.model_copy(update={"compute": TrainComputeConfig()})
        pipeline.training.driver.train(here)
        return SubmittedJob("fcnseg-1", False, "http://h:8265/#/jobs/fcnseg-1", config.output.url)

    def follow(*_: object) -> Iterator[JobReading]:
        yield JobReading("RUNNING", None, "", None, ("a line",), 0)
        yield JobReading("SUCCEEDED", 0, "all done", None, (), 0)

    monkeypatch.setattr(ray_submit, "submit_or_attach", submit)
    monkeypatch.setattr(ray_follow, "follow", follow)
    state = train_dataset(wanted, return_state=True)
    assert sent == [(wanted, "http://h:8265")]
    assert (state.message or "").startswith("2 steps, 2 of 2 done, best mean IoU"), state.message


def test_sigterm_that_the_training_took_is_given_back_to_prefect(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def ended(*_: object) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(pipeline.training.driver, "train", ended)
    monkeypatch.setattr(flows.train, "PrefectReporter", lambda key: None)
    with pytest.raises(TerminationSignal):
        train_in_process.fn(config(tmp_path))


def test_the_hook_of_a_worker_stops_the_job_of_that_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stopped: list[tuple[str, str]] = []
    job = SubmittedJob("fcnseg-1", True, "", "out")
    monkeypatch.setattr(ray_submit, "find_job", lambda config, address: job)
    monkeypatch.setattr(ray_follow, "stop", lambda address, name: stopped.append((address, name)))
    monkeypatch.setattr(work, "is_flow_process", False)
    for address in (None, "", "http://h:8265"):
        parameters = config(tmp_path, **{"compute.ray_address": address}).model_dump(mode="json")
        run = SimpleNamespace(parameters={"config": parameters})
        stop_training(None, run, None)  # type: ignore[arg-type]
    assert stopped == [("http://h:8265", "fcnseg-1")]
