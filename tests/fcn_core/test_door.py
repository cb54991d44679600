"""The public names of `fcn_core`: they resolve, and importing the package loads nothing heavy."""

import subprocess
import sys

import pytest

import fcn_core


@pytest.mark.parametrize("name", fcn_core.__all__)
def test_public_name_resolves_to_the_object_of_that_name(name: str) -> None:
    assert getattr(fcn_core, name).__name__ == name
    assert name in dir(fcn_core)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'fcn_core' has no attribute 'nothing'"):
        _ = fcn_core.nothing


def test_import_loads_neither_numpy_nor_torch() -> None:
    code = (
        "import fcn_core, sys; print(sorted({'numpy', 'torch', 'PIL', 'scipy'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
