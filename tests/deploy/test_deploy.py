"""What deploy/ names exists, is valid to the tools it is for, and opens nothing without a token."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml

from deploy.without_cuda import without_cuda
from pipeline.cli.app import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TEXT = (DEPLOY / "README.md").read_text()
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
IMAGE_LOCK = (DEPLOY / "requirements.lock").read_text()
MANIFESTS = sorted([*DEPLOY.glob("*.yaml"), *DEPLOY.glob("kube*/*.yaml")])
CLUSTERS = ["ray-cluster.yaml", "ray-cluster.gcp.yaml"]

COMING = {"prefect.yaml"}
TEXTS = {".md", ".yaml", ".json", ".py", ".example", ".lock", ""}
SHIPPED = [ROOT / "README.md", ROOT / "Makefile", ROOT / ".ci/run", *(ROOT / "docs").rglob("*")]
SHIPPED = [
    path for path in [*SHIPPED, *DEPLOY.rglob("*"), *(ROOT / "flows").glob("*.py")]
    if path.is_file() and path.suffix in TEXTS
]  # fmt: skip


def documents(path: Path) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def load(name: str) -> dict[str, Any]:
    (found,) = documents(DEPLOY / name)
    return found


def walk(tree: Any, *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of a document with its path."""
    yield above, tree
    items = tree.items() if isinstance(tree, dict) else ()
    for name, value in items or (enumerate(tree) if isinstance(tree, list) else ()):
        yield from walk(value, *above, str(name))


def pinned(lock: str) -> dict[str, str]:
    return dict(re.findall(r"(?m)^([a-z0-9][\w.-]*)==([^\s;]+)", lock))


# Entry points and files


@pytest.mark.parametrize("entry", sorted(set(re.findall(r"`(\w+(?:\.\w+)+):(\w+)`", TEXT))))
def test_every_named_entry_point_imports(entry: tuple[str, str]) -> None:
    module, name = entry
    assert callable(getattr(importlib.import_module(module), name))


def test_entry_points_are_named() -> None:
    assert "`flows.label:label_dataset`" in TEXT and "`pipeline.__main__:main`" in TEXT


def test_the_table_names_every_file_and_no_other() -> None:
    named = set(re.findall(r"\]\(([\w./-]+)\)", TEXT))
    there = {path.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("*") if path.is_file()}
    there = {name for name in there if "__pycache__" not in name and name != "README.md"}
    assert there <= named
    assert {name for name in named if not (DEPLOY / name).exists()} <= COMING


# Versions: one of each, everywhere


def test_versions_are_those_of_the_lock_file() -> None:
    lock = pinned(LOCK)
    argument = dict(re.findall(r"(?m)^ARG (\w+)=(\S+)", DOCKERFILE))
    assert argument["TORCH"] == lock["torch"]
    assert argument["TORCHVISION"] == lock["torchvision"]
    # cuda-toolkit is what the wheels of torch bring; its first two numbers are what a driver knows.
    assert argument["CUDA"] == ".".join(lock["cuda-toolkit"].split(".")[:2])
    python = ".".join(argument["PYTHON"].split(".")[:2])
    makefile = (ROOT / "Makefile").read_text()
    assert set(re.findall(r"--python-version (\S+)", makefile)) == {python}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={python}"
    for name in ("kuberay/raycluster.yaml", "kuberay/rayjob.yaml"):
        said = [value for path, value in walk(load(name)) if path[-1:] == ("rayVersion",)]
        assert said == [lock["ray"]], name
    texts = "".join(path.read_text() for path in DEPLOY.rglob("*.*ml"))
    texts += (DEPLOY / "kubernetes/work-pool.json").read_text() + DOCKERFILE
    images = re.findall(r"fcn-pipeline:(\d[\d.]*\d)", texts)
    assert images and set(images) == {project["version"]}
    prefect = re.findall(r"prefecthq/prefect:(\d[\d.]+)-python([\d.]+)", texts)
    assert prefect == [(lock["prefect"], python)]
    assert set(re.findall(r"CUDA (\d+\.\d+)", texts)) == {argument["CUDA"]}


