"""The deployments of deploy/ fit the flows, the configuration and the documentation."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from flows.label import label_dataset
from flows.serve import deployments, main
from flows.train import train_dataset
from pipeline.config import RunConfig, load_config
from pipeline.training.config import TrainConfig
from tests.support.prefect_site import ROOT


def deployed(text: str) -> dict[str, Any]:
    """A file of deployments, each variable's name in the place of its value."""
    found: dict[str, Any] = yaml.safe_load(re.sub(r"\{\{ \$(\w+) \}\}", r"\1", text))
    return found


TEXT = (ROOT / "deploy/prefect.yaml").read_text()
TRAIN_TEXT = (ROOT / "deploy/prefect-train.yaml").read_text()
FILE = deployed(TEXT)
DEPLOYMENTS = {found["name"]: found for found in FILE["deployments"]}


@pytest.mark.parametrize("name", ["nightly", "on-demand"])
def test_a_deployment_starts_our_flow_with_a_configuration_of_ours(name: str) -> None:
    found = DEPLOYMENTS[name]
    assert found["entrypoint"] == f"{label_dataset.fn.__module__}.{label_dataset.fn.__name__}"
    config = RunConfig.model_validate(found["parameters"]["config"])
    assert config.input.url == "FCNSEG_INPUT" and config.output.url == "FCNSEG_OUTPUT"
    assert config.compute.ray_address == "FCNSEG_RAY"
    assert found["enforce_parameter_schema"] is True


def test_the_deployment_that_trains_starts_our_flow_with_a_configuration_of_ours() -> None:
    [found] = deployed(TRAIN_TEXT)["deployments"]
    assert found["entrypoint"] == f"{train_dataset.fn.__module__}.{train_dataset.fn.__name__}"
    config = TrainConfig.model_validate(found["parameters"]["config"])
    assert (config.input.url, config.input.label_set) == ("FCNSEG_TRAIN", "FCNSEG_LABEL_SET")
    assert config.val is not None and config.val.url == "FCNSEG_VAL"
    assert (config.output.url, config.compute.ray_address) == ("FCNSEG_TRAINED", "FCNSEG_RAY")
    assert found["enforce_parameter_schema"] is True
    # Prefect makes an empty string of a variable that is not set.
    tree = found["parameters"]["config"]
    unset = {**tree, "val": {"url": ""}, "compute": {"ray_address": ""}}
    config = TrainConfig.model_validate(unset)
    assert config.val is None and config.ray_address() is None


@pytest.mark.parametrize("flow", [label_dataset, train_dataset])
def test_every_field_of_the_form_says_what_it_is_and_holds_its_default(flow: Any) -> None:
    schema = flow.parameters.model_dump()
    assert list(schema["properties"]) == ["config"]
    fields = 0
    for section in schema["definitions"].values():
        assert section["additionalProperties"] is False
        for name, field in section["properties"].items():
            # A section's own description stands with the section.
            assert field.get("description") or "$ref" in field, name
            assert "default" in field or name in section["required"], name
            fields += 1
        assert section["description"]
    assert fields > 40


def test_one_night_at_a_time() -> None:
    night = DEPLOYMENTS["nightly"]
    assert night["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
    [schedule] = night["schedules"]
    assert schedule["timezone"] == "FCNSEG_TIME_ZONE" and schedule["active"] is True
    assert "schedules" not in DEPLOYMENTS["on-demand"]


def test_every_variable_of_the_file_is_documented() -> None:
    for text, page, wanted in (
        (TEXT, "prefect", "POOL INPUT OUTPUT WEIGHTS TIME_ZONE RAY"),
        (TRAIN_TEXT, "training", "POOL TRAIN VAL LABEL_SET TRAINED RAY"),
    ):
        doc = (ROOT / f"docs/{page}.md").read_text()
        names = set(re.findall(r"\$(\w+)", text))
        assert names == {f"FCNSEG_{name}" for name in wanted.split()}
        for name in names:
            assert re.search(rf"^\|.*`{name}`.*\|", doc, re.MULTILINE), name


def test_what_is_served_is_the_same_two() -> None:
    config = load_config(None, [], {"input.url": "in", "output.url": "out"})
    served = {found.name: found for found in deployments(config, "0 2 * * *", "Europe/Berlin")}
    assert set(served) == set(DEPLOYMENTS)
    night = served["nightly"]
    assert night.parameters == {"config": {"input": {"url": "in"}, "output": {"url": "out"}}}
    assert night.concurrency_limit == 1
    assert night.concurrency_options.collision_strategy == "CANCEL_NEW"
    [schedule] = night.schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 2 * * *", "Europe/Berlin")
    assert all(found.entrypoint == "flows.label.label_dataset" for found in served.values())
    assert [found.name for found in deployments(config, None, "UTC")] == ["on-demand"]


def test_serving_refuses_a_wrong_configuration(tmp_path: Any, capsys: Any) -> None:
    (tmp_path / "c.yaml").write_text("input: {url: a, urk: b}\noutput: {url: c}\n")
    assert main([str(tmp_path / "c.yaml")]) == 2
    assert "input.urk" in capsys.readouterr().err
