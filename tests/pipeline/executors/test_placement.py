"""What a run asks a cluster for, for clusters of every shape; no Ray here."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ComputeConfig
from pipeline.errors import ClusterError
from pipeline.executors.placement import Node, matches, plan_pool

CPU8: dict[str, float] = {"CPU": 8.0}
GPU8: dict[str, float] = {"CPU": 8.0, "GPU": 1.0}


def cluster(*resources: dict[str, float], **labels: str) -> list[Node]:
    return [Node(str(i), f"10.0.0.{i}", has, labels) for i, has in enumerate(resources)]


@pytest.mark.parametrize(
    ("compute", "nodes", "cpus", "gpus", "start", "most"),
    [
        # CPUs: as many as there are cores for; they leave a core for reading and writing.
        ({}, [{"CPU": 2.0}], 1.0, 0.0, 1, 1),
        ({}, [{"CPU": 1.0}], 0.0, 0.0, 1, 1),
        ({}, [CPU8], 1.0, 0.0, 4, 4),
        ({}, [CPU8, CPU8], 1.0, 0.0, 8, 8),
        ({"max_workers": 20}, [CPU8, CPU8], 1.0, 0.0, 8, 20),
        ({"workers": 3}, [CPU8], 2.0, 0.0, 3, 3),
        ({"min_workers": 4}, [{"CPU": 4.0}], 0.75, 0.0, 4, 4),
        # No node has the two cores of a copy: one that is slow, and none that waits for ever.
        ({}, [{"CPU": 1.0}] * 3, 1.0, 0.0, 1, 1),
        # GPUs: one each and no CPU, and more when nodes join.
        ({}, [GPU8, CPU8], 0.0, 1.0, 1, None),
        ({"max_workers": 4}, [GPU8, GPU8], 0.0, 1.0, 2, 4),
        ({"max_workers": 1}, [GPU8, GPU8], 0.0, 1.0, 1, 1),
        ({"min_workers": 6}, [GPU8, GPU8], 0.0, 1.0, 6, None),
        ({"workers": 6}, [GPU8, GPU8], 0.0, 1.0, 6, 6),
        ({"gpus_per_worker": 0.25}, [GPU8], 0.0, 0.25, 4, None),
        ({"gpus_per_worker": 1 / 3}, [GPU8], 0.0, 1 / 3, 3, None),
        ({"gpus_per_worker": 2.0}, [GPU8, {"CPU": 8.0, "GPU": 4.0}], 0.0, 2.0, 2, None),
        ({}, [{"CPU": 2.0, "GPU": 4.0}], 0.0, 1.0, 4, None),
        # The place of a GPU, for a network that computes on CPUs.
        ({"device": "cpu"}, [GPU8], 1.0, 0.0, 4, 4),
        ({"device": "cpu", "gpus_per_worker": 1.0}, [GPU8, CPU8], 0.0, 1.0, 1, None),
        # A share of GPUs that are not there means nothing, as long as any device will do.
        ({"gpus_per_worker": 0.5}, [CPU8], 1.0, 0.0, 4, 4),
    ],
)
def test_every_cluster_is_asked_for_what_it_has(
    compute: dict[str, Any],
    nodes: list[dict[str, float]],
    cpus: float,
    gpus: float,
    start: int,
    most: int | None,
) -> None:
    pool = plan_pool(ComputeConfig(**compute), cluster(*nodes))
    assert (pool.cpus, pool.gpus, pool.start, pool.most) == (cpus, gpus, start, most)


@pytest.mark.parametrize(
    ("compute", "nodes", "words"),
    [
        ({"device": "cuda"}, [CPU8], "asks for 1 GPU per worker, the cluster has none"),
        ({"device": "cpu", "gpus_per_worker": 1.0}, [CPU8], "the cluster has none"),
        ({"gpus_per_worker": 2.0}, [GPU8, GPU8], "no node has more than 1"),
        ({"worker_labels": ["zone=a"]}, [GPU8], "a node labelled zone=a with 1 GPU, and there"),
        ({"worker_labels": ["zone=a"]}, [CPU8], "a node labelled zone=a, and there is none"),
        ({"io_labels": ["zone=a"]}, [GPU8], "reads and writes on nodes labelled zone=a"),
        ({"io_labels": ["zone=b"]}, [{"GPU": 1.0}], "and no node labelled zone=b has any"),
        ({}, [{"CPU": 0.0, "GPU": 1.0}], "reads and writes with CPUs, and no node has any"),
    ],
)
def test_a_cluster_that_can_hold_no_network_is_refused_in_words(
    compute: dict[str, Any], nodes: list[dict[str, float]], words: str
) -> None:
    with pytest.raises(ClusterError, match=words):
        plan_pool(ComputeConfig(**compute), cluster(*nodes, zone="b"))


def test_what_an_autoscaler_may_add_is_waited_for() -> None:
    to_come = [Node("gpus", "", GPU8)]
    for compute in ({}, {"device": "cuda"}, {"worker_labels": ["zone=a"]}):
        pool = plan_pool(ComputeConfig(**compute), cluster(CPU8), to_come)  # type: ignore[arg-type]
        assert (pool.gpus, pool.start, pool.most, pool.room) == (1.0, 1, None, 0)
    with pytest.raises(ClusterError, match="the cluster has none"):
        plan_pool(ComputeConfig(device="cuda"), cluster(CPU8), [Node("cpus", "", CPU8)])


def test_labels_choose_among_nodes() -> None:
    nodes = [Node("a", "", GPU8, {"market": "spot"}), Node("b", "", GPU8, {"market": "demand"})]
    for wanted, room in (
        (["market=spot"], 1),
        (["market=!spot"], 1),
        (["market=in(spot,demand)"], 2),
    ):
        assert plan_pool(ComputeConfig(worker_labels=tuple(wanted)), nodes).start == room


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "CPU": st.sampled_from([0.0, 1.0, 2.0, 4.0, 8.0]),
                "GPU": st.sampled_from([0.0, 1.0, 4.0]),
            }
        ),
        min_size=1,
        max_size=6,
    ),
    st.data(),
)
def test_copies_never_take_the_last_cpus_of_the_nodes_that_read(
    nodes: list[dict[str, float]], data: st.DataObject
) -> None:
    """All copies in their places, then four tasks of a quarter of a CPU."""
    reads = data.draw(st.sets(st.integers(0, len(nodes) - 1), min_size=1))
    found = [
        Node(str(i), "", has, {"io": "yes" if i in reads else "no"}) for i, has in enumerate(nodes)
    ]
    labels = data.draw(st.sampled_from([(), ("io=yes",)]))
    least = data.draw(st.sampled_from([None, 3, 9]))
    may_read = [node for node in found if not labels or int(node.id) in reads]
    compute = ComputeConfig(io_labels=labels, min_workers=least)
    if not any(node.amount("CPU") for node in may_read):
        with pytest.raises(ClusterError, match="reads and writes"):
            plan_pool(compute, found)
        return
    pool = plan_pool(compute, found)
    free = {node.id: node.amount("CPU") for node in found}
    assert not (pool.gpus and pool.cpus)
    for _ in range(pool.start):  # on the node with the most room, as Ray spreads them
        free[max(free, key=lambda name: free[name])] -= pool.cpus
    assert min(free.values()) >= 0
    assert sum(int(free[node.id] / 0.25) for node in may_read) >= 4


def test_every_copy_at_once_fits_whole_on_a_node() -> None:
    """Eight CPUs hold three copies of two, but not four of them on nodes of one."""
    pool = plan_pool(ComputeConfig(min_workers=3), cluster(*[{"CPU": 1.0}] * 4, {"CPU": 4.0}))
    assert (pool.start, pool.cpus) == (3, 1.0)


def test_nodes_with_gpus_are_left_alone_only_where_there_are_others() -> None:
    assert plan_pool(ComputeConfig(), cluster(GPU8, CPU8)).avoid_gpu_nodes
    assert not plan_pool(ComputeConfig(), cluster(GPU8, GPU8)).avoid_gpu_nodes
    assert not plan_pool(ComputeConfig(device="cpu"), cluster(GPU8, CPU8)).avoid_gpu_nodes


def ids(*nodes: int) -> dict[str, str]:
    return {"ray.io/node-id": f"!in({','.join(map(str, nodes))})"}


@pytest.mark.parametrize(
    ("compute", "nodes", "expected"),
    [
        ({}, [CPU8, GPU8], ids(1)),
        ({}, [GPU8, CPU8, GPU8, CPU8], ids(0, 2)),
        # A small head, and machines that decode for their own networks.
        ({}, [CPU8, {"CPU": 32.0, "GPU": 1.0}], {}),
        # Room for four tasks a copy, or a node with GPUs helps.
        ({}, [{"CPU": 3.0}, {"CPU": 1.0, "GPU": 4.0}], {}),
        ({}, [{"CPU": 4.0}, {"CPU": 1.0, "GPU": 4.0}], ids(1)),
        ({}, [GPU8, GPU8], {}),
        ({}, [CPU8, CPU8], {}),
        ({"device": "cpu"}, [CPU8, GPU8], {}),
        ({"device": "cpu", "gpus_per_worker": 1.0}, [CPU8, GPU8], ids(1)),
        # What the user says, holds.
        ({"io_labels": ["zone=b"]}, [CPU8, GPU8], {"zone": "b"}),
        # Ids of hundreds of nodes would travel with every task.
        ({}, [{"CPU": 999.0}, *[{"CPU": 1.0, "GPU": 1.0}] * 101], {}),
    ],
)
def test_nodes_without_gpus_read_and_write_alone_where_they_can(
    compute: dict[str, Any], nodes: list[dict[str, float]], expected: dict[str, str]
) -> None:
    pool = plan_pool(ComputeConfig(**compute), cluster(*nodes, zone="b"))
    assert pool.io_selector == expected


def test_groups_of_an_autoscaler_name_nodes_that_are_not_there_yet() -> None:
    nodes = [
        Node(str(i), "", GPU8 if group == "gpus" else CPU8, {"ray.io/node-group": group})
        for i, group in enumerate(["head", "gpus", "cpus"])
    ]
    wanted = plan_pool(ComputeConfig(), nodes).io_selector
    assert wanted == {"ray.io/node-group": "!in(gpus)"}
    found = [matches([f"{k}={v}" for k, v in wanted.items()], node.labels) for node in nodes]
    assert found == [True, False, True]
    mixed = [*nodes, Node("3", "", GPU8, {"ray.io/node-group": "head"})]
    assert plan_pool(ComputeConfig(), [*mixed, *cluster(CPU8)]).io_selector == ids(1, 3)


def test_a_run_says_when_nobody_is_left_to_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pipeline.executors import ray_nodes

    both = [Node("a", "", GPU8, {"ray.io/node-id": "a"}), Node("b", "", CPU8)]
    seen = [both[:1], both]
    monkeypatch.setattr(ray_nodes, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(ray_nodes, "live_nodes", lambda: seen.pop(0) if seen else both)
    caplog.set_level(logging.WARNING, "fcnseg")
    with ray_nodes.watched(ComputeConfig(), plan_pool(ComputeConfig(), both)):
        while seen:
            time.sleep(0.01)
    assert [record.getMessage() for record in caplog.records] == [
        "reads and writes on nodes labelled ray.io/node-id=!in(a), and there is none: waiting for "
        "a node", "a node has come",
    ]  # fmt: skip


def test_a_run_says_when_its_last_host_is_lost_and_when_one_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pipeline.executors import ray_nodes

    seen = [cluster(GPU8), cluster(CPU8), cluster(CPU8), cluster(GPU8)]
    monkeypatch.setattr(ray_nodes, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(ray_nodes, "live_nodes", lambda: seen.pop(0) if seen else cluster(GPU8))
    caplog.set_level(logging.WARNING, "fcnseg")
    compute = ComputeConfig()
    with ray_nodes.watched(compute, plan_pool(compute, cluster(GPU8))):
        while seen:
            time.sleep(0.01)
    assert [record.getMessage() for record in caplog.records] == [
        "asks for 1 GPU per worker, the cluster has none: waiting for a node", "a node has come",
    ]  # fmt: skip