def test_the_torch_installed_here_is_of_the_cuda_of_the_image() -> None:
    import torch

    if torch.__version__.split("+")[0] != pinned(LOCK)["torch"] or torch.version.cuda is None:
        pytest.skip(f"torch {torch.__version__} is not the one of the lock file")
    assert f"ARG CUDA={torch.version.cuda}\n" in DOCKERFILE


def test_the_image_installs_what_was_tested() -> None:
    tested, image = pinned(LOCK), pinned(IMAGE_LOCK)
    assert {name: image[name] for name in image if name in tested} == {
        name: tested[name] for name in image if name in tested
    }
    assert {"torch", "ray", "prefect", "s3fs", "boto3"} <= set(image)
    assert not {"pytest", "mypy", "moto", "hypothesis"} & set(image)
    assert "://" not in IMAGE_LOCK
    assert IMAGE_LOCK.count("--hash=sha256:") > len(image)


def test_the_cpu_image_lacks_cuda_and_nothing_else() -> None:
    kept = pinned(without_cuda(IMAGE_LOCK))
    gone = set(pinned(IMAGE_LOCK)) - set(kept)
    assert {"torch", "torchvision", "triton", "nvidia-cudnn-cu13", "cuda-toolkit"} <= gone
    assert all(re.match(r"torch|triton$|nvidia-|cuda-", name) for name in gone)
    assert not re.search(r"(?m)^(torch|nvidia|cuda|triton)", without_cuda(IMAGE_LOCK))


# Valid to the tools they are for


def run(*command: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name(command[0]))
    return subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=120)


def test_hadolint_has_nothing_to_say(tmp_path: Path) -> None:
    done = run("hadolint", str(DEPLOY / "Dockerfile"))
    assert (done.returncode, done.stdout) == (0, "")
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN sudo apt-get install curl\n")
    assert run("hadolint", str(bad)).returncode == 1


def test_compose_file_fits_its_specification(tmp_path: Path) -> None:
    check = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    done = run(*check, str(DEPLOY / "compose.yaml"))
    assert done.returncode == 0, done.stdout
    bad = tmp_path / "compose.yaml"
    bad.write_text("services: {a: {imagee: x}}\n")
    assert run(*check, str(bad)).returncode == 1


