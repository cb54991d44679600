"""The promises that hold the house: imports run one way, heavy packages load where they work."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("fcn_core", "pipeline", "flows")
MODULES = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
FORBIDDEN = {
    "fcn_core": {"pipeline", "flows", "ray", "prefect", "fsspec", "s3fs", "pydantic"},
    "pipeline": {"flows", "prefect"},
    "flows": {"torch", "torchvision", "ray"},
}


def imports(path: Path) -> Iterator[str]:
    """Top-level names of everything a module imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_run_one_way(path: Path) -> None:
    found, package = set(imports(path)), path.relative_to(ROOT).parts[0]
    assert not found & FORBIDDEN[package]
    if package == "pipeline" and not path.stem.startswith("ray_"):
        assert "ray" not in found


@pytest.mark.parametrize("package", PACKAGES)
def test_folders_stay_small_enough_to_read(package: str) -> None:
    for folder in {path.parent for path in MODULES if path.is_relative_to(ROOT / package)}:
        assert len(list(folder.glob("*.py"))) <= 50, folder


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("fcn_core.metrics", "torch ray prefect fsspec"),
        ("fcn_core.checkpoint", "torch ray prefect fsspec"),
        ("fcn_core.published", "torch google.protobuf"),
        ("fcn_core.caffemodel", "torch google.protobuf"),
        ("fcn_core.predictor", "ray prefect fsspec"),
        ("pipeline.run", "torch ray prefect pandas"),
        ("pipeline.cli", "torch ray prefect pandas"),
        ("flows.label", "torch ray"),
    ],
)
def test_importing_loads_no_more_than_it_must(module: str, absent: str) -> None:
    script = f"import sys, {module}; sys.exit(repr(set({absent.split()}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stderr.strip() == "set()"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350


def test_every_package_is_typed_and_shipped() -> None:
    for package in PACKAGES:
        assert (ROOT / package / "py.typed").exists()


def calls(path: Path) -> Iterator[str]:
    """What a module calls, as it is written: "torch.load", with the names of its arguments."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield f"{ast.unparse(node.func)}({', '.join(str(k.arg) for k in node.keywords)})"


def test_pickles_travel_between_our_own_processes_alone() -> None:
    pickling = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    found = {dotted(path) for path in MODULES if pickling & set(imports(path))}
    assert found == {
        "fcn_core.statedict",  # to know pickle's errors: torch reads, with weights_only
        "pipeline.ray_job",
        "pipeline.workers.inside",
        "pipeline.workers.process",
    }
    assert not any(call.startswith("pickle.load") for call in calls(ROOT / "fcn_core/statedict.py"))


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_nothing_that_comes_from_a_store_is_executed(path: Path) -> None:
    for call in calls(path):
        name = call.partition("(")[0]
        assert name not in ("eval", "exec", "os.system", "yaml.unsafe_load", "yaml.full_load"), call
        assert "allow_pickle" not in call and "shell" not in call, call
        if name == "torch.load":
            assert "weights_only" in call
        if name == "yaml.load":
            assert dotted(path) == "pipeline.yaml_text"  # whose loader is a SafeLoader


@pytest.mark.slow
def test_tests_are_called_the_same_in_every_process() -> None:
    """Or the two processes of `make test` refuse to share them: names hold no time of day, no
    order of a set, no folder of a process."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]

    def names(seed: str) -> list[str]:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        return [line for line in run.stdout.splitlines() if "::" in line]

    first = names("1")
    assert len(first) > 3_000
    assert names("2") == first  # begun seconds later
