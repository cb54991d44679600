"""Check one machine: versions, memory, disk, limits, devices. Runs on every node of a cluster.

At import time this module needs the standard library only, so that a missing package becomes a
finding and not an ImportError.
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
"""Recommended bytes of memory: an FCN-8s of full width takes 0.5 GiB, and twice that to load."""

DISK = 5 * 2**30
"""Recommended bytes for temporary files: an embedded Ray writes its session and objects there."""

RAY_DISK_SHARE = 0.95
"""Used share of the disk above which Ray 2.60 spills no objects (local_fs_capacity_threshold)."""

SHARED_MEMORY = 512 * 2**20
"""Recommended bytes in /dev/shm: the object store of an embedded Ray (see `ray_executor`)."""

OPEN_FILES = 8192
"""Number of open files that Ray 2.60 requests when it starts."""


def examine_packages() -> Iterator[Finding]:
    """Yield findings on Python and the installed packages, against the tested versions."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        package = metadata.metadata(PACKAGE)
    except metadata.PackageNotFoundError:
        remedy = "Install it: make setup, or pip install of the wheel."
        yield warning(
            "packages", f"{PACKAGE} is not installed, so the tested versions are unknown", remedy
        )
        return
    wanted, version = package["Requires-Python"], platform.python_version()
    if version in SpecifierSet(wanted):
        yield fine("Python", f"{version} ({sys.executable}); required: {wanted}")
    else:
        yield problem("Python", f"{version}; required: {wanted}", "Use a supported Python version.")
    requirements = [Requirement(text) for text in metadata.requires(PACKAGE) or ()]
    complaints = 0
    needed = [item for item in requirements if item.marker is None or item.marker.evaluate()]
    for item in needed:
        complaint = _judge(item.name, str(item.specifier))
        if complaint is not None:
            complaints += 1
            yield complaint
    if not complaints:
        found = f"{package['Version']}; all {len(needed)} packages have tested versions"
        yield fine(PACKAGE, found)


def _judge(name: str, specifier: str) -> Finding | None:
    from packaging.specifiers import SpecifierSet

    remedy = (
        f"Install a tested version: from requirements.lock, or pip install '{name}{specifier}'."
    )
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return problem(name, f"not installed; required: {specifier}", remedy)
    if SpecifierSet(specifier).contains(version, prereleases=True):
        return None
    return warning(name, f"{version}; tested with {specifier}", remedy)


def examine_machine(*, embeds_ray: bool) -> Iterator[Finding]:
    """Yield findings on memory, disk and limits of this machine.

    Args:
        embeds_ray: whether the run starts an embedded Ray on this machine.
    """
    yield _memory()
    yield from _disk(embeds_ray)
    if embeds_ray:
        yield _shared_memory()
    yield _open_files()


def examine_device(wanted: str) -> Iterator[Finding]:
    """Yield findings on the devices of this machine. Imports torch.

    Args:
        wanted: requested device, `compute.device`.
    """
    try:
        import torch
    except ImportError as error:
        yield problem("torch", f"cannot be imported ({error})", "Install a tested version.")
        return
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield fine("device", f"{names}; torch {torch.__version__}")
        return
    cores = (
        f"{len(os.sched_getaffinity(0))} CPU cores and no CUDA device; torch {torch.__version__}"
    )
    driver = nvidia_driver()
    if wanted == "cuda":
        yield problem("device", f"{cores}; {driver or 'no NVIDIA driver'}",
                      "Remove compute.device=cuda, or run on a machine with a GPU.")  # fmt: skip
    elif driver is not None:
        found = f"{cores}, although nvidia-smi lists one: {driver}"
        remedy = f"Update the driver: torch needs one for CUDA {torch.version.cuda}."
        yield warning("device", found, remedy)
    else:
        yield fine("device", cores)


def nvidia_driver() -> str | None:
    """Return GPUs and their driver version from nvidia-smi; None if it does not work."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "; driver ".join(done.stdout.strip().split(", ")) if done.returncode == 0 else None


def _memory() -> Finding:
    from pipeline.workers.supervisor import machine_memory

    memory = machine_memory()
    if memory >= MEMORY:
        return fine("memory", gib(memory))
    remedy = "Start fewer workers (compute.workers) or take a larger machine."
    return warning("memory", f"{gib(memory)}; an FCN-8s of full width needs {gib(MEMORY)}", remedy)


def _disk(embeds_ray: bool) -> Iterator[Finding]:
    place = tempfile.gettempdir()
    usage = shutil.disk_usage(place)
    share = 1 - usage.free / usage.total
    free = f"{gib(usage.free)} free"
    if embeds_ray and share > RAY_DISK_SHARE:
        remedy = "Free some space: above 95 % Ray fails with OutOfDiskError when it must spill."
        yield warning(f"disk {place}", f"{free}, {share:.0%} used", remedy)
    elif usage.free < DISK:
        remedy = f"Free some space, or set TMPDIR to a folder with {gib(DISK)} free."
        yield warning(f"disk {place}", free, remedy)
    else:
        yield fine(f"disk {place}", free)


def _shared_memory(place: str = "/dev/shm") -> Finding:
    if not os.path.isdir(place):
        return warning(
            place,
            "does not exist",
            "Mount it: without it Ray keeps objects on disk, which is slow.",
        )
    free = shutil.disk_usage(place).free
    if free >= SHARED_MEMORY:
        return fine(place, f"{gib(free)} free")
    remedy = "In a container: --shm-size=2g (Docker), an emptyDir of medium Memory (Kubernetes)."
    return warning(
        place, f"{gib(free)} free; Ray's object store needs {gib(SHARED_MEMORY)}", remedy
    )


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return fine("open files", f"at most {soft}")
    limit = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    how = "." if limit > soft else ", as root or in limits.conf."
    remedy = f"Raise the limit: ulimit -n {limit}{how}"
    return warning("open files", f"at most {soft}; Ray requests {OPEN_FILES}", remedy)


def gib(num_bytes: float) -> str:
    """Return a number of bytes as text in GiB.

    >>> gib(3 * 2**29)
    '1.5 GiB'
    """
    return f"{num_bytes / 2**30:.1f} GiB"
