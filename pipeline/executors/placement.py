"""Plan the replicas of the network on a cluster: resources of each, how many, on which nodes.

Nothing here imports Ray: nodes are plain values, so that tests can try clusters of any shape. Ray
places tasks by *logical* resources. They do not decide on which device a network computes: that is
`compute.device`.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.config import ComputeConfig
from pipeline.errors import ClusterError

IO_CPUS = 0.25
"""Logical CPUs of a read or write task. It is small because a task mostly waits for the store."""


_IO_TASKS = 4
"""Read and write tasks that must always fit. Otherwise replicas wait for chunks for ever."""


REMEDY = (
    "Add nodes that have the missing resources, or ask for less "
    "(compute.gpus_per_worker, compute.workers)."
)


_GROUP = "ray.io/node-group"
"""Label of a node's type, set by autoscalers: it also matches nodes that join later."""


_MAX_NAMED_NODES = 100
"""Most node ids in a label selector: it is sent with every I/O task, 56 characters per id."""


_PARTS = [0.75, 0.5, 0.25, 0.125, 0.0625]
"""Parts of a CPU for replicas that share one."""


@dataclass(frozen=True)
class Node:
    """A running node, or one that an autoscaler could add.

    Attributes:
        id: Ray's id of the node; for a node of an autoscaler, the name of its node type.
        address: IP address; empty for a node that does not run yet.
        resources: logical resources: "CPU", "GPU", "memory" and others.
        labels: Ray's node labels.
    """

    id: str
    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def amount(self, resource: str) -> float:
        """Return the amount of a logical resource ("CPU", "GPU", …); 0.0 if the node has none."""
        return self.resources.get(resource, 0.0)


@dataclass(frozen=True)
class ReplicaPlan:
    """The replicas of the network of one run.

    Attributes:
        cpus: logical CPUs of each replica.
        gpus: logical GPUs of each replica.
        initial: number of replicas to request at the start.
        maximum: most replicas when nodes join; None: as many as fit.
        capacity: number of replicas that fit on the present nodes.
        avoid_gpu_nodes: whether read and write tasks prefer nodes without GPUs.
        io_selector: Ray label selector of the nodes that may read and write; empty: any node.
    """

    cpus: float
    gpus: float
    initial: int
    maximum: int | None
    capacity: int
    avoid_gpu_nodes: bool
    io_selector: Mapping[str, str]


def plan_replicas(
    compute: ComputeConfig, nodes: Sequence[Node], addable: Sequence[Node] = ()
) -> ReplicaPlan:
    """Return how many replicas to request from a cluster, and with which resources.

    Args:
        compute: the `compute` section of the configuration.
        nodes: the running nodes.
        addable: one node of each type that the cluster's autoscaler may add.

    Raises:
        ClusterError: no node can hold a replica, or no node can read and write.
    """
    gpus = gpu_share(compute, [*nodes, *addable])
    hosts = [node for node in nodes if _can_hold(node, gpus, compute.worker_labels)]
    capacity = sum(_count_slots(node, gpus, compute.threads_per_worker) for node in hosts)
    if hosts:
        capacity = max(1, capacity)  # a slow replica is better than none
    else:  # the labels of nodes that an autoscaler would add are not known
        hosts = [node for node in addable if _can_hold(node, gpus, ())]
    shortage = describe_shortage(compute, nodes)
    if not hosts or (shortage and not addable):
        raise ClusterError(
            where="cluster",
            found=shortage or "no node that can hold a replica of the network",
            expected="nodes that can run all stages",
            remedy=REMEDY,
        )
    initial = compute.workers or _clamp(compute, max(1, capacity))
    # With an autoscaler, more than one replica may wait for new nodes.
    required = 1 if addable else compute.min_workers or 1
    can_grow = gpus > 0 or compute.max_workers is not None
    return ReplicaPlan(
        # 0 CPUs on a GPU: Ray Data gives each stage a share of the CPUs. On a small cluster the
        # share may be less than one, and then a new replica would not start on a free GPU.
        cpus=0.0 if gpus else _cpus_per_replica(compute, hosts, nodes, required),
        gpus=gpus,
        initial=initial,
        maximum=compute.workers or (compute.max_workers if can_grow else initial),
        capacity=capacity,
        avoid_gpu_nodes=gpus > 0 and any(not node.amount("GPU") for node in nodes),
        io_selector=to_label_selector(compute.io_labels)
        or (_select_cpu_nodes(nodes, initial) if gpus else {}),
    )


def gpu_share(compute: ComputeConfig, nodes: Iterable[Node]) -> float:
    """Return the logical GPUs of one replica; 0.0 if networks run on CPUs without a GPU share."""
    if compute.device == "cpu":
        return compute.gpus_per_worker or 0.0
    if compute.device == "auto" and not any(node.amount("GPU") for node in nodes):
        return 0.0
    return compute.gpus_per_worker or 1.0


def describe_shortage(compute: ComputeConfig, nodes: Sequence[Node]) -> str | None:
    """Return why no node can hold a replica, or read and write; None if the nodes suffice.

    The text is a clause without a subject: "asks for 1 GPU per worker, the cluster has none".
    """
    gpus = gpu_share(compute, nodes)
    largest = max((node.amount("GPU") for node in nodes), default=0.0)
    size = f"{gpus:g} GPU{'' if gpus <= 1 else 's'}"
    unit = f"{size} per worker"
    if gpus and not largest:
        return f"asks for {unit}, the cluster has none"
    if gpus > largest:
        return f"asks for {unit}, no node has more than {largest:g}"
    if not any(_can_hold(node, gpus, compute.worker_labels) for node in nodes):
        wanted = ", ".join(compute.worker_labels)
        node = (f"a node with {size} and" if gpus else "a node with") + f" the labels {wanted}"
        return f"asks for {node}, and there is none"
    io_nodes = [node for node in nodes if matches(compute.io_labels, node.labels)]
    wanted = textwrap.shorten(", ".join(compute.io_labels), 90)
    if not io_nodes:
        return f"reads and writes on nodes with the labels {wanted}, and there is none"
    if not any(node.amount("CPU") >= IO_CPUS for node in io_nodes):
        which = f"no node with the labels {wanted}" if wanted else "no node"
        return f"reads and writes with CPUs, and {which} has any"
    return None


