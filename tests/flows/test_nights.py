"""The whole way, nothing pretended: Prefect's server and worker, a Ray head with a token, S3."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from fcn_core.errors import FcnError
from pipeline.cli.commands.demo import make_scene_shards
from pipeline.driver import run as run_pipeline
from pipeline.ray_jobs.ray_client import Jobs, UnreachableError, retry_unreachable
from pipeline.storage.store import Store
from pipeline.training.checkpoint import latest_step
from pipeline.training.config import TrainConfig
from pipeline.training.driver import train
from tests.conftest import use_s3
from tests.support import world
from tests.support.prefect_site import POOL, Site, dark_scenes, site, until
from tests.support.ray_head import RayHead, ray_head
from tests.support.s3_server import S3Server, is_installed

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(1800),
]


MARK = uuid.uuid4().hex
"""In the environment of what runs on the cluster, and of nothing else."""


@dataclass
class Plant:
    """Everything that runs for the tests of this module.

    Attributes:
        site: Prefect.
        head: Ray.
        base: URL below which inputs and outputs are.
        weights: a file.
    """

    site: Site
    head: RayHead
    base: str
    weights: Path

    def config(self, name: str, **sections: Any) -> dict[str, Any]:
        """The parameter of a run from `name`/in to `name`/out."""
        base = {
            "input": {"url": f"{self.base}/{name}/in"},
            "output": {"url": f"{self.base}/{name}/out", "masks": ["parquet", "png"]},
            "model": {"weights": str(self.weights)},
            "compute": {
                "ray_address": self.head.dashboard, "workers": 1, "threads_per_worker": 1,
            },
        }  # fmt: skip
        return {key: {**base.get(key, {}), **sections.get(key, {})} for key in {**base, **sections}}

    def slow(self, name: str) -> dict[str, Any]:
        """Six shards of scenes in `name`/in: work for long enough to be caught in its middle."""
        make_scene_shards(Store(f"{self.base}/{name}/in"), 6, 24)
        return self.config(name, model={"weights": "demo"})

    def tree(self, name: str) -> dict[str, Any]:
        """The output of `name`."""
        return world.tree(f"{self.base}/{name}/out")

    def undisturbed(self, name: str, folder: Path, weights: str = "demo") -> dict[str, Any]:
        """What a local run makes of the same input."""
        source, masks = f"{self.base}/{name}/in", ("parquet", "png")
        run_pipeline(world.config(source, folder / "local", weights, output__masks=masks))
        return world.tree(folder / "local")

    def commits(self, name: str) -> int:
        """How many shards of `name` are done."""
        return sum(1 for _ in Store(f"{self.base}/{name}/out").listing("_commits"))

    def networks(self) -> list[int]:
        """The processes of the cluster that hold a network."""
        return self.site.processes("pipeline.workers.worker_main", MARK)

    def jobs(self, name: str) -> list[Any]:
        """The cluster's jobs for an output, oldest first."""
        from pipeline.ray_jobs.job_metadata import OUTPUT_KEY

        output = Store(f"{self.base}/{name}/out").url
        found = [j for j in _jobs(self.head) if (j.metadata or {}).get(OUTPUT_KEY) == output]
        return sorted(found, key=lambda job: job.start_time or 0)

    def paused(self, name: str) -> None:
        """Wait for a first commit, then stop the networks: the run cannot end."""
        until(f"{name}: a commit", lambda: self.commits(name))
        self.signal(signal.SIGSTOP)

    def signal(self, what: signal.Signals) -> None:
        """Send a signal to every process of the cluster that holds a network, or makes such."""
        for process in self.networks():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, what)


def _jobs(head: RayHead) -> list[Any]:
    return Jobs(head.dashboard).all()


def _first_job(head: RayHead) -> None:
    jobs = retry_unreachable(lambda: Jobs(head.dashboard), 120)

    def is_over() -> bool:
        os.kill(head.pid, 0)  # gone: no use in waiting
        with contextlib.suppress(UnreachableError):  # "No available agent" for the first minutes
            jobs.submit("first", entrypoint="true")
            job = jobs.info("first")
            return job is not None and job.status.is_terminal()
        return False

    until("a first job", is_over, 120)  # the dashboard outlives its node


