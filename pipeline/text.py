"""Text for messages: counts, shares, shortened text, and the first difference of two documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def plural(count: int, noun: str) -> str:
    """Return a count with its noun in the right form.

    >>> plural(1, "node"), plural(3, "node")
    ('1 node', '3 nodes')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def percent(share: float) -> str:
    """Return a share of 0 to 1 in percent; a share above 0 is never shown as 0%.

    >>> percent(0.62), percent(0.004)
    ('62%', '<1%')
    """
    text = f"{share:.0%}"
    return "<1%" if text == "0%" and share else text


def shorten(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters; a longer text is cut and ends with "…".

    >>> shorten("abcdef", 6), shorten("abcdefg", 6)
    ('abcdef', 'abcde…')
    """
    return text if len(text) <= limit else text[: limit - 1] + "…"


def list_names(names: Sequence[str], limit: int) -> str:
    """Return the first `limit` names with commas between them, and ", …" if there are more.

    >>> list_names(["a", "b", "c"], 2)
    'a, b, …'
    """
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


_VALUE_LIMIT = 60
"""Characters of a value in a message about a difference."""


def show_value(value: Any) -> str:
    """Return a JSON value as shortened text; strings have no quotation marks."""
    return shorten(value if isinstance(value, str) else json.dumps(value), _VALUE_LIMIT)


@dataclass(frozen=True)
class Difference:
    """The first place where two JSON documents differ.

    Attributes:
        name: dotted path to the value; an item of a list is named by its index.
        then: value in the first document; None if it has none.
        now: value in the second document; None if it has none.
    """

    name: str
    then: Any
    now: Any

    def describe(self, before: str, after: str) -> tuple[str, str]:
        """Return both values as shortened text in two templates.

        Args:
            before: template for the name and the first value, like "it was made with {}".
            after: template for the second value, like "this run has {}".
        """
        return before.format(f"{self.name} {show_value(self.then)}"), after.format(
            show_value(self.now)
        )


def first_difference(then: Any, now: Any, name: str = "") -> Difference | None:
    """Return the first difference of two JSON documents at its deepest level, or None.

    Args:
        then: the first document.
        now: the second document.
        name: dotted path to the two documents; "" for whole documents.

    >>> first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    Difference(name='a.c', then=2, now=3)
    """
    if then == now:
        return None
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        pairs = {key: (then.get(key), now.get(key)) for key in {**then, **now}}
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        pairs = {str(index): both for index, both in enumerate(zip(then, now, strict=True))}
    else:
        return Difference(name, then, now)
    inner = (
        first_difference(*both, f"{name}.{key}" if name else key) for key, both in pairs.items()
    )
    # If one document lacks a key and the other has null there, no inner value differs: report the
    # whole mapping. At the top level, where versions add keys, a missing key equals null.
    whole = Difference(name, then, now) if name else None
    return next((difference for difference in inner if difference is not None), whole)
