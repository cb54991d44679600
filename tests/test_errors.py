"""Every error travels between processes whole, and reads as a sentence."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
import warnings
from types import ModuleType

import pytest

import fcn_core
import pipeline
from fcn_core.errors import FcnError

PARTS = ("shard s3://b/a.tar, sample 7", "label is 500x366", "image is 500x375", "Fix the label.")


def modules(package: ModuleType) -> list[ModuleType]:
    names = [
        found.name for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    ]
    return [importlib.import_module(name) for name in names if not name.endswith("__main__")]


def error_classes() -> list[type[FcnError]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's, at import
        members = [vars(module) for package in (fcn_core, pipeline) for module in modules(package)]
    found = {value for names in members for value in names.values() if inspect.isclass(value)}
    return sorted((c for c in found if issubclass(c, FcnError)), key=lambda c: c.__qualname__)


every_error = pytest.mark.parametrize("error_class", error_classes(), ids=lambda c: c.__name__)


@every_error
def test_an_error_survives_pickling(error_class):
    error = error_class(*PARTS)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is error_class
        assert (str(again), vars(again), again.args) == (str(error), vars(error), error.args)


@every_error
def test_a_message_has_four_parts_in_order(error_class):
    message = str(error_class(*PARTS))
    places = [message.index(part) for part in PARTS]
    assert places == sorted(places)


@every_error
def test_a_message_without_a_remedy_ends_after_the_expectation(error_class):
    assert str(error_class(*PARTS[:3])).endswith(f"{PARTS[2]}.")


@every_error
def test_a_more_exact_place_replaces_the_place_only(error_class):
    error = error_class(*PARTS)
    moved = error.at("row 3")
    assert type(moved) is error_class
    assert (moved.where, moved.reason, moved.remedy) == ("row 3", error.reason, error.remedy)
    assert error.where == PARTS[0]


@every_error
def test_a_class_of_errors_says_what_it_is(error_class):
    assert error_class.__doc__
    assert error_class.exit_code > 0
