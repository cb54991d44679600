"""The plan of replicas for clusters of many shapes; needs no Ray."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ComputeConfig
from pipeline.errors import ClusterError
from pipeline.executors.placement import Node, matches, plan_replicas

CPU8: dict[str, float] = {"CPU": 8.0}
GPU8: dict[str, float] = {"CPU": 8.0, "GPU": 1.0}


def cluster(*resources: dict[str, float], **labels: str) -> list[Node]:
    return [Node(str(i), f"10.0.0.{i}", has, labels) for i, has in enumerate(resources)]


@pytest.mark.parametrize(
    ("compute", "nodes", "cpus", "gpus", "initial", "maximum"),
    [
        # CPUs: as many replicas as the cores allow, with one core left for reading and writing.
        ({}, [{"CPU": 2.0}], 1.0, 0.0, 1, 1),
        ({}, [{"CPU": 1.0}], 0.0, 0.0, 1, 1),
        ({}, [CPU8], 1.0, 0.0, 4, 4),
        ({}, [CPU8, CPU8], 1.0, 0.0, 8, 8),
        ({"max_workers": 20}, [CPU8, CPU8], 1.0, 0.0, 8, 20),
        ({"workers": 3}, [CPU8], 2.0, 0.0, 3, 3),
        ({"min_workers": 4}, [{"CPU": 4.0}], 0.75, 0.0, 4, 4),
        # No node has the two cores of a replica: one slow replica, and none that waits for ever.
        ({}, [{"CPU": 1.0}] * 3, 1.0, 0.0, 1, 1),
        # GPUs: one per replica and no CPU; more replicas when nodes join.
        ({}, [GPU8, CPU8], 0.0, 1.0, 1, None),
        ({"max_workers": 4}, [GPU8, GPU8], 0.0, 1.0, 2, 4),
        ({"max_workers": 1}, [GPU8, GPU8], 0.0, 1.0, 1, 1),
        ({"min_workers": 6}, [GPU8, GPU8], 0.0, 1.0, 6, None),
        ({"workers": 6}, [GPU8, GPU8], 0.0, 1.0, 6, 6),
        ({"gpus_per_worker": 0.25}, [GPU8], 0.0, 0.25, 4, None),
        ({"gpus_per_worker": 1 / 3}, [GPU8], 0.0, 1 / 3, 3, None),
        ({"gpus_per_worker": 2.0}, [GPU8, {"CPU": 8.0, "GPU": 4.0}], 0.0, 2.0, 2, None),
        ({}, [{"CPU": 2.0, "GPU": 4.0}], 0.0, 1.0, 4, None),
        # The logical resource of a GPU, for a network that computes on CPUs.
        ({"device": "cpu"}, [GPU8], 1.0, 0.0, 4, 4),
        ({"device": "cpu", "gpus_per_worker": 1.0}, [GPU8, CPU8], 0.0, 1.0, 1, None),
        # With device "auto", a GPU share means nothing on a cluster without GPUs.
        ({"gpus_per_worker": 0.5}, [CPU8], 1.0, 0.0, 4, 4),
    ],
)
def test_every_cluster_is_asked_for_what_it_has(
    compute: dict[str, Any],
    nodes: list[dict[str, float]],
    cpus: float,
    gpus: float,
    initial: int,
    maximum: int | None,
) -> None:
    plan = plan_replicas(ComputeConfig(**compute), cluster(*nodes))
    assert (plan.cpus, plan.gpus, plan.initial, plan.maximum) == (cpus, gpus, initial, maximum)


@pytest.mark.parametrize(
    ("compute", "nodes", "words"),
    [
        ({"device": "cuda"}, [CPU8], "asks for 1 GPU per worker, the cluster has none"),
        ({"device": "cpu", "gpus_per_worker": 1.0}, [CPU8], "the cluster has none"),
        ({"gpus_per_worker": 2.0}, [GPU8, GPU8], "no node has more than 1"),
        (
            {"worker_labels": ["zone=a"]},
            [GPU8],
            "a node with 1 GPU and the labels zone=a, and there",
        ),
        ({"worker_labels": ["zone=a"]}, [CPU8], "a node with the labels zone=a, and there is none"),
        ({"io_labels": ["zone=a"]}, [GPU8], "reads and writes on nodes with the labels zone=a"),
        ({"io_labels": ["zone=b"]}, [{"GPU": 1.0}], "and no node with the labels zone=b has any"),
        ({}, [{"CPU": 0.0, "GPU": 1.0}], "reads and writes with CPUs, and no node has any"),
    ],
)
def test_a_cluster_that_cannot_hold_a_replica_is_refused_with_the_reason(
    compute: dict[str, Any], nodes: list[dict[str, float]], words: str
) -> None:
    with pytest.raises(ClusterError, match=words):
        plan_replicas(ComputeConfig(**compute), cluster(*nodes, zone="b"))


def test_a_run_waits_for_nodes_that_an_autoscaler_may_add() -> None:
    addable = [Node("gpus", "", GPU8)]
    for compute in ({}, {"device": "cuda"}, {"worker_labels": ["zone=a"]}):
        plan = plan_replicas(ComputeConfig(**compute), cluster(CPU8), addable)  # type: ignore[arg-type]
        assert (plan.gpus, plan.initial, plan.maximum, plan.capacity) == (1.0, 1, None, 0)
    with pytest.raises(ClusterError, match="the cluster has none"):
        plan_replicas(ComputeConfig(device="cuda"), cluster(CPU8), [Node("cpus", "", CPU8)])


def test_labels_choose_among_nodes() -> None:
    nodes = [Node("a", "", GPU8, {"market": "spot"}), Node("b", "", GPU8, {"market": "demand"})]
    for wanted, room in (
        (["market=spot"], 1),
        (["market=!spot"], 1),
        (["market=in(spot,demand)"], 2),
    ):
        assert plan_replicas(ComputeConfig(worker_labels=tuple(wanted)), nodes).initial == room


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
def test_replicas_never_take_the_last_cpus_of_the_nodes_that_read(
    nodes: list[dict[str, float]], data: st.DataObject
) -> None:
    """Place all replicas; then four tasks of a quarter of a CPU must fit."""
    reads = data.draw(st.sets(st.integers(0, len(nodes) - 1), min_size=1))
    all_nodes = [
        Node(str(i), "", has, {"io": "yes" if i in reads else "no"}) for i, has in enumerate(nodes)
    ]
    labels = data.draw(st.sampled_from([(), ("io=yes",)]))
    least = data.draw(st.sampled_from([None, 3, 9]))
    io_nodes = [node for node in all_nodes if not labels or int(node.id) in reads]
    compute = ComputeConfig(io_labels=labels, min_workers=least)
    if not any(node.amount("CPU") for node in io_nodes):
        with pytest.raises(ClusterError, match="reads and writes"):
            plan_replicas(compute, all_nodes)
        return
    plan = plan_replicas(compute, all_nodes)
    free = {node.id: node.amount("CPU") for node in all_nodes}
    assert not (plan.gpus and plan.cpus)
    for _ in range(plan.initial):  # on the node with the most room, as Ray spreads them
        free[max(free, key=lambda name: free[name])] -= plan.cpus
    assert min(free.values()) >= 0
    assert sum(int(free[node.id] / 0.25) for node in io_nodes) >= 4


def test_every_initial_replica_fits_whole_on_a_node() -> None:
    """Eight CPUs could hold three replicas of two CPUs, but four of the nodes have one CPU."""
    plan = plan_replicas(ComputeConfig(min_workers=3), cluster(*[{"CPU": 1.0}] * 4, {"CPU": 4.0}))
    assert (plan.initial, plan.cpus) == (3, 1.0)


def test_nodes_with_gpus_are_left_alone_only_where_there_are_others() -> None:
    assert plan_replicas(ComputeConfig(), cluster(GPU8, CPU8)).avoid_gpu_nodes
    assert not plan_replicas(ComputeConfig(), cluster(GPU8, GPU8)).avoid_gpu_nodes
    assert not plan_replicas(ComputeConfig(device="cpu"), cluster(GPU8, CPU8)).avoid_gpu_nodes


def ids(*nodes: int) -> dict[str, str]:
    return {"ray.io/node-id": f"!in({','.join(map(str, nodes))})"}


@pytest.mark.parametrize(
    ("compute", "nodes", "expected"),
    [
        ({}, [CPU8, GPU8], ids(1)),
        ({}, [GPU8, CPU8, GPU8, CPU8], ids(0, 2)),
        # A small head node, and GPU nodes that decode for their own networks.
        ({}, [CPU8, {"CPU": 32.0, "GPU": 1.0}], {}),
        # The nodes without GPUs need room for four tasks per replica.
        ({}, [{"CPU": 3.0}, {"CPU": 1.0, "GPU": 4.0}], {}),
        ({}, [{"CPU": 4.0}, {"CPU": 1.0, "GPU": 4.0}], ids(1)),
        ({}, [GPU8, GPU8], {}),
        ({}, [CPU8, CPU8], {}),
        ({"device": "cpu"}, [CPU8, GPU8], {}),
        ({"device": "cpu", "gpus_per_worker": 1.0}, [CPU8, GPU8], ids(1)),
        # Labels from the configuration win.
        ({"io_labels": ["zone=b"]}, [CPU8, GPU8], {"zone": "b"}),
        # Too many node ids: they would be sent with every task.
        ({}, [{"CPU": 999.0}, *[{"CPU": 1.0, "GPU": 1.0}] * 101], {}),
    ],
)
def test_nodes_without_gpus_read_and_write_alone_where_they_can(
    compute: dict[str, Any], nodes: list[dict[str, float]], expected: dict[str, str]
) -> None:
    plan = plan_replicas(ComputeConfig(**compute), cluster(*nodes, zone="b"))
    assert plan.io_selector == expected


def test_groups_of_an_autoscaler_name_nodes_that_are_not_there_yet() -> None:
    nodes = [
        Node(str(i), "", GPU8 if group == "gpus" else CPU8, {"ray.io/node-group": group})
        for i, group in enumerate(["head", "gpus", "cpus"])
    ]
    wanted = plan_replicas(ComputeConfig(), nodes).io_selector
    assert wanted == {"ray.io/node-group": "!in(gpus)"}
    is_match = [matches([f"{k}={v}" for k, v in wanted.items()], node.labels) for node in nodes]
    assert is_match == [True, False, True]
    mixed = [*nodes, Node("3", "", GPU8, {"ray.io/node-group": "head"})]
    assert plan_replicas(ComputeConfig(), [*mixed, *cluster(CPU8)]).io_selector == ids(1, 3)


def test_a_run_logs_when_no_node_can_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pipeline.executors import ray_nodes

    both = [Node("a", "", GPU8, {"ray.io/node-id": "a"}), Node("b", "", CPU8)]
    seen = [both[:1], both]
    monkeypatch.setattr(ray_nodes, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(ray_nodes, "list_nodes", lambda: seen.pop(0) if seen else both)
    caplog.set_level(logging.WARNING, "fcnseg")
    with ray_nodes.watch_nodes(ComputeConfig(), plan_replicas(ComputeConfig(), both)):
        while seen:
            time.sleep(0.01)
    assert [record.getMessage() for record in caplog.records] == [
        "reads and writes on nodes with the labels ray.io/node-id=!in(a), and there is none: "
        "waiting for a node", "a suitable node has joined",
    ]  # fmt: skip


def test_a_run_logs_when_its_last_host_is_lost_and_when_one_joins(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pipeline.executors import ray_nodes

    seen = [cluster(GPU8), cluster(CPU8), cluster(CPU8), cluster(GPU8)]
    monkeypatch.setattr(ray_nodes, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(ray_nodes, "list_nodes", lambda: seen.pop(0) if seen else cluster(GPU8))
    caplog.set_level(logging.WARNING, "fcnseg")
    compute = ComputeConfig()
    with ray_nodes.watch_nodes(compute, plan_replicas(compute, cluster(GPU8))):
        while seen:
            time.sleep(0.01)
    assert [record.getMessage() for record in caplog.records] == [
        "asks for 1 GPU per worker, the cluster has none: waiting for a node",
        "a suitable node has joined",
    ]  # fmt: skip
