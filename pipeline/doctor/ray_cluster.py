"""Check a Ray cluster for `fcnseg doctor --address`: token, versions, resources, and every node.

On each node a task checks the machine and tries INPUT, OUTPUT and the weights from that node,
because workers can have other credentials and packages than the driver.
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
"""Longest time for the checks of all nodes together; the first import on a node is slow."""


_SCALING = (
    "A cluster that scales from zero starts nodes only for a run: start one node of each type."
)


def examine_cluster(address: str, doctor_input: DoctorInput) -> Iterator[Finding]:
    """Yield findings on everything that a run of a configuration needs from a cluster.

    Args:
        address: host:port, auto or ray://…; or http(s)://… of the Jobs API, through which nodes
            can be counted but not checked.
        doctor_input: configuration to check.
    """
    config = doctor_input.config
    yield examine_token(os.environ, Path.home())
    if address.startswith(("http://", "https://")):
        yield from _examine_jobs_api(address, config)
        return
    try:
        with connect_ray(address):
            nodes = list_nodes()
            # No check of versions: Ray refuses the connection if Ray or Python differ.
            yield fine(f"ray {address}", f"{plural(len(nodes), 'node')}; Ray {ray.__version__}")
            yield from judge_resources(config.compute, nodes)
            yield from _examine_nodes(nodes, doctor_input)
    except FcnError as error:
        yield Finding.of(error)


def examine_token(environment: Mapping[str, str], home: Path) -> Finding:
    """Return a finding on whether a token would be sent, without the token itself.

    The order is that of Ray: RAY_AUTH_TOKEN, the file at RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    Args:
        environment: environment variables.
        home: home folder of the user.
    """
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    source, text = _token(environment, home)
    if mode == "disabled":
        return warning(
            "token", "RAY_AUTH_MODE is disabled: no token is sent",
            "A cluster that accepts this runs code from any sender; see SECURITY.md.",
        )  # fmt: skip
    if text:
        return fine("token", f"set ({source}); its value is not shown")
    remedy = "Get one from the cluster's administrator and save it as ~/.ray/auth_token (mode 600)."
    if mode == "token" or source is not None:
        return problem("token", f"RAY_AUTH_MODE={mode or 'unset'}, {source or 'none'}", remedy)
    return warning("token", "none is set; a cluster should require one", remedy)


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
    """Yield findings that compare the resources of a cluster with the needs of a run.

    Args:
        compute: `compute` section of the configuration.
        nodes: live nodes of the cluster.
    """
    live = list(nodes)
    yield _judge_gpus(compute, live)
    cpus = sum(node.amount("CPU") for node in live)
    if cpus < 2:
        found = f"{cpus:g} in total: reading, segmentation and writing cannot run in parallel"
        yield warning("CPUs", found, REMEDY)
    else:
        yield fine("CPUs", f"{cpus:g} on {plural(len(live), 'node')}")


def _judge_gpus(compute: ComputeConfig, nodes: list[Node]) -> Finding:
    """Compare the GPUs of the cluster with the request of the run."""
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
        request = f"asks for {wanted} workers of {share:g} GPU"
        return warning("GPUs", f"{request}, the cluster has {sum(gpus):g}: some wait", REMEDY)
    return fine("GPUs", f"{sum(gpus):g} on {plural(len(gpus), 'node')}")


def _examine_nodes(nodes: list[Node], doctor_input: DoctorInput) -> Iterator[Finding]:
    """Run the same checks on every node; merge equal findings of several nodes into one."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    checks = ray.remote(num_cpus=0, max_retries=0)(_check_node)
    tasks = {}
    for node in nodes:
        on_node = NodeAffinitySchedulingStrategy(node.id, soft=False)
        tasks[checks.options(scheduling_strategy=on_node).remote(doctor_input)] = node
    ready, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=NODE_SECONDS)
    addresses: dict[Finding, list[str]] = defaultdict(list)
    for task in ready:
        for finding in _findings(task):
            addresses[finding].append(tasks[task].address)
    for finding, where in sorted(addresses.items(), key=lambda item: item[0].level):
        names = list_names(sorted(where), 5)
        is_everywhere = len(nodes) > 1 and len(where) == len(nodes)
        place = f"all {len(nodes)} nodes" if is_everywhere else f"node {names}"
        yield Finding(finding.level, f"{place}: {finding.subject}", finding.found, finding.remedy)
    for task in late:
        yield problem(
            f"node {tasks[task].address}", f"no answer within {NODE_SECONDS:.0f} s",
            "Read the logs of the node: it is overloaded, or its workers cannot start.",
        )  # fmt: skip


def _findings(task: Any) -> list[Finding]:
    try:
        return list(ray.get(task))
    except ray.exceptions.RayError as error:
        text = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        remedy = "Install the same version of this package on every node (deploy/Dockerfile)."
        return [problem("workers", f"a task cannot run on this node ({text})", remedy)]


def _check_node(doctor_input: DoctorInput) -> list[Finding]:
    """Return the findings of a worker on its node: complaints, and access to the stores."""
    config = doctor_input.config
    machine = [*examine_packages(), *examine_machine(embeds_ray=True)]
    findings = [finding for finding in machine if finding.level != "ok"]
    findings.append(fine("Python", platform.python_version()))
    findings += examine_weights(config)
    if doctor_input.has_input:
        findings += examine_input(config.input)
    if doctor_input.has_output:
        findings += examine_writing(Store(config.output.url, config.output.store))
    return findings


def _examine_jobs_api(address: str, config: RunConfig) -> Iterator[Finding]:
    """Yield findings on a cluster that is reached through the Jobs API of its dashboard."""
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
        where, "the nodes cannot be checked from this machine",
        "Run fcnseg doctor on the cluster: ray job submit -- fcnseg doctor --address auto …",
    )  # fmt: skip
