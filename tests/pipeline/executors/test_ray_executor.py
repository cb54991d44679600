"""The Ray executor writes the same output as the local executor."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fcn_core.inference.int8 import has_int8
from pipeline.driver import run
from pipeline.errors import ClusterError, StoreError
from pipeline.monitoring.metrics import METRICS
from pipeline.output.verify import verify
from pipeline.storage.store import Store
from pipeline.weights import calibrate
from tests.support import world
from tests.support.ray_head import embedded_ray

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One embedded Ray for all tests of this module; `run` uses it."""
    with embedded_ray():
        yield


@pytest.mark.parametrize(
    ("address", "hint"),
    [(None, "Try again"), ("10.0.0.1:6379", "Check --address")],
)
def test_a_ray_that_does_not_start_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, address: str | None, hint: str
) -> None:
    import ray

    from pipeline.executors.ray_connection import connect_ray

    tried = []

    def init(**_: object) -> None:
        tried.append(address)
        raise Exception("The current node timed out\nduring startup.")  # as Ray raises it

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ClusterError) as caught, connect_ray(address):
        pass
    message = str(caught.value)
    assert message.startswith(
        f"ray {address or 'local'}: The current node timed out during startup"
    )
    assert hint in message and "\n" not in message
    assert len(tried) == (3 if address is None else 1)


def test_local_and_ray_leave_equal_trees(
    cluster: None, shards: Path, weights: Path, tmp_path: Path
) -> None:
    bad = {**world.samples(1), "bad.jpg": b"x", "odd name+%.jpg": world.jpeg(world.image(3))}
    (shards / "s1.tar").write_bytes(world.tar(bad))
    (shards / "cut.tar").write_bytes(world.tar(world.samples(5))[:3000])
    flags = {"limits__chunk_images": 3}
    results = [
        run(world.config(shards, tmp_path / name, weights, compute__executor=name, **flags))
        for name in ("local", "ray")
    ]
    assert [result.exit_code for result in results] == [4, 4]
    assert results[0].failed == results[1].failed
    assert world.tree(tmp_path / "local") == world.tree(tmp_path / "ray")
    assert verify(Store(str(tmp_path / "ray")), deep=True).problems == ()


@pytest.mark.skipif(not has_int8(), reason="this CPU has no VNNI and no AMX")
def test_local_and_ray_leave_equal_trees_in_int8(
    cluster: None, shards: Path, weights: Path, tmp_path: Path
) -> None:
    ready = tmp_path / "int8.safetensors"
    calibrate(str(weights), str(ready), str(shards), 12)
    for name in ("local", "ray"):
        flags = {"compute__executor": name, "model__precision": "int8"}
        assert run(world.config(shards, tmp_path / name, ready, **flags)).exit_code == 0
    assert world.tree(tmp_path / "local") == world.tree(tmp_path / "ray")


def test_folder_with_labels_gives_equal_trees(cluster: None, weights: Path, tmp_path: Path) -> None:
    for index in range(7):
        size = world.SIZES[index % 4]
        for top, data in (
            ("images", world.jpeg(world.image(index, size))),
            ("labels", world.png(world.label(index, size))),
        ):
            (tmp_path / "in" / top).mkdir(parents=True, exist_ok=True)
            suffix = "jpg" if top == "images" else "png"
            (tmp_path / f"in/{top}/k{index}.{suffix}").write_bytes(data)
    for name in ("local", "ray"):
        flags = {"compute__executor": name, "input__shard_size": 3}
        assert run(world.config(tmp_path / "in", tmp_path / name, weights, **flags)).images == 7
    assert world.tree(tmp_path / "local") == world.tree(tmp_path / "ray")


def test_rays_own_exporter_has_the_metrics_of_a_run(
    cluster: None, shards: Path, weights: Path, tmp_path: Path
) -> None:
    import ray

    flags = {"compute__executor": "ray", "monitoring__metrics_name": "nights"}
    assert run(world.config(shards, tmp_path / "out", weights, **flags)).images == 12
    (node,) = ray.nodes()
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    values: dict[tuple[str, str], float] = {}
    deadline = time.monotonic() + 150  # an overloaded machine starts the exporter late
    done = False
    while not done and time.monotonic() < deadline:
        time.sleep(1)
        with suppress(OSError), urllib.request.urlopen(address, timeout=10) as answer:
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    if sample.labels.get("name") == "nights":
                        own = sample.labels.get("stage") or sample.labels.get("state") or ""
                        values[sample.name, own] = sample.value
        # The exporter may first serve values from the middle of the run.
        done = values.get(("ray_fcnseg_shards", "committed")) == 3
        done &= values.get(("ray_fcnseg_images_total", "")) == 12
    assert values["ray_fcnseg_images_total", ""] == 12
    assert values["ray_fcnseg_shards", "committed"] == values["ray_fcnseg_chunks_total", ""] == 3
    assert values["ray_fcnseg_stage_seconds_total", "forward"] > 0
    at_the_end = {"fcnseg_run_end_time_seconds", "fcnseg_run_exit_code"}
    # A counter that is zero is not exported: Ray's counters begin at the first increase.
    never = {"fcnseg_quarantined_images_total", "fcnseg_store_retries_total"}
    wanted = {metric.name for metric in METRICS} - at_the_end - never
    assert {name.removeprefix("ray_") for name, _ in values} == wanted


