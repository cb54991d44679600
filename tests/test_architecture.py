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


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("fcn_core.metrics", "torch ray prefect fsspec"),
        ("fcn_core.weights.weights_file", "torch ray prefect fsspec"),
        ("fcn_core.weights.published", "torch google.protobuf"),
        ("fcn_core.weights.caffemodel", "torch google.protobuf"),
        ("fcn_core.predictor", "ray prefect fsspec"),
        ("pipeline.driver", "torch ray prefect pandas"),
        ("pipeline", "numpy pyarrow fsspec pydantic yaml PIL"),
        (
            "pipeline.cli.app",
            "torch ray prefect numpy pyarrow fsspec pydantic yaml PIL rich.console",
        ),
        ("flows.label", "torch ray"),
    ],
)
def test_importing_loads_no_more_than_it_must(module: str, absent: str) -> None:
    script = f"import sys, {module}; sys.exit(repr(set({absent.split()}) & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stderr.strip() == "set()"


ROOMS = (
    # The science: arrays in, arrays out.
    "fcn_core.errors",
    "fcn_core.labels",
    "fcn_core.metrics",
    "fcn_core.images",
    "fcn_core.preprocessing",
    "fcn_core.networks",
    "fcn_core.weights",
    "fcn_core.inference",
    "fcn_core.predictor",
    "fcn_core.calibration",
    "fcn_core.datasets",
    "fcn_core.training",
    # The pipeline's ground: one file each.
    "pipeline.errors",
    "pipeline.concurrency",
    "pipeline.text",
    "pipeline.redact",
    "pipeline.formats",
    "pipeline.paths",
    "pipeline.logs",
    "pipeline.signals",
    # The journey of a shard: where bytes lie, what they hold, what is done to them, what is left.
    "pipeline.storage",
    "pipeline.config",
    "pipeline.inputs",
    "pipeline.limits",
    "pipeline.manifest",
    "pipeline.stages",
    "pipeline.workers",
    "pipeline.output",
    "pipeline.monitoring",
    "pipeline.report",
    "pipeline.executors",
    # A run.
    "pipeline.plan",
    "pipeline.resolve",
    "pipeline.committer",
    "pipeline.finish",
    "pipeline.driver",
    # What else stands on these.
    "pipeline.training",
    "pipeline.evaluation",
    "pipeline.export",
    "pipeline.predict",
    "pipeline.weights",
    "pipeline.ray_jobs",
    "pipeline.doctor",
    "pipeline.cli",
    "pipeline.__main__",
    "flows",
)
"""Every room, lowest first: a room imports only from itself and from rooms before it."""

DOORS = ("fcn_core", "pipeline")
"""Packages whose `__init__` gives names of their rooms, each loaded when it is asked for."""

BY_NAME = {dotted(path).removesuffix(".__init__"): path for path in MODULES}


def room_of(module: str) -> str:
    """The room that a module is in; the module itself where it is in none."""
    rooms = [room for room in ROOMS if module == room or module.startswith(f"{room}.")]
    return max(rooms, key=len, default=module)


def imported_modules(path: Path) -> set[str]:
    """Our modules that a module imports, at any depth: in functions and for types as well."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in BY_NAME else node.module for name in inner}
    return names & BY_NAME.keys()


@pytest.mark.parametrize("module", sorted(BY_NAME.keys() - set(DOORS)))
def test_a_room_imports_only_from_rooms_before_it(module: str) -> None:
    assert room_of(module) in ROOMS, f"{module} is in no room: give it a place in ROOMS"
    place = ROOMS.index(room_of(module))
    above = {
        name
        for name in imported_modules(BY_NAME[module])
        if name in DOORS or ROOMS.index(room_of(name)) > place
    }
    assert not above, f"{module} imports from rooms above its own"


def test_every_room_exists() -> None:
    assert {room_of(module) for module in BY_NAME} >= set(ROOMS)


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {name: imported_modules(path) - {name} for name, path in BY_NAME.items()}
    while free := {name for name, needed in graph.items() if not needed & graph.keys()}:
        graph = {name: needed for name, needed in graph.items() if name not in free}
    assert not graph


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_modules_are_one_noun_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 900


FOLDERS = sorted({path.parent for path in MODULES})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_folders_stay_small_enough_to_read(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= 20


ENDINGS = ("", "s", "es", "ed", "er", "ers", "ing", "ings", "ion", "ions", "ment", "or")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_no_module_has_a_twin(folder: Path) -> None:
    """`store` beside `stores/`, `train` beside `training/`: no reader can tell which holds what."""
    names = [path.stem for path in folder.glob("*.py")]
    packages = [path.name for path in folder.iterdir() if (path / "__init__.py").exists()]
    twins = [
        (name, package)
        for name in names
        for package in packages
        for shorter, longer in ((name, package), (package, name))
        if any(longer in (f"{shorter}{end}", f"{shorter[:-1]}{end}") for end in ENDINGS)
    ]
    assert not twins


def test_a_type_name_has_one_meaning() -> None:
    places: dict[str, set[str]] = {}
    for module, path in BY_NAME.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, set()).add(module)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if name.lstrip("_")[:1].isupper() and not name.isupper():
                    places.setdefault(name, set()).add(module)
    assert not {name: found for name, found in places.items() if len(found) > 1}


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
        "fcn_core.weights.state_dict",  # to know pickle's errors: torch reads, with weights_only
        "pipeline.executors.ray_executor",
        "pipeline.workers.worker_main",
        "pipeline.workers.supervisor",
    }
    assert not any(
        call.startswith("pickle.load") for call in calls(ROOT / "fcn_core/weights/state_dict.py")
    )


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_nothing_that_comes_from_a_store_is_executed(path: Path) -> None:
    for call in calls(path):
        name = call.partition("(")[0]
        assert name not in ("eval", "exec", "os.system", "yaml.unsafe_load", "yaml.full_load"), call
        assert "allow_pickle" not in call and "shell" not in call, call
        if name == "torch.load":
            assert "weights_only" in call
        if name == "yaml.load":
            assert dotted(path) == "pipeline.formats"  # whose loader is a SafeLoader


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
