"""Where the copies of the network go: what each asks for, how many there are, what is missing.

Nothing here knows Ray: nodes come in as plain values, so that every shape of cluster can be tried
in a test. Ray places by *logical* resources; which device a network computes on is another matter
(`compute.device`).
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
"""Logical CPUs of a read or write task: they wait for the store more than they compute."""


_IO_TASKS = 4
"""So many of them must always find room, or networks that hold every CPU wait for them forever."""


REMEDY = "Add nodes that have it, or ask for less (compute.gpus_per_worker, compute.workers)."


@dataclass(frozen=True)
class Node:
    """A live node, or one that an autoscaler could add: its logical resources and Ray labels."""

    id: str
    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def amount(self, resource: str) -> float:
        """How much of CPU, GPU, memory… it has."""
        return self.resources.get(resource, 0.0)


@dataclass(frozen=True)
class Pool:
    """The copies of the network of one run.

    Attributes:
        cpus, gpus: logical, of each copy.
        start: how many are asked for at once.
        most: how many there may be when nodes join; None: as many as there is room for.
        room: how many the present nodes can hold.
        avoid_gpu_nodes: whether reading and writing go first to nodes without GPUs.
        io_selector: of the nodes that may read and write, in Ray's label selectors; empty: any.
    """

    cpus: float
    gpus: float
    start: int
    most: int | None
    room: int
    avoid_gpu_nodes: bool
    io_selector: Mapping[str, str]


def plan_pool(compute: ComputeConfig, nodes: Sequence[Node], to_come: Sequence[Node] = ()) -> Pool:
    """What to ask a cluster for.

    Args:
        compute: of the run.
        nodes: the live ones.
        to_come: one of each kind that the cluster's autoscaler may add.

    Raises:
        ClusterError: no node, present or to come, can hold a copy, or read and write; in words.
    """
    gpus = gpu_share(compute, [*nodes, *to_come])
    hosts = [node for node in nodes if _may_hold(node, gpus, compute.worker_labels)]
    room = sum(_slots(node, gpus, compute.threads_per_worker) for node in hosts)
    if hosts:
        room = max(1, room)  # one that is slow, rather than none
    else:  # which labels a node will bear that is not there yet, nobody tells
        hosts = [node for node in to_come if _may_hold(node, gpus, ())]
    missing = lack(compute, nodes)
    if not hosts or (missing and not to_come):
        raise ClusterError(
            where="cluster",
            found=missing or "no node that can hold a copy of the network",
            expected="nodes that can do the work",
            remedy=REMEDY,
        )
    start = compute.workers or _within(compute, max(1, room))
    at_once = 1 if to_come else compute.min_workers or 1  # else an autoscaler makes room
    grows = gpus > 0 or compute.max_workers is not None
    return Pool(
        # Beside a GPU none: Ray Data hands CPUs out in shares, and a small cluster's share of less
        # than one would keep the pool from growing onto a GPU that is free.
        cpus=0.0 if gpus else _cpus(compute, hosts, nodes, at_once),
        gpus=gpus,
        start=start,
        most=compute.workers or (compute.max_workers if grows else start),
        room=room,
        avoid_gpu_nodes=gpus > 0 and any(not node.amount("GPU") for node in nodes),
        io_selector=selector(compute.io_labels) or (_apart(nodes, start) if gpus else {}),
    )


def gpu_share(compute: ComputeConfig, nodes: Iterable[Node]) -> float:
    """Logical GPUs of one copy; 0 where networks run on CPUs and ask for nothing else."""
    if compute.device == "cpu":
        return compute.gpus_per_worker or 0.0
    if compute.device == "auto" and not any(node.amount("GPU") for node in nodes):
        return 0.0
    return compute.gpus_per_worker or 1.0


def lack(compute: ComputeConfig, nodes: Sequence[Node]) -> str | None:
    """Why no node can hold a copy of the network, or read and write; None where one can."""
    gpus = gpu_share(compute, nodes)
    most = max((node.amount("GPU") for node in nodes), default=0.0)
    size = f"{gpus:g} GPU{'' if gpus <= 1 else 's'}"
    unit = f"{size} per worker"
    if gpus and not most:
        return f"asks for {unit}, the cluster has none"
    if gpus > most:
        return f"asks for {unit}, no node has more than {most:g}"
    if not any(_may_hold(node, gpus, compute.worker_labels) for node in nodes):
        wanted = ", ".join(compute.worker_labels)
        place = f"a node labelled {wanted}" + (f" with {size}" if gpus else "")
        return f"asks for {place}, and there is none"
    may_read = [node for node in nodes if matches(compute.io_labels, node.labels)]
    wanted = textwrap.shorten(", ".join(compute.io_labels), 90)
    if not may_read:
        return f"reads and writes on nodes labelled {wanted}, and there is none"
    if not any(node.amount("CPU") >= IO_CPUS for node in may_read):
        which = f"no node labelled {wanted}" if wanted else "no node"
        return f"reads and writes with CPUs, and {which} has any"
    return None


def selector(labels: Iterable[str]) -> dict[str, str]:
    """A label selector as Ray wants it.

    >>> selector(["zone=in(a,b)", "market=!spot"])
    {'zone': 'in(a,b)', 'market': '!spot'}
    """
    return dict(label.split("=", 1) for label in labels)


def matches(wanted: Iterable[str], labels: Mapping[str, str]) -> bool:
    """Whether the labels of a node are those that are wanted, as Ray will judge.

    >>> matches(["zone=in(a,b)", "market=!spot"], {"zone": "b"})
    True
    >>> matches(["zone=!in(a,b)"], {"zone": "b"}), matches(["zone=a"], {})
    (False, False)
    """
    for key, text in selector(wanted).items():
        listed = re.fullmatch(r"!?in\((.*)\)", text)
        values = listed.group(1).split(",") if listed else [text.removeprefix("!")]
        has = labels.get(key) in [value.strip() for value in values]
        if has == text.startswith("!"):
            return False
    return True


def _may_hold(node: Node, gpus: float, labels: Iterable[str]) -> bool:
    return node.amount("GPU") >= gpus and matches(labels, node.labels)


def _slots(node: Node, gpus: float, threads: int) -> int:
    """Copies that fit a node."""
    # Halves and thirds of a GPU are not exact in binary.
    return (
        math.floor(node.amount("GPU") / gpus + 1e-6) if gpus else int(node.amount("CPU") // threads)
    )


def _within(compute: ComputeConfig, count: int) -> int:
    """A number of copies within the bounds of the configuration."""
    count = max(count, compute.min_workers or 1)
    return min(count, compute.max_workers or count)


def _cpus(
    compute: ComputeConfig, hosts: Sequence[Node], nodes: Sequence[Node], at_once: int
) -> float:
    """Logical CPUs of one copy on CPUs: the most that lets reading and writing go on.

    Args:
        compute: of the run.
        hosts: nodes for copies.
        nodes: all of them.
        at_once: copies that must find room on these, though they have none to spare.
    """
    threads = compute.threads_per_worker
    slots = sum(_slots(node, 0.0, threads) for node in hosts)
    copies = compute.workers or max(1, slots, at_once)
    here = sum(node.amount("CPU") for node in hosts) or 1.0
    ids = {node.id for node in hosts}
    others = [node for node in nodes if node.id not in ids]
    may_read = [n for n in (*hosts, *others) if matches(compute.io_labels, n.labels)]

    def io_tasks(cpus: float) -> int:
        """Read and write tasks that find room beside all copies; in pieces, no node has any."""
        found = 0
        for node in may_read or hosts:
            held = copies * cpus * node.amount("CPU") / here if node.id in ids else 0.0
            found += max(0, math.floor((node.amount("CPU") - held) / IO_CPUS + 1e-6))
        return found

    def room(cpus: float) -> int:
        """Copies that fit these nodes, each of them whole on one."""
        return sum(math.floor(node.amount("CPU") / cpus + 1e-6) for node in hosts)

    # Ray wants whole numbers above one.
    wanted = [float(whole) for whole in range(threads, 0, -1)] + _PARTS
    most = max(node.amount("CPU") for node in hosts)
    fitting = (c for c in wanted if c <= most and room(c) >= copies)
    return next((c for c in fitting if io_tasks(c) >= _IO_TASKS), 0.0)


def _apart(nodes: Sequence[Node], copies: int) -> dict[str, str]:
    """A selector of the nodes without GPUs, where these can read and write for so many copies.

    They can where they have room for four tasks for each copy, and no fewer CPUs than the nodes
    with GPUs: a small head does not hold up the large machines that decode for themselves.
    """
    with_gpus = [node for node in nodes if node.amount("GPU")]
    others = [node for node in nodes if not node.amount("GPU")]
    cpus = sum(node.amount("CPU") for node in others)
    tasks = sum(math.floor(node.amount("CPU") / IO_CPUS) for node in others)
    if tasks < _IO_TASKS * copies or cpus < sum(node.amount("CPU") for node in with_gpus):
        return {}
    # By what they are not: a node that takes the place of a lost one must be allowed.
    groups = {node.labels.get(_GROUP, "") for node in with_gpus}
    if "" not in groups and not groups & {node.labels.get(_GROUP, "") for node in others}:
        return {_GROUP: f"!in({','.join(sorted(groups))})"}
    if len(with_gpus) > _MOST_NAMED:
        return {}
    return {"ray.io/node-id": f"!in({','.join(sorted(node.id for node in with_gpus))})"}


_GROUP = "ray.io/node-group"
"""The kind of a node, which autoscalers set: it also tells of nodes that join later."""


_MOST_NAMED = 100
"""Nodes whose ids travel with every task that reads or writes; 56 characters each."""


_PARTS = [0.75, 0.5, 0.25, 0.125, 0.0625]
"""Of a CPU, for a copy that must share one."""
