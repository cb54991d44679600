"""TODO docstring."""

from __future__ import annotations

from collections.abc import Sequence

from fcn_core.errors import LabelError
from pipeline.inputs.sample import Failure

NEVER_FEWER = 3
"""A bad fraction counts from this many images on: one bad image of ten breaks no dataset."""


def is_over(bad: int, total: int, fraction: float) -> bool:
    """Whether `bad` of `total` images are too many.

    >>> is_over(2, 4, 0.05), is_over(3, 40, 0.05), is_over(3, 60, 0.05)
    (False, True, False)
    """
    return bad >= NEVER_FEWER and bad > fraction * total


def what_to_do(bad: Sequence[Failure]) -> str:
    """About too many bad images: labels that all mean something else were not made one by one."""
    usual = "fix or drop them, or raise the limit"
    if all(one.error == LabelError.__name__ and "label set" in one.reason for one in bad):
        return (
            "All of them have labels with values outside the label set: name the one that they "
            f"were made with (--label-set), {usual}"
        )
    return usual.capitalize()
