"""A cluster, as `fcnseg doctor --address` sees it: token, versions, resources, and every node.

On each node a task looks at the machine, and tries INPUT, OUTPUT and the weights from there:
credentials and packages that the driver has say nothing about those of the workers.
"""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fcn_core.errors import FcnError
from pipeline.config import ComputeConfig, RunConfig
from pipeline.doctor.checks import DoctorInput, examine_input, examine_weights, examine_writing
from pipeline.doctor.finding import Finding, fine, problem, warning
from pipeline.doctor.machine import examine_machine, examine_packages
from pipeline.executors.placement import REMEDY, Node, describe_shortage, gpu_share
from pipeline.executors.ray_connection import connect_ray
from pipeline.storage.store import Store
from pipeline.text import list_names, plural

# isort: split
import ray  # after ray_connection, which sets what it reads at import

from pipeline.executors.ray_nodes import list_nodes

NODE_SECONDS = 180.0
"""How long all nodes together have for their looks: the first import on a node takes a while."""


_SCALING = "A cluster that scales from zero shows none before a run asks: start one node of each."


def examine_cluster(address: str, patient: DoctorInput) -> Iterator[Finding]:
    """Everything that the cluster must have for a run of this configuration.

    Args:
        address: host:port, auto, ray://… ; or http(s)://… of the Jobs API, from where nodes are
            counted, but not looked at.
        patient: what a run would ask for.
    """
    config = patient.config
    yield examine_token(os.environ, Path.home())
    if address.startswith(("http://", "https://")):
        yield from _examine_jobs_api(address, config)
        return
    try:
        with connect_ray(address):
            nodes = list_nodes()
            # Ray itself refuses to connect where Ray or Python are of other versions.
            yield fine(f"ray {address}", f"{plural(len(nodes), 'node')}; Ray {ray.__version__}")
            yield from judge_resources(config.compute, nodes)
            yield from _examine_nodes(nodes, patient)
    except FcnError as error:
        yield Finding.of(error)


def examine_token(environment: Mapping[str, str], home: Path) -> Finding:
    """Whether a token would be sent; never which.

    The order is Ray's own: RAY_AUTH_TOKEN, the file at RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.
    """
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    source, text = _token(environment, home)
    if mode == "disabled":
        return warning(
            "token", "RAY_AUTH_MODE is disabled: none is sent",
            "A cluster that accepts this runs whatever anybody sends; see SECURITY.md.",
        )  # fmt: skip
    if text:
        return fine("token", f"there is one ({source}), not shown here")
    remedy = "Ask whoever runs the cluster, and put it into ~/.ray/auth_token (mode 600)."
    if mode == "token" or source is not None:
        return problem("token", f"RAY_AUTH_MODE={mode or 'unset'}, {source or 'none'}", remedy)
    return warning("token", "none is set; a cluster should demand one", remedy)


def _token(environment: Mapping[str, str], home: Path) -> tuple[str | None, str]:
    if environment.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN", environment["RAY_AUTH_TOKEN"].strip()
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else home / ".ray" / "auth_token"
    try:
        return str(path), path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        return (f"{path} cannot be read ({error})" if named else None), ""


def judge_resources(compute: ComputeConfig, nodes: Iterable[Node]) -> Iterator[Finding]:
    """What a run asks for against what the cluster has.

    Args:
        compute: of the run.
        nodes: the live ones.
    """
    there = list(nodes)
    yield _judge_gpus(compute, there)
    cpus = sum(node.amount("CPU") for node in there)
    if cpus < 2:
        found = f"{cpus:g} in all: reading, writing and networks take turns"
        yield warning("CPUs", found, REMEDY)
    else:
        yield fine("CPUs", f"{cpus:g} on {plural(len(there), 'node')}")