def test_compose_names_what_exists() -> None:
    compose = load("compose.yaml")
    services = compose["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            there = source in compose["volumes"] or (DEPLOY / source).exists()
            assert there or source.removeprefix("./") in COMING, volume
    text = (DEPLOY / "compose.yaml").read_text()
    wanted = set(re.findall(r"\$\{(\w+):\?", text))
    example = (DEPLOY / "compose.env.example").read_text()
    assert wanted and wanted <= set(re.findall(r"(?m)^(\w+)=", example))
    assert not re.search(r"(?m)^FCNSEG_(?!TARGET)\w+=.", example)  # secrets are left empty
    assert "/deploy/compose.env\n" in (ROOT / ".gitignore").read_text()


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_cluster_fits_rays_own_schema(name: str) -> None:
    schema = json.loads((ray_home() / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(load(name), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**load(name), "max_worker": 3}, schema)


@pytest.mark.ray
@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_up_would_take_the_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(load(name))
    validate_config(config)
    assert set(config["available_node_types"]) >= {"head", "gpu"}


def ray_home() -> Path:
    found = importlib.util.find_spec("ray")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def kubernetes_objects() -> list[Any]:
    found = []
    for path in sorted(DEPLOY.glob("kube*/*.yaml")):
        for item in documents(path):
            if not item["apiVersion"].startswith("ray.io/"):
                found.append(pytest.param(item, id=f"{path.stem}-{item['kind']}"))
    for item, name in pod_templates():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": item["spec"]}
        pod["metadata"] |= item.get("metadata", {})
        found.append(pytest.param(pod, id=f"pod-{name}"))
    return found


def pod_templates() -> Iterator[tuple[dict[str, Any], str]]:
    """Pods inside the operator's objects, which its own schema covers but loosely."""
    for name in ("raycluster", "rayjob"):
        for path, value in walk(load(f"kuberay/{name}.yaml")):
            if path and path[-1] in ("template", "submitterPodTemplate"):
                yield value, f"{name}-{'-'.join(path[-3:-1])}"


def work_pool_job() -> dict[str, Any]:
    """The manifest of the Kubernetes work pool with the defaults of its variables put in."""
    pool = json.loads((DEPLOY / "kubernetes/work-pool.json").read_text())
    known = pool["variables"]["properties"]
    own = {"name": "run", "labels": {}, "command": ["prefect"], "env": []}

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: fill(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [fill(inner) for inner in value]
        name = re.fullmatch(r"{{ (\w+) }}", value) if isinstance(value, str) else None
        if name is None:
            return value
        assert name[1] in known, f"{name[1]} is no variable of the pool"
        return own[name[1]] if name[1] in own else known[name[1]]["default"]

    filled = fill(pool["job_configuration"]["job_manifest"])
    assert isinstance(filled, dict)
    return filled


@pytest.mark.parametrize("item", [*kubernetes_objects(), pytest.param(work_pool_job(), id="job")])
def test_kubernetes_objects_fit_the_published_schemas(item: dict[str, Any]) -> None:
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(item, version, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**item, "specc": {}}, version, strict=True)


def test_every_command_line_in_the_files_parses() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = 0
    for path in MANIFESTS:
        for _, value in (pair for item in documents(path) for pair in walk(item)):
            for line in re.findall(r"fcnseg [^&;']*", value) if isinstance(value, str) else ():
                words = shlex.split(line)[1:]
                if words[0] in commands:
                    commands[words[0]].make_context(words[0], words[1:])
                    found += 1
    assert found == 2  # doctor and run, in rayjob.yaml


def test_prefect_knows_every_setting_that_is_set() -> None:
    from prefect.settings.legacy import _get_settings_fields
    from prefect.settings.models.root import Settings

    known = set(_get_settings_fields(Settings))
    texts = "".join(path.read_text() for path in MANIFESTS) + DOCKERFILE
    named = set(re.findall(r"\bPREFECT_[A-Z_]+\b", texts))
    assert "PREFECT_SERVER_API_AUTH_STRING" in named and named <= known


# Nothing answers without a token


def test_the_image_demands_a_token_and_is_not_root() -> None:
    assert re.search(r"(?m)^\s+RAY_AUTH_MODE=token\b", DOCKERFILE)
    users = re.findall(r"(?m)^USER (\S+)", DOCKERFILE)
    assert users and all(int(user.split(":")[0]) > 0 for user in users)
    assert "/etc/profile.d/" in DOCKERFILE  # login shells of ray up and KubeRay find our commands


def test_no_file_switches_tokens_off() -> None:
    mode = re.compile(r"RAY_AUTH_MODE[\"']?(?:\s*[:=,]|\s)\s*(?:value:\s*)?[\"']?(\w+)")
    texts = [path.read_text() for path in DEPLOY.rglob("*.*") if path.suffix != ".pyc"]
    said = [found for text in (*texts, DOCKERFILE) for found in mode.findall(text)]
    assert len(said) >= 4 and set(said) == {"token"}
    assert mode.findall("RAY_AUTH_MODE: disabled RAY_AUTH_MODE=disabled") == ["disabled"] * 2


def test_nothing_shipped_opens_the_dashboard_to_others() -> None:
    opened = re.compile(r"dashboard[-_]host[\"']?[=:,\s]+[\"']?([\w.]+|::)")
    assert opened.findall("--dashboard-host=1.2.3.4 dashboard_host: '::'") == ["1.2.3.4", "::"]
    found = set()
    for path in SHIPPED:
        hosts = set(opened.findall(path.read_text()))
        found |= {(path.name, host) for host in hosts - {"127.0.0.1"}}
    # Inside the network of the compose file alone; the test below holds its ports and its token.
    assert found == {("compose.yaml", "0.0.0.0")}


def test_no_page_tells_anybody_to_do_without_tokens() -> None:
    off = re.compile(r"^\s*(?:export\s.*)?RAY_AUTH_MODE=disabled", re.MULTILINE)
    assert off.search("export A=1 RAY_AUTH_MODE=disabled") and len(SHIPPED) > 40
    assert [path.name for path in SHIPPED if off.search(path.read_text())] == []


def test_compose_publishes_on_loopback_alone_and_ray_has_its_token() -> None:
    services = load("compose.yaml")["services"]
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert published and all(port.startswith("127.0.0.1:") for port in published)
    assert not [name for name, item in services.items() if item.get("network_mode") == "host"]
    for name, service in services.items():
        starts_ray = "ray" in str(service.get("command", "")).split("'")[1:2]
        if starts_ray or name == "worker":
            environment = service["environment"]
            assert environment["RAY_AUTH_MODE"] == "token", name
            assert environment["RAY_AUTH_TOKEN"].startswith("${FCNSEG_RAY_TOKEN:?"), name
    assert services["prefect"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"].startswith("${FCN")
    assert {"ray-head", "ray-worker", "prefect", "worker"} <= set(services)


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_up_keeps_the_dashboard_inside_and_brings_the_token(name: str) -> None:
    config = load(name)
    (head,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in head
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/fcn/.ray/auth_token": "~/.ray/auth_token"}
    rules = config["provider"].get("security_group", {}).get("IpPermissions", ())
    assert {rule["FromPort"] for rule in rules} <= {22}
    assert "0.0.0.0/0" not in (DEPLOY / name).read_text()


def test_kuberay_clusters_demand_the_token_and_stay_inside() -> None:
    for name in ("raycluster", "rayjob"):
        spec = load(f"kuberay/{name}.yaml")["spec"]
        spec = spec.get("rayClusterSpec", spec)
        assert spec["authOptions"] == {"mode": "token", "secretName": "fcn-pipeline-token"}
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    kinds = {item["kind"] for path in MANIFESTS for item in documents(path) if "kind" in item}
    assert "NetworkPolicy" in kinds and not kinds & {"Ingress", "Service", "Secret"}


def test_every_pod_is_confined() -> None:
    pods = [template["spec"] for template, _ in pod_templates()]
    pods.append(work_pool_job()["spec"]["template"]["spec"])
    for item in documents(DEPLOY / "kubernetes/worker.yaml"):
        if item["kind"] == "Deployment":
            pods.append(item["spec"]["template"]["spec"])
    assert len(pods) == 8
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert set(container["resources"]) == {"limits", "requests"}


def test_gpu_pods_tolerate_gpu_nodes_and_ask_for_one() -> None:
    for template, name in pod_templates():
        (container,) = template["spec"]["containers"]
        gpu = container["resources"]["limits"].get("nvidia.com/gpu")
        assert (gpu is not None) == ("tolerations" in template["spec"]), name
        assert (gpu is not None) == container["image"].endswith("-cuda"), name


def test_clusters_that_grow_keep_one_gpu_for_runs_to_count() -> None:
    groups = load("kuberay/raycluster.yaml")["spec"]["workerGroupSpecs"]
    kept = {group["groupName"]: group["minReplicas"] for group in groups}
    assert kept == {"gpu": 1, "cpu": 0}
    for name in CLUSTERS:
        assert load(name)["available_node_types"]["gpu"]["min_workers"] == 1, name


def test_a_run_of_its_own_has_a_fixed_size_for_gang_schedulers() -> None:
    cluster = load("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]
    assert not cluster.get("enableInTreeAutoscaling")
    for group in cluster["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] > 0