def test_workers_of_ray_configure_logs_the_run_does(cluster: None, tmp_path: Path) -> None:
    import ray

    from pipeline.executors.ray_executor import configure_logs
    from pipeline.resolve import resolve_run

    source = world.write_shards(tmp_path / "in", shards=1)
    config = world.config(source, tmp_path / "out", "demo", monitoring__log_format="json")
    spec = replace(resolve_run(config)[0], run="r")

    @ray.remote
    def logged() -> str:
        import contextlib
        import io
        import logging

        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            configure_logs(spec)
            logging.getLogger("fcnseg").info("x")
        return stderr.getvalue()

    line = json.loads(ray.get(logged.remote()))
    assert (line["run"], line["message"], line["level"]) == ("r", "x", "info")


def test_many_shards_are_read_in_waves_and_by_several(
    cluster: None, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import driver as run_module
    from pipeline.executors import ray_executor

    source = world.write_shards(tmp_path / "in", shards=7, images=2)
    monkeypatch.setattr(run_module, "WAVE", 5)
    monkeypatch.setattr(ray_executor, "MAX_READ_TASKS", 2)
    sizes: list[int] = []
    dataset = ray_executor.make_dataset

    def counted(spec: Any, weights_ref: Any, shards: Sequence[Any], plan: Any) -> Any:
        sizes.append(len(shards))
        return dataset(spec, weights_ref, shards, plan)

    monkeypatch.setattr(ray_executor, "make_dataset", counted)
    for name in ("local", "ray"):
        assert run(world.config(source, tmp_path / name, weights, compute__executor=name)).shards
    assert sizes == [5, 2]
    assert world.tree(tmp_path / "local") == world.tree(tmp_path / "ray")


def _workers(kind: str) -> list[int]:
    """Return the pids of this Ray's workers whose process title contains a word."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            title = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if title.startswith("ray::") and kind in title and _is_below(int(path.parent.name)):
                pids.append(int(path.parent.name))
    return pids


def _is_below(pid: int) -> bool:
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if pid == os.getpid():
            return True
    return False


def _victims(kind: str) -> list[int]:
    """Return the pids of the workers of a kind, or of the fork servers of the actors."""
    if kind != "fork server":
        return _workers(kind)
    pids: list[int] = []
    for pid in _workers("_SegmentActor"):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):  # it has just ended
                pids += [int(word) for word in path.read_text().split()]
    return pids


def _kill_one(kind: str, spared: Container[int], seconds: float) -> int | None:
    """Kill a process of a kind as soon as one is there; return its pid, None if none came."""
    deadline = time.monotonic() + seconds
    while True:
        for pid in _victims(kind):
            if pid not in spared:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    return pid
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.01)


def test_killed_actors_tasks_and_worker_processes_change_nothing(
    cluster: None, weights: Path, tmp_path: Path
) -> None:
    source = world.write_shards(tmp_path / "in", shards=10, images=6)
    run(world.config(source, tmp_path / "calm", weights, limits__chunk_images=2))
    # Kinds, and the seconds to wait for one. Tasks read ahead of the network and write behind it:
    # there may be none just now. An actor does nothing while it restarts, so that work is left.
    wanted = {"_SegmentActor": 60, "_Read": 0, "_Write": 0, "fork server": 60}
    killed: dict[int, str] = {}

    def kill(progress: Any) -> None:
        """Kill one of each, one after the other, when the first shard is done."""
        if progress.shards_done == 0 or killed:
            return
        for kind in (*wanted, "_SegmentActor"):
            if pid := _kill_one(kind, killed, wanted[kind]):
                killed[pid] = kind
            elif wanted[kind]:
                return  # the run is over

    for attempt in range(3):
        killed.clear()
        output = tmp_path / f"ray{attempt}"
        config = world.config(
            source, output, weights, compute__executor="ray", limits__chunk_images=2
        )
        assert run(config, kill).exit_code == 0
        kinds = list(killed.values())
        assert world.tree(output) == world.tree(tmp_path / "calm"), kinds
        if kinds.count("_SegmentActor") == 2 and "fork server" in kinds:
            return
    raise AssertionError(f"the run was over before all were killed, three times: {kinds}")


def test_failing_store_is_named_and_a_rerun_finishes(
    cluster: None, shards: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "masks").write_text("a file where a folder should be")
    config = world.config(shards, out, weights, compute__executor="ray")
    with pytest.raises(StoreError, match="masks/s"):
        run(config)
    (out / "masks").unlink()
    assert run(config).exit_code == 0


def test_nothing_pending_does_not_start_ray(shards: Path, weights: Path, tmp_path: Path) -> None:
    import subprocess

    config = world.config(shards, tmp_path / "out", weights)
    run(config)
    script = (
        "import sys\nfrom pipeline.config import RunConfig\nfrom pipeline.driver import run\n"
        "config = RunConfig.model_validate_json(sys.argv[1])\n"
        "assert run(config).done_now == 0\n"
        "assert not {'ray', 'torch'} & set(sys.modules)\n"
    )
    tree = config.model_dump()
    tree["compute"]["executor"] = "ray"
    text = type(config).model_validate(tree).model_dump_json()
    subprocess.run([sys.executable, "-c", script, text], check=True)