def _judge_gpus(compute: ComputeConfig, nodes: list[Node]) -> Finding:
    """The GPUs of the nodes that have any, against what is asked for."""
    share = gpu_share(compute, nodes)
    gpus = [node.amount("GPU") for node in nodes if node.amount("GPU")]
    missing = describe_shortage(compute, nodes)
    if missing is not None:
        remedy = REMEDY if gpus or not share else f"{REMEDY} {_SCALING}"
        return problem("GPUs" if share else "nodes", missing, remedy)
    if not share:
        return fine("GPUs", f"{sum(gpus):g}; networks run on CPUs")
    wanted = compute.workers or compute.min_workers or 1
    if wanted * share > sum(gpus):
        asked = f"asks for {wanted} workers of {share:g} GPU"
        return warning("GPUs", f"{asked}, the cluster has {sum(gpus):g}: some wait", REMEDY)
    return fine("GPUs", f"{sum(gpus):g} on {plural(len(gpus), 'node')}")


def _examine_nodes(nodes: list[Node], patient: DoctorInput) -> Iterator[Finding]:
    """The same look on every node; equal findings are told once."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(_look_around)
    asked = {}
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node.id, soft=False)
        asked[look.options(scheduling_strategy=here).remote(patient)] = node
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_SECONDS)
    told: dict[Finding, list[str]] = defaultdict(list)
    for answer in ready:
        for finding in _answer(answer):
            told[finding].append(asked[answer].address)
    for finding, where in sorted(told.items(), key=lambda item: item[0].level):
        names = list_names(sorted(where), 5)
        everywhere = len(nodes) > 1 and len(where) == len(nodes)
        place = f"all {len(nodes)} nodes" if everywhere else f"node {names}"
        yield Finding(finding.level, f"{place}: {finding.subject}", finding.found, finding.remedy)
    for answer in late:
        yield problem(
            f"node {asked[answer].address}", f"no answer within {NODE_SECONDS:.0f} s",
            "Look at its logs: it is overloaded, or its workers cannot start.",
        )  # fmt: skip


def _answer(answer: Any) -> list[Finding]:
    try:
        return list(ray.get(answer))
    except ray.exceptions.RayError as error:
        text = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        remedy = "Install the same version of this package on every node (deploy/Dockerfile)."
        return [problem("workers", f"a task cannot run there ({text})", remedy)]


def _look_around(patient: DoctorInput) -> list[Finding]:
    """What a worker on this node finds: complaints, and what it could read and write."""
    config = patient.config
    machine = [*examine_packages(), *examine_machine(embeds_ray=True)]
    found = [finding for finding in machine if finding.level != "ok"]
    found.append(fine("Python", platform.python_version()))
    found += examine_weights(config)
    if patient.has_input:
        found += examine_input(config.input)
    if patient.has_output:
        found += examine_writing(Store(config.output.url, config.output.store))
    return found


def _examine_jobs_api(address: str, config: RunConfig) -> Iterator[Finding]:
    """The cluster as its dashboard tells it; a driver from outside cannot look at nodes."""
    import requests
    from ray.job_submission import JobSubmissionClient
    from ray.util.state import list_nodes

    where = f"ray {address}"
    try:
        JobSubmissionClient(address).list_jobs()
        states = list_nodes(address=address, filters=[("state", "=", "ALIVE")], limit=10_000)
    except (
        ConnectionError,
        RuntimeError,
        requests.RequestException,
        ray.exceptions.RayError,
    ) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        yield problem(
            where, lines[0].rstrip("."), "Check the address and the token (~/.ray/auth_token)."
        )
        return
    nodes = [
        Node(state.node_id, state.node_ip, state.resources_total, state.labels or {})
        for state in states
    ]
    yield fine(where, f"the Jobs API answers; {plural(len(nodes), 'node')}")
    yield from judge_resources(config.compute, nodes)
    yield warning(
        where, "nodes cannot be looked at from here",
        "Run fcnseg doctor on the cluster: ray job submit -- fcnseg doctor --address auto …",
    )  # fmt: skip