def to_label_selector(labels: Iterable[str]) -> dict[str, str]:
    """Return a Ray label selector made from "key=value" strings.

    >>> to_label_selector(["zone=in(a,b)", "market=!spot"])
    {'zone': 'in(a,b)', 'market': '!spot'}
    """
    return dict(label.split("=", 1) for label in labels)


def matches(wanted: Iterable[str], labels: Mapping[str, str]) -> bool:
    """Return whether the labels of a node match all of the wanted ones, by Ray's rules.

    >>> matches(["zone=in(a,b)", "market=!spot"], {"zone": "b"})
    True
    >>> matches(["zone=!in(a,b)"], {"zone": "b"}), matches(["zone=a"], {})
    (False, False)
    """
    for key, text in to_label_selector(wanted).items():
        listed = re.fullmatch(r"!?in\((.*)\)", text)
        values = listed.group(1).split(",") if listed else [text.removeprefix("!")]
        is_listed = labels.get(key) in [value.strip() for value in values]
        if is_listed == text.startswith("!"):
            return False
    return True


def _can_hold(node: Node, gpus: float, labels: Iterable[str]) -> bool:
    return node.amount("GPU") >= gpus and matches(labels, node.labels)


def _count_slots(node: Node, gpus: float, threads: int) -> int:
    """Return the number of replicas that fit on a node."""
    # 1e-6: a third of a GPU is not exact in binary.
    return (
        math.floor(node.amount("GPU") / gpus + 1e-6) if gpus else int(node.amount("CPU") // threads)
    )


def _clamp(compute: ComputeConfig, count: int) -> int:
    """Limit a number of replicas to `compute.min_workers` and `compute.max_workers`."""
    count = max(count, compute.min_workers or 1)
    return min(count, compute.max_workers or count)


def _cpus_per_replica(
    compute: ComputeConfig, hosts: Sequence[Node], nodes: Sequence[Node], required: int
) -> float:
    """Return the logical CPUs of a replica on CPUs: the most that leaves room for I/O tasks.

    Args:
        compute: the `compute` section of the configuration.
        hosts: the nodes that may hold replicas.
        nodes: all nodes.
        required: replicas that must fit on the hosts at once, even if each gets few CPUs.

    Returns:
        A whole number, or a part of one CPU; 0.0 if even the smallest part leaves no room.
    """
    threads = compute.threads_per_worker
    slots = sum(_count_slots(node, 0.0, threads) for node in hosts)
    replicas = compute.workers or max(1, slots, required)
    host_cpus = sum(node.amount("CPU") for node in hosts) or 1.0
    ids = {node.id for node in hosts}
    others = [node for node in nodes if node.id not in ids]
    io_nodes = [n for n in (*hosts, *others) if matches(compute.io_labels, n.labels)]

    def count_io_tasks(cpus: float) -> int:
        # The replicas are spread over the hosts in proportion to their CPUs. A task needs its CPUs
        # on one node, so each node is rounded down.
        tasks = 0
        for node in io_nodes or hosts:
            held = replicas * cpus * node.amount("CPU") / host_cpus if node.id in ids else 0.0
            tasks += max(0, math.floor((node.amount("CPU") - held) / IO_CPUS + 1e-6))
        return tasks

    def count_replicas(cpus: float) -> int:
        # A replica needs its CPUs on one node, too.
        return sum(math.floor(node.amount("CPU") / cpus + 1e-6) for node in hosts)

    # Above one CPU, Ray takes only whole numbers.
    candidates = [float(whole) for whole in range(threads, 0, -1)] + _PARTS
    largest = max(node.amount("CPU") for node in hosts)
    fitting = (c for c in candidates if c <= largest and count_replicas(c) >= replicas)
    return next((c for c in fitting if count_io_tasks(c) >= _IO_TASKS), 0.0)


def _select_cpu_nodes(nodes: Sequence[Node], replicas: int) -> dict[str, str]:
    """Return a label selector that keeps I/O tasks on the nodes without GPUs; empty: any node.

    The nodes without GPUs read and write alone if four tasks per replica fit on them, and if they
    have at least as many CPUs as the nodes with GPUs. So a small head node never slows down large
    GPU nodes that could read and write for themselves.
    """
    with_gpus = [node for node in nodes if node.amount("GPU")]
    others = [node for node in nodes if not node.amount("GPU")]
    cpus = sum(node.amount("CPU") for node in others)
    tasks = sum(math.floor(node.amount("CPU") / IO_CPUS) for node in others)
    if tasks < _IO_TASKS * replicas or cpus < sum(node.amount("CPU") for node in with_gpus):
        return {}
    # Exclude the GPU nodes instead of naming the others: a new node in place of a lost one must
    # be allowed.
    groups = {node.labels.get(_GROUP, "") for node in with_gpus}
    if "" not in groups and not groups & {node.labels.get(_GROUP, "") for node in others}:
        return {_GROUP: f"!in({','.join(sorted(groups))})"}
    if len(with_gpus) > _MAX_NAMED_NODES:
        return {}
    return {"ray.io/node-id": f"!in({','.join(sorted(node.id for node in with_gpus))})"}
