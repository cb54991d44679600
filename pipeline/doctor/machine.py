"""What this machine is: versions, memory, disk, limits, devices. Runs on every node of a cluster.

Imports nothing that is not in the standard library before it is needed: what is missing is told.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata

from pipeline.doctor.finding import Finding, fine, problem, warning

PACKAGE = "fcn-pipeline"

MEMORY = 4 * 2**30
"""Bytes below which an FCN-8s of full width (0.5 GiB, and as much again to load it) is tight."""

DISK = 5 * 2**30
"""Bytes of temporary files: an embedded Ray keeps its session and its overflow there."""

RAY_DISK_SHARE = 0.95
"""Ray 2.60 makes no more objects on disk from this share on (local_fs_capacity_threshold)."""

SHARED_MEMORY = 512 * 2**20
"""Bytes of an embedded Ray's object store; see `pipeline.executors.ray_executor`."""

OPEN_FILES = 8192
"""What Ray 2.60 itself asks for when it starts."""


def examine_packages() -> Iterator[Finding]:
    """Python and the packages, against the ranges that were tested."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        mine = metadata.metadata(PACKAGE)
    except metadata.PackageNotFoundError:
        remedy = "Install it: make setup, or pip install of the wheel."
        yield warning("packages", f"{PACKAGE} is not installed, so its ranges are unknown", remedy)
        return
    wanted, version = mine["Requires-Python"], platform.python_version()
    if version in SpecifierSet(wanted):
        yield fine("Python", f"{version} ({sys.executable}); wanted {wanted}")
    else:
        yield problem("Python", f"{version}; wanted {wanted}", "Use another Python.")
    requirements = [Requirement(text) for text in metadata.requires(PACKAGE) or ()]
    bad = 0
    needed = [item for item in requirements if item.marker is None or item.marker.evaluate()]
    for item in needed:
        complaint = _judge(item.name, str(item.specifier))
        if complaint is not None:
            bad += 1
            yield complaint
    if not bad:
        yield fine(PACKAGE, f"{mine['Version']}; all {len(needed)} packages within tested ranges")


def _judge(name: str, specifier: str) -> Finding | None:
    from packaging.specifiers import SpecifierSet

    remedy = f"Install what was tested: requirements.lock, or pip install '{name}{specifier}'."
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return problem(name, f"not installed; wanted {specifier}", remedy)
    if SpecifierSet(specifier).contains(version, prereleases=True):
        return None
    return warning(name, f"{version}; tested with {specifier}", remedy)


def examine_machine(*, embeds_ray: bool) -> Iterator[Finding]:
    """Memory, disk and limits of this machine.

    Args:
        embeds_ray: whether a Ray is to be started here.
    """
    yield _memory()
    yield from _disk(embeds_ray)
    if embeds_ray:
        yield _shared_memory()
    yield _open_files()


def examine_device(wanted: str) -> Iterator[Finding]:
    """What networks would compute on here. Imports torch.

    Args:
        wanted: compute.device.
    """
    try:
        import torch
    except ImportError as error:
        yield problem("torch", f"cannot be imported ({error})", "Install what was tested.")
        return
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield fine("device", f"{names}; torch {torch.__version__}")
        return
    cores = (
        f"{len(os.sched_getaffinity(0))} CPU cores and no CUDA device; torch {torch.__version__}"
    )
    driver = _driver()
    if wanted == "cuda":
        yield problem("device", f"{cores}; {driver or 'no NVIDIA driver'}",
                      "Drop compute.device=cuda, or run where a GPU is.")  # fmt: skip
    elif driver is not None:
        yield warning("device", f"{cores}, although there is one: {driver}",
                      f"Update it: torch wants one for CUDA {torch.version.cuda}.")  # fmt: skip
    else:
        yield fine("device", cores)


def _driver() -> str | None:
    """GPUs and the version of their driver, as nvidia-smi tells them."""
    if shutil.which("nvidia-smi") is None:
        return None
    ask = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "; driver ".join(done.stdout.strip().split(", ")) if done.returncode == 0 else None


def _memory() -> Finding:
    from pipeline.workers.supervisor import machine_memory

    there = machine_memory()
    if there >= MEMORY:
        return fine("memory", gib(there))
    remedy = "Start fewer workers (compute.workers) or take a larger machine."
    return warning("memory", f"{gib(there)}; {gib(MEMORY)} hold an FCN-8s of full width", remedy)


def _disk(embeds_ray: bool) -> Iterator[Finding]:
    place = tempfile.gettempdir()
    usage = shutil.disk_usage(place)
    share = 1 - usage.free / usage.total
    said = f"{gib(usage.free)} free"
    if embeds_ray and share > RAY_DISK_SHARE:
        remedy = "Make room: Ray fails with OutOfDiskError from 95 % on when it must spill."
        yield warning(f"disk {place}", f"{said}, {share:.0%} used", remedy)
    elif usage.free < DISK:
        remedy = f"Make room, or set TMPDIR to a place with {gib(DISK)}."
        yield warning(f"disk {place}", said, remedy)
    else:
        yield fine(f"disk {place}", said)


def _shared_memory(place: str = "/dev/shm") -> Finding:
    if not os.path.isdir(place):
        return warning(place, "does not exist", "Ray keeps objects on disk then, which is slow.")
    free = shutil.disk_usage(place).free
    if free >= SHARED_MEMORY:
        return fine(place, f"{gib(free)} free")
    remedy = "In a container: --shm-size=2g (Docker), an emptyDir of medium Memory (Kubernetes)."
    return warning(place, f"{gib(free)} free; Ray's objects want {gib(SHARED_MEMORY)}", remedy)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return fine("open files", f"at most {soft}")
    can = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    remedy = f"Raise it: ulimit -n {can}" + ("." if can > soft else ", as root or in limits.conf.")
    return warning("open files", f"at most {soft}; Ray asks for {OPEN_FILES}", remedy)


def gib(num_bytes: float) -> str:
    """Bytes for people.

    >>> gib(3 * 2**29)
    '1.5 GiB'
    """
    return f"{num_bytes / 2**30:.1f} GiB"
