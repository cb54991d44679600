"""Limits for bad images: when a share of failures is too large, and what the user can do."""

from __future__ import annotations

from collections.abc import Sequence

from fcn_core.errors import LabelError
from pipeline.inputs.sample import Failure

MIN_BAD_IMAGES = 3
"""A run or shard with fewer bad images is never over a limit: 1 bad image of 10 may be chance."""


def is_over(bad: int, total: int, fraction: float) -> bool:
    """Return whether `bad` of `total` images exceed a limit, a fraction of 0 to 1.

    >>> is_over(2, 4, 0.05), is_over(3, 40, 0.05), is_over(3, 60, 0.05)
    (False, True, False)
    """
    return bad >= MIN_BAD_IMAGES and bad > fraction * total


def describe_excess(bad: int, total: int, fraction: float, option: str) -> str:
    """Return what exceeds a limit, for a message.

    >>> describe_excess(7, 17, 0.05, "limits.max_bad_fraction_per_shard")
    '7 of 17 images (41%) are bad; the limit is 5% (limits.max_bad_fraction_per_shard)'
    """
    share = f"{bad} of {total} images ({bad / total:.0%})"
    return f"{share} are bad; the limit is {fraction:.0%} ({option})"


def suggest_remedy(bad: Sequence[Failure]) -> str:
    """Return what to do about too many bad images, as a sentence for a message.

    If every failure is a label with values outside the label set, the label set is probably wrong.
    """
    usual = "fix or drop them, or raise the limit"
    if all(one.error == LabelError.__name__ and "label set" in one.reason for one in bad):
        return (
            "All of them have labels with values outside the label set: name the label set that "
            f"the labels were made with (--label-set), {usual}"
        )
    return usual.capitalize()
