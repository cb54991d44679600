"""Numbers in sentences."""

from __future__ import annotations


def plural(count: int, word: str) -> str:
    """A count and its noun.

    >>> plural(1, "node"), plural(3, "node")
    ('1 node', '3 nodes')
    """
    return f"{count} {word}{'' if count == 1 else 's'}"


def percent(share: float) -> str:
    """A share of what is there: never nothing of something.

    >>> percent(0.62), percent(0.004)
    ('62%', '<1%')
    """
    text = f"{share:.0%}"
    return "<1%" if text == "0%" and share else text