@pytest.fixture(scope="module")
def plant(request: pytest.FixtureRequest, weights: Path) -> Iterator[Plant]:
    """One server, one worker, one head and, where there is one, one store for all."""
    with pytest.MonkeyPatch.context() as patch:
        store: dict[str, str] = {}
        if is_installed():
            server: S3Server = request.getfixturevalue("s3_server")
            store = server.owner.environment(server.url)
            use_s3(patch, store)
            base = f"s3://{server.new_bucket()}"
        else:
            base = str(request.getfixturevalue("tmp_path_factory").mktemp("plant"))
        with ExitStack() as stack:
            head = _head(stack, store)
            head.admit(patch)
            client = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": head.token}
            settings = {
                "FCNSEG_POOL": POOL, "FCNSEG_INPUT": f"{base}/nightly/in",
                "FCNSEG_OUTPUT": f"{base}/nightly/out", "FCNSEG_WEIGHTS": "demo",
                "FCNSEG_TIME_ZONE": "Europe/Berlin", "FCNSEG_RAY": head.dashboard,
                "FCNSEG_TRAIN": f"{base}/train/in", "FCNSEG_VAL": f"{base}/train/in",
                "FCNSEG_TRAINED": f"{base}/train/out", "FCNSEG_LABEL_SET": "scenes",
            }  # fmt: skip
            here = stack.enter_context(site({**store, **client, **settings}))
            yield Plant(here, head, base, weights)


def _head(stack: ExitStack, store: dict[str, str]) -> RayHead:
    """A head that has done a first job: on a busy machine some die in their first minute.

    Ray gives the agent of a node 15 s to start, and ends the node if it does not.
    """
    for _ in range(4):
        with ExitStack() as attempt, contextlib.suppress(FcnError, AssertionError, OSError):
            head = attempt.enter_context(ray_head({**store, "FCNSEG_TEST": MARK}))
            with pytest.MonkeyPatch.context() as patch:
                head.admit(patch)
                _first_job(head)
            stack.push(attempt.pop_all())
            return head
    raise AssertionError("no head lives on this machine: see its logs")


