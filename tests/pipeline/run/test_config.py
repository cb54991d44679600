"""Laws of the configuration: one meaning whatever way a value comes in, and errors that help."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from pipeline.config import RunConfig, load_config, validate
from pipeline.errors import ConfigError

URLS = {"input": {"url": "in"}, "output": {"url": "out"}}


def load(file: str | None = None, *sets: str, **flags: Any) -> RunConfig:
    """A configuration with both URLs; flags are dotted names with __ for the dot."""
    dotted = {name.replace("__", "."): value for name, value in flags.items()}
    return load_config(file, sets, {"input.url": "in", "output.url": "out", **dotted})


def refused(*args: Any, **flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*args, **flags)
    assert caught.value.exit_code == 2
    return str(caught.value)


def sections() -> dict[str, type[BaseModel]]:
    return {name: field.annotation for name, field in RunConfig.model_fields.items()}  # type: ignore[misc]


def test_flags_win_over_sets_and_sets_over_the_file() -> None:
    file = "limits: {chunk_images: 1, chunk_bytes: 1, max_image_pixels: 1}"
    sets = ("limits.chunk_images=2", "limits.chunk_bytes=2")
    limits = load(file, *sets, limits__chunk_images=3).limits
    assert (limits.chunk_images, limits.chunk_bytes, limits.max_image_pixels) == (3, 2, 1)
    assert limits.max_bad_fraction == load().limits.max_bad_fraction  # and those over defaults


def test_the_last_of_several_sets_wins() -> None:
    assert load(None, "compute.workers=1", "compute.workers=2").compute.workers == 2


def test_a_flag_that_is_not_given_changes_nothing() -> None:
    assert load("model: {weights: a}", model__weights=None).model.weights == "a"


def test_every_way_in_gives_the_same_value() -> None:
    by_file = load("output: {masks: [png, tar]}\ncompute: {gpus_per_worker: 0.5}")
    by_set = load(None, "output.masks=[png, tar]", "compute.gpus_per_worker=0.5")
    by_flag = load(output__masks=("png", "tar"), compute__gpus_per_worker=0.5)
    by_json = load(json.dumps(by_file.model_dump(mode="json")))
    assert by_file == by_set == by_flag == by_json == validate(by_file.model_dump())


def test_a_set_may_contain_equal_signs_and_be_null() -> None:
    assert load(None, "model.weights=s3://b/a=b").model.weights == "s3://b/a=b"
    assert load("model: {weights: a}", "model.weights=null").model.weights is None


@pytest.mark.parametrize(
    "file", [None, "", "# nothing yet", "compute:\n  # workers: 2\nlimits: {}"]
)
def test_what_is_left_out_has_its_default(file: str | None) -> None:
    assert load(file) == load(file, compute__threads_per_worker=2) == validate(URLS)


def test_sources_are_not_changed() -> None:
    tree = {**URLS, "limits": {"chunk_images": 3}}
    before = copy.deepcopy(tree)
    validate(tree)
    assert tree == before


@pytest.mark.parametrize("name", sections())
def test_unknown_field_names_the_known_ones(name: str) -> None:
    message = refused(None, f"{name}.colour=red")
    assert message.startswith(f"config {name}.colour: an unknown key; known here: ")
    assert all(field in message for field in sections()[name].model_fields)


def test_unknown_section_names_the_known_ones() -> None:
    message = refused("computer: {workers: 1}")
    assert message.startswith("config computer: an unknown key")
    assert all(section in message for section in sections())


def test_urls_are_required() -> None:
    with pytest.raises(ConfigError, match=r"config input.url: no value; this field is required"):
        load_config("input: {shard_size: 3}", [], {"output.url": "out"})
    with pytest.raises(ConfigError, match=r"config input.url: no value; .*--set input.url=VALUE"):
        load_config(None, [], {"output.url": "out"})


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("compute.workers=0", "greater than or equal to 1"),
        ("compute.workers=many", "valid integer"),
        ("compute.workers=1.5", "valid integer"),
        ("compute.gpus_per_worker=0", "greater than 0"),
        ("compute.executor=dask", "'auto', 'local' or 'ray'"),
        ("model.precision=fp8", "'fp32', 'tf32', 'bf16', 'fp16' or 'int8'"),
        ("output.masks=[]", "at least 1 item"),
        ("output.masks=[jpeg]", "'parquet', 'png', 'tar' or 'confidence'"),
        ("limits.max_bad_fraction=1.5", "less than or equal to 1"),
        ("limits.max_bad_fraction=-0.1", "greater than or equal to 0"),
        ("limits.max_bad_fraction=.nan", "than or equal to"),
        ("limits.chunk_images=0", "greater than or equal to 1"),
        ("limits.chunk_bytes=null", "valid integer"),
        ("input.shard_size=-1", "greater than or equal to 1"),
        ("input.url=[a]", "valid string"),
        ("compute=3", "not section.field=value"),
        ("compute.workers", "not section.field=value"),
        ("workers=3", "not section.field=value"),
        ("compute.workers={a", "a YAML value"),
        ("compute.workers.most=3", "valid integer"),
    ],
)
def test_bad_value_is_named_with_what_was_expected(item: str, expected: str) -> None:
    message = refused(None, item) if not item.startswith("input.url") else _bad_url(item)
    assert item.partition("=")[0].split(".")[0] in message
    assert expected in message


def _bad_url(item: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [item], {"output.url": "out"})
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("input: {url: [", "not valid YAML (while parsing"),
        ("a: b: c", "not valid YAML ("),
        ("\tinput: 3", "not valid YAML ("),
        ("- input", "a list; sections with fields"),
        ("just words", "a str; sections with fields"),
        ("limits: 3", "config limits: 3; Input should be a valid dictionary"),
        ("3: {}", "config 3: "),
        ("!!python/object/apply:os.getcwd []", "not valid YAML ("),
    ],
)
def test_file_that_is_no_configuration(text: str, found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(text, [], {"input.url": "in", "output.url": "out"}, where="run.yaml")
    assert found in str(caught.value) and "\n" not in str(caught.value)


def test_a_value_where_a_section_belongs_is_refused_when_a_flag_needs_the_section() -> None:
    assert "config input: 'abc'; a section with fields" in refused("input: abc")


def test_executor_is_local_unless_something_names_a_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    assert load().resolved_executor() == "local" and load().ray_address() is None
    assert load(compute__ray_address="auto").resolved_executor() == "ray"
    assert load(compute__executor="ray").resolved_executor() == "ray"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert load().resolved_executor() == "ray" and load().ray_address() is None
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert load().resolved_executor() == "ray"
    assert load().ray_address() == "ray://head:10001"
    assert load(compute__ray_address="other").ray_address() == "other"
    assert load(compute__executor="local").resolved_executor() == "local"
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert load().resolved_executor() == "local"


@pytest.mark.parametrize("name", sections())
def test_every_field_has_a_description(name: str) -> None:
    model = sections()[name]
    assert (model.__doc__ or "").strip().endswith(".")
    for field, info in model.model_fields.items():
        assert (info.description or "").endswith("."), f"{name}.{field}"


def test_json_schema_has_every_field_with_its_description() -> None:
    schema = RunConfig.model_json_schema()
    json.dumps(schema)
    assert set(schema["required"]) == {"input", "output"}
    for name, model in sections().items():
        properties = schema["$defs"][model.__name__]["properties"]
        assert set(properties) == set(model.model_fields), name
        assert all(field["description"] for field in properties.values())
        assert schema["$defs"][model.__name__]["additionalProperties"] is False


def test_nothing_can_be_changed_and_everything_travels() -> None:
    config = load(compute__workers=3)
    for target, name in ((config.limits, "chunk_images"), (config, "limits")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(target, name, 3)
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(load(compute__workers=3))
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_a_key_that_stands_twice_is_refused_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"'shard_size' occurs twice.*line 3"):
        load_config("input:\n  shard_size: 3\n  shard_size: 4\n", [], {})
