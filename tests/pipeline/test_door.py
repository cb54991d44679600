"""The names that `from pipeline import ...` gives, and what they cost."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pipeline
from pipeline.config import RunConfig, load_config
from pipeline.driver import run
from pipeline.storage.store import Store

DOOR = {"RunConfig": RunConfig, "Store": Store, "load_config": load_config, "run": run}


def test_every_public_name_is_the_one_of_its_module() -> None:
    assert set(pipeline.__all__) == set(DOOR)
    for name, value in DOOR.items():
        assert getattr(pipeline, name) is value
        assert name in dir(pipeline)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'label'"):
        pipeline.label  # noqa: B018


def test_importing_the_package_imports_nothing_else() -> None:
    script = (
        "import sys; before = set(sys.modules); import pipeline; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "sys.exit(repr(new - set(sys.stdlib_module_names)))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.stderr.strip() == "{'pipeline'}"


def test_submodules_keep_their_names() -> None:
    from pipeline import logs, text

    assert (logs.__name__, text.__name__) == ("pipeline.logs", "pipeline.text")