def test_the_nights_of_the_file_are_scheduled(plant: Plant) -> None:
    deployment = plant.site.api("deployments/name/label-dataset/nightly")
    assert deployment["concurrency_limit"] == 1 or deployment["global_concurrency_limit"]["limit"]
    wanted = {
        "deployments": {"id": {"any_": [deployment["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    runs = until("nights to come", lambda: plant.site.api("flow_runs/filter", wanted))
    moments = [datetime.fromisoformat(run["expected_start_time"]) for run in runs]
    assert {moment.astimezone(ZoneInfo("Europe/Berlin")).hour for moment in moments} == {2}


def test_on_demand_with_watch_completes(plant: Plant, tmp_path: Path) -> None:
    source = Store(f"{plant.base}/first/in")
    for shard in range(2):
        source.write(f"s{shard:02d}.tar", world.tar(world.samples(shard)))
    source.write("s02.tar", world.tar({**world.samples(2), "bad.jpg": b"x"}))
    params = json.dumps({"config": plant.config("first")})
    said = plant.site.prefect(
        "deployment", "run", "label-dataset/on-demand", "--params", params, "--watch",
        "--watch-timeout", "560",
    )  # fmt: skip
    found = re.search(r"flow-run/([0-9a-f-]{36})", "".join(said.split()))
    assert found, said
    state = plant.site.ended(found[1])
    assert state["name"] == "CompletedWithQuarantine", state
    assert state["message"] == "3 shards segmented, 3 of 3 done, 1 images quarantined"
    told = plant.site.artifacts(found[1])
    assert set(told) == {
        "summary", "classes", "worst-shards", "quarantined", "pictures", "progress",
    }  # fmt: skip
    scores = json.loads(Store(f"{plant.base}/first/out").read("stats/scores.json"))
    rows = {row["class"]: row for row in json.loads(told["classes"])}
    assert rows["mean IoU"]["IoU"] == pytest.approx(scores["mean_iou"], abs=1e-4)
    assert rows["thing"]["predicted pixels"] == scores["class_pixels"][1]
    assert [row["image"] for row in json.loads(told["quarantined"])] == ["bad"]
    assert {row["shard"] for row in json.loads(told["worst-shards"])} == {"s00", "s01", "s02"}
    [job] = plant.jobs("first")
    assert job.submission_id in told["summary"] and "report.html" in told["summary"]
    assert "data:image/jpeg;base64," in told["pictures"] and float(told["progress"]) == 100
    log = plant.site.messages(found[1])
    assert "of 3 shards, " in log and "job: report: " in log
    assert plant.tree("first") == plant.undisturbed("first", tmp_path, str(plant.weights))


def test_a_cancelled_run_gives_everything_back(plant: Plant, tmp_path: Path) -> None:
    config = plant.slow("cancelled")
    run = plant.site.run("on-demand", config)
    plant.paused("cancelled")
    plant.site.prefect("flow-run", "cancel", run)
    assert plant.site.ended(run)["name"] == "Cancelled"
    [job] = until("the job is over", lambda: _over(plant.jobs("cancelled")))
    assert job.status.value == "STOPPED"
    output = Store(f"{plant.base}/cancelled/out")
    assert "_lease.json" not in {info.path for info in output.objects()}
    assert 0 < plant.commits("cancelled") < 6
    again = plant.site.run("on-demand", config)
    assert plant.site.ended(again)["name"] == "Completed"
    assert plant.tree("cancelled") == plant.undisturbed("cancelled", tmp_path)


def _over(jobs: list[Any]) -> list[Any]:
    return jobs if jobs and all(job.status.is_terminal() for job in jobs) else []


def test_a_job_outlives_the_worker_and_is_attached_to(plant: Plant, tmp_path: Path) -> None:
    # A run without a heartbeat is called crashed by the automation, and may then be retried.
    _automations(plant, "--silence", "75")
    config = plant.slow("killed")
    run = plant.site.run("on-demand", config)
    plant.paused("killed")
    engines = plant.site.processes("prefect.engine", run)
    assert engines
    plant.site.stop("worker", signal.SIGKILL)  # the machine of the worker is gone
    for engine in engines:
        os.kill(engine, signal.SIGKILL)
    plant.site.start_worker()
    state = plant.site.ended(run)
    assert state["name"] == "Crashed" and "no heartbeat" in state["message"]
    [job] = plant.jobs("killed")
    assert job.status.value == "RUNNING"
    plant.site.prefect("flow-run", "retry", run)
    until("it attaches", lambda: "attached to job" in plant.site.messages(run))
    plant.signal(signal.SIGCONT)
    assert plant.site.ended(run)["name"] == "Completed"
    assert [found.submission_id for found in plant.jobs("killed")] == [job.submission_id]
    assert plant.tree("killed") == plant.undisturbed("killed", tmp_path)


def _automations(plant: Plant, *words: str) -> None:
    command = [sys.executable, "-m", "flows.automations", *words]
    subprocess.run(command, env=plant.site.environment, check=True, timeout=300)


def test_a_server_that_is_away_for_a_minute_is_not_missed(plant: Plant, tmp_path: Path) -> None:
    _automations(plant)  # with its own ten minutes: a minute without a server is no silence
    config = plant.slow("away")
    run = plant.site.run("on-demand", config)
    plant.paused("away")
    done = plant.commits("away")
    plant.site.stop("server")
    gone = time.monotonic()
    try:
        plant.signal(signal.SIGCONT)
        until("a commit while the server is away", lambda: plant.commits("away") > done)
        plant.signal(signal.SIGSTOP)
        while time.monotonic() - gone < 60:  # what is shown is that a minute passes
            time.sleep(1)
        assert not _over(plant.jobs("away"))
    finally:
        plant.site.start_server()
    plant.signal(signal.SIGCONT)
    state = plant.site.ended(run)
    assert state["name"] == "Completed", state
    assert len(plant.jobs("away")) == 1
    assert plant.tree("away") == plant.undisturbed("away", tmp_path)


def test_two_at_once_and_a_killed_flow_end_no_job_but_their_own(
    plant: Plant, tmp_path: Path
) -> None:
    config = plant.slow("twice")
    first = plant.site.run("nightly", config)
    plant.paused("twice")
    second = plant.site.ended(plant.site.run("nightly", config))
    assert (second["name"], "limit reached" in second["message"]) == ("Cancelled", True)
    # Another configuration on the same output waits; who cancels that run cancels only that.
    other = {**config, "compute": {**config["compute"], "workers": 2}}
    third = plant.site.run("on-demand", other)
    until("it waits", lambda: "works on it with compute.workers" in plant.site.messages(third))
    plant.site.prefect("flow-run", "cancel", third)
    assert plant.site.ended(third)["name"] == "Cancelled"
    [job] = plant.jobs("twice")
    assert job.status.value == "RUNNING"
    # The flow's process is killed and its worker lives: that is no wish to go on.
    for engine in plant.site.processes("prefect.engine", first):
        os.kill(engine, signal.SIGKILL)
    assert plant.site.ended(first)["name"] == "Crashed"
    [job] = until("the job is over", lambda: _over(plant.jobs("twice")))
    assert job.status.value == "STOPPED"
    again = plant.site.run("nightly", config)
    assert plant.site.ended(again)["name"] == "Completed"
    assert plant.tree("twice") == plant.undisturbed("twice", tmp_path)


def test_a_training_is_a_job_and_resumes_after_it_was_cancelled(
    plant: Plant, tmp_path: Path
) -> None:
    make_scene_shards(Store(f"{plant.base}/train/in"), 2, 8)
    config: dict[str, Any] = {
        "input": {"url": f"{plant.base}/train/in", "label_set": "scenes"},
        "output": {"url": f"{plant.base}/train/out"},
        "model": {"variant": "fcn32s", "width": 1 / 16},
        "train": {"max_steps": 600, "batch_size": 2, "crop": 64, "checkpoint_every": 20},
        "compute": {"threads": 1, "ray_address": plant.head.dashboard},
    }
    run = plant.site.run("on-demand", config, "train-network")
    output = Store(f"{plant.base}/train/out")
    until("a checkpoint", lambda: latest_step(output))
    plant.site.prefect("flow-run", "cancel", run)
    assert plant.site.ended(run)["name"] == "Cancelled"
    [job] = until("the job is over", lambda: _over(plant.jobs("train")))
    assert job.status.value == "STOPPED"
    stopped_at = latest_step(output)
    assert 0 < stopped_at < 600
    assert "_lease.json" not in {info.path for info in output.objects()}
    again = plant.site.run("on-demand", config, "train-network")
    state = plant.site.ended(again)
    assert state["name"] == "Completed", state
    assert state["message"] == f"{600 - stopped_at} steps, 600 of 600 done"
    assert "last.safetensors" in plant.site.artifacts(again)["train-summary"]
    here = {**config, "output": {"url": str(tmp_path / "here")}, "compute": {"threads": 1}}
    undisturbed = train(TrainConfig.model_validate(here))
    assert hashlib.sha256(output.read("last.safetensors")).hexdigest() == undisturbed.last_sha256


def test_a_job_over_its_hours_is_stopped(plant: Plant) -> None:
    hours = 60 / 3600
    run = plant.site.run("on-demand", {**plant.slow("hours"), "limits": {"max_hours": hours}})
    # On a busy machine its time may be over before it began.
    until("it works or is over", lambda: plant.networks() or _over(plant.jobs("hours")))
    plant.signal(signal.SIGSTOP)
    state = plant.site.ended(run)
    assert state["name"] == "Failed" and "stopped; run again to resume" in state["message"]
    [job] = until("the job is over", lambda: _over(plant.jobs("hours")))
    assert job.status.value == "STOPPED"


def test_three_nights_and_one_without_new_shards(plant: Plant) -> None:
    source = Store(f"{plant.base}/nightly/in")
    ends = []
    for night in range(3):
        make_scene_shards(source, 2 * (night + 1), 16)
        if night == 2:  # somebody turned the light off
            for shard in (4, 5):
                source.write(f"scenes-{shard:03d}.tar", dark_scenes(16))
        run = plant.site.run("nightly")
        ends.append((run, plant.site.ended(run)))
    (_, first), (second_run, second), (third_run, third) = ends
    assert (first["name"], first["message"]) == ("Completed", "2 shards segmented, 2 of 2 done")
    assert (second["name"], second["message"]) == ("Completed", "2 shards segmented, 4 of 4 done")
    assert third["name"] == "CompletedWithDrift"
    assert third["message"].startswith("2 shards segmented, 6 of 6 done; drift: ")
    rows = json.loads(plant.site.artifacts(second_run)["classes"])
    assert all(row["previous run"] is not None for row in rows if row["class"] == "mean IoU")
    assert "- drift: class" in plant.site.artifacts(third_run)["summary"]
    jobs = len(plant.jobs("nightly"))
    run = plant.site.run("nightly")
    state = plant.site.ended(run)
    assert state["message"] == "nothing pending: all 6 shards are done"
    assert len(plant.jobs("nightly")) == jobs == 3
    assert plant.site.api(f"flow_runs/{run}")["total_run_time"] < 30
